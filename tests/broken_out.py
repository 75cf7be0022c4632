"""What somebody would try who has broken out of a guest: a program that takes the place of QEMU.

It brings its own tools. `facts.json` beside them says where everything is that it must not find, and holds
the filter of system calls of a real QEMU; each attempt is made without that and with it. What came of them is
written to `found.json`, in the only folder that it may write to, as `{attempt: result}`; a result that begins
with "got" is one that succeeded.
"""

import base64
import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Attempt = Callable[[], object]
# Below what is "own" all is QEMU's or its session's, of which it must not change what is "read_only". Its own
# "devices", too. Of others: "files", "folders", "sockets", "words", "processes" by name, "ports" with their
# addresses, and "accounts". "filter": the filter's instructions in Base64.
Facts = dict[str, Any]

VERSION = "QEMU emulator version 7.2.0 (a test's)"
TOOLS = Path(sys.executable).parent

_libc = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE = 0x4206  # without stopping it
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
_REMOUNT_WRITABLE = 0x1020
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
_CAPABILITIES_3 = 0x20080522
_ATTEMPT_S = 10
_ANSWER_S = 1
_ENOUGH_BYTES = 1 << 20


def _call(name: str, *arguments: Any) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _all(found: Any) -> Any:
    """It, where there is any."""
    if not found:
        raise FileNotFoundError(errno.ENOENT, "nothing")
    return found


# Files


def _read(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(16)


def _open(path: str, flags: int = os.O_RDONLY) -> object:
    os.close(os.open(path, flags, 0o600))
    return path


def _change(path: str) -> object:
    """Nothing of a file is changed: it is opened for that. In a folder one is made."""
    if Path(path).is_dir():
        return _open(f"{path}/planted", os.O_WRONLY | os.O_CREAT)
    return _open(path, os.O_WRONLY)


def _strange_files(facts: Facts) -> object:
    """Those that are neither QEMU's nor its session's, nor folders that lead there."""
    own = [Path(path) for path in facts["own"]]
    for folder, folders, files in os.walk("/"):
        for name in (*folders, *files):
            path = Path(folder, name)
            if not any(path.is_relative_to(one) or one.is_relative_to(path) for one in own):
                return path
        folders[:] = [name for name in folders if Path(folder, name) not in own]
    return _all([])


def _strange_devices(facts: Facts) -> object:
    paths = [path for path in Path("/dev").rglob("*") if not path.is_symlink()]
    found = [str(path) for path in paths if path.is_block_device() or path.is_char_device()]
    return _all([path for path in found if path not in facts["devices"]])


def _descriptors() -> object:
    """Files that QEMU was started with, beside its standard ones and the pipe of an attempt."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return _all([path for path in found if not path.startswith(("pipe:", "/dev/null", "/proc/"))])


# Processes


def _pids() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _strange_processes() -> object:
    """All but the first of its namespace, and what came of that."""
    family, strange = {1}, []
    for pid in _pids():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
            if pid in family or parent in family:
                family.add(pid)
            else:
                strange.append(pid)
    # The first one of a host is the father of them all.
    first = Path("/proc/1/comm").read_text().strip()
    return _all(strange if first == "bwrap" else [first])


def _said(facts: Facts) -> object:
    """Who of the others is named in what can be read of the system and its processes."""
    names = ("cmdline", "environ", "maps", "mountinfo", "cgroup", "status")
    paths = [Path(f"/proc/{pid}/{name}") for pid in _pids() for name in names]
    paths += [*Path("/proc/net").glob("*"), *map(Path, ("/proc/locks", "/proc/keys", "/proc/partitions"))]
    found = []
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:
            content = file.read(_ENOUGH_BYTES)
            found += [f"{word} in {path}" for word in facts["words"] if word.encode() in content]
    return _all(found)


def _signal(pid: int) -> object:
    os.kill(pid, 0)
    return pid


def _trace(pid: int) -> object:
    return _call("ptrace", _PTRACE_SEIZE, pid, None, None)


def _peek(pid: int) -> object:
    here = ctypes.create_string_buffer(8)
    piece = (ctypes.c_void_p * 2)(ctypes.addressof(here), 8)
    return _call("process_vm_readv", pid, piece, 1, piece, 1, 0)


def _enter(facts: Facts, kind: str) -> object:
    """The namespace of whichever process has another one."""
    own = Path("/proc/self/ns", kind).stat()
    for pid in (*_pids(), *facts["processes"].values()):
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
            if not os.path.samestat(os.fstat(namespace.fileno()), own):
                return _call("setns", namespace.fileno(), 0)
    return _all([])


# Rights


def _mount(kind: bytes, at: bytes, *, flags: int = 0) -> object:
    return _call("mount", b"none", at, kind, flags, None)


def _become(get: Callable[[], int], put: Callable[[int], object], number: int) -> object:
    """Where that is another one: in a namespace of its own QEMU may be called 0."""
    before = get()
    put(number)
    return _all(get() != before)


def _take_capabilities() -> object:
    return _call("capset", struct.pack("Ii", _CAPABILITIES_3, 0), struct.pack("6I", *[0xFFFFFFFF] * 6))


def _as_another_root(attempt: Attempt) -> Attempt:
    """As root in namespaces of its own, where it may have any."""

    def attempt_there() -> object:
        _call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWNET)
        return attempt()

    return attempt_there


# The network


def _connect(address: str, port: int) -> object:
    with socket.create_connection((address, port), timeout=_ANSWER_S):
        return address


def _ask(address: str, port: int) -> object:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.settimeout(_ANSWER_S)
        one.connect((address, port))
        one.send(b"?")
        return one.recv(16)


def _connect_unix(path: str) -> object:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(_ANSWER_S)
        one.connect(path)
        return path


def _connect_host() -> object:
    """Past all networks, as a guest's kernel does."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as one:
        one.settimeout(_ANSWER_S)
        one.connect((socket.VMADDR_CID_HOST, 22))
        return "vsock"


def _raw(family: int, protocol: int) -> object:
    socket.socket(family, socket.SOCK_RAW, protocol).close()
    return family


def _run(*command: str) -> object:
    """One of the tools, in silence."""
    silence = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (1, 2)]
    pid = os.posix_spawn(TOOLS / command[0], command, {}, file_actions=silence)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise PermissionError(errno.EPERM, f"{' '.join(command)}: {code}")
    return command


# All of them


def list_attempts(facts: Facts) -> Iterator[tuple[str, Attempt]]:
    """None may succeed, with QEMU's filter or without."""
    yield "files of others", lambda: _strange_files(facts)
    yield "devices", lambda: _strange_devices(facts)
    yield "descriptors of others", _descriptors
    yield "processes of others", _strange_processes
    yield "words of others", lambda: _said(facts)
    yield "words of others, as another root", _as_another_root(lambda: _said(facts))
    for path in facts["files"]:
        yield f"read {path}", lambda path=path: _read(path)
        yield f"read {path} by the first process", lambda path=path: _read(f"/proc/1/root{path}")
        yield f"read {path}, as another root", _as_another_root(lambda path=path: _read(path))
        yield f"link to {path}", lambda path=path: os.link(path, "linked")
    for path in facts["folders"]:
        yield f"list {path}", lambda path=path: _all(list(Path(path).iterdir()))
    for path in (*facts["read_only"], "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern"):
        yield f"write to {path}", lambda path=path: _change(path)
    for path in ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/fuse", "/dev/net/tun", "/dev/vhost-net"):
        yield f"open {path}", lambda path=path: _open(path)
    for name, pid in facts["processes"].items():
        yield f"signal {name}", lambda pid=pid: _signal(pid)
        yield f"trace {name}", lambda pid=pid: _trace(pid)
        yield f"read the memory of {name}", lambda pid=pid: _peek(pid)
        yield f"read the environment of {name}", lambda pid=pid: _read(f"/proc/{pid}/environ")
        yield f"limit {name}", lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_CORE)
        yield f"hold {name}", lambda pid=pid: os.pidfd_open(pid)
    for kind in ("net", "mnt", "pid", "user", "ipc", "uts", "cgroup"):
        yield f"enter another {kind}", lambda kind=kind: _enter(facts, kind)
    for path in facts["sockets"]:
        yield f"connect to {path}", lambda path=path: _connect_unix(path)
    for address, port in facts["ports"]:
        yield f"TCP to {address} {port}", lambda address=address, port=port: _connect(address, port)
        yield f"UDP to {address} {port}", lambda address=address, port=port: _ask(address, port)
    yield "vsock to the host", _connect_host
    yield "a raw socket", lambda: _raw(socket.AF_INET, socket.IPPROTO_ICMP)
    yield "a raw socket of IPv6", lambda: _raw(socket.AF_INET6, socket.IPPROTO_ICMPV6)
    yield "a socket for packets", lambda: _raw(socket.AF_PACKET, socket.htons(3))
    yield "see the firewall", lambda: _run("nft", "list", "ruleset")
    yield "no firewall", lambda: _run("nft", "flush", "ruleset")
    yield "an interface down", lambda: _run("ip", "link", "set", "lo", "down")
    yield "another address", lambda: _run("ip", "address", "add", "10.77.0.77/24", "dev", "lo")
    for number in facts["accounts"]:
        yield f"be user {number}", lambda number=number: _become(os.getuid, os.setuid, number)
        yield f"be group {number}", lambda number=number: _become(os.getgid, os.setgid, number)
    yield "other groups", lambda: os.setgroups([0])
    yield "capabilities", _take_capabilities
    yield "mount memory", lambda: _mount(b"tmpfs", b"/tmp")
    yield "mount /proc", lambda: _mount(b"proc", b"/tmp")
    yield "mount /sys", lambda: _mount(b"sysfs", b"/tmp")
    yield "make writable", lambda: _mount(b"none", b"/usr/lib", flags=_REMOUNT_WRITABLE)
    yield "unmount", lambda: _call("umount2", b"/usr/lib", 2)
    yield "another root folder", lambda: os.chroot("/tmp")
    yield "a disk's device", lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
    yield "another name of the host", lambda: socket.sethostname("mine")


def list_filtered() -> Iterator[tuple[str, Attempt]]:
    """What QEMU's filter alone keeps from it. Nothing outside is reached by that either: see above."""
    yield "a user namespace", lambda: _call("unshare", _NEWUSER)
    yield "a child", os.fork
    yield "a program", lambda: os.execv(TOOLS / "ip", ["ip"])


def put_up_filter(instructions: bytes) -> None:
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer))
    _call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SET_SECCOMP, _FILTER, program)


def try_one(attempt: Attempt, *, instructions: bytes = b"") -> str:
    """By a child, as nothing of it is to be left for the next one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(_ATTEMPT_S)
        try:
            if instructions:
                put_up_filter(instructions)
            result = f"got {attempt()!r}"
        except OSError as exc:
            result = type(exc).__name__
        os.write(writing, result.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        result = told.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return result or f"ended by {signal.Signals(-code).name}"


def try_all(facts: Facts) -> dict[str, str]:
    instructions = base64.b64decode(facts["filter"])
    found = {name: try_one(attempt) for name, attempt in list_attempts(facts)}
    for name, attempt in (*list_attempts(facts), *list_filtered()):
        found[f"{name}, filtered"] = try_one(attempt, instructions=instructions)
    return found


def main() -> None:
    if "--version" in sys.argv:
        print(VERSION)
        return
    while not (TOOLS / "facts.json").exists():
        time.sleep(0.01)
    facts = json.loads((TOOLS / "facts.json").read_text())
    Path("found.part").write_text(json.dumps(try_all(facts)))
    Path("found.part").rename("found.json")
    signal.pause()


if __name__ == "__main__":
    main()
