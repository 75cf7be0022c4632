"""A program that tries to get at sessions, again and again; as another account of the host it must not.

argv: the only attempts that it makes; none: all. It reads a line of JSON, `[root, port, supervisor]`, for
each session that it is to try from then on, and ends with its standard input. "round" is written whenever all
was tried once while QEMU ran; at the end how often each attempt ended how, as `{attempt: {result: count}}`,
where "got" is what must not be.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
_PIDFD_GETFD = 438


def _connect(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(path))
        return connection.recv(12)


def _get(port: int, path: str) -> int:
    """An answer that refuses is an error."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/user/alice/{path}", timeout=10) as answer:
        return int(answer.status)


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def _share(port: int) -> None:
    """Listen beside who has it. An error where nobody has, before and after: then it is anybody's."""
    _find(port)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
    _find(port)


def _find(port: int) -> None:
    socket.create_connection(("127.0.0.1", port)).close()


def _call(name: str, *arguments: int) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _trace(pid: int) -> int:
    result = _call("ptrace", _PTRACE_ATTACH, pid, 0, 0)
    _call("waitpid", pid, 0, 0)
    _call("ptrace", _PTRACE_DETACH, pid, 0, 0)
    return result


def _enter(pid: int, kind: str) -> None:
    """A namespace; by a child, as whoever is in goes out no more."""
    child = os.fork()
    if child == 0:
        try:
            with Path(f"/proc/{pid}/ns/{kind}").open() as namespace:
                _call("setns", namespace.fileno(), 0)
            os._exit(0)
        except OSError as exc:
            os._exit(exc.errno or 255)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OSError(code, kind)


def _take_descriptor(pid: int) -> int:
    """One of its open files, as a copy of ours."""
    descriptor = os.pidfd_open(pid)
    try:
        return _call("syscall", _PIDFD_GETFD, descriptor, 0, 0)
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _list(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _on_files(root: Path) -> Mapping[str, Callable[[], object]]:
    vm, sessions = root / "vm", root.parent
    return {
        "screen": lambda: _connect(root / "vnc"),
        "screen before it is moved": lambda: _connect(vm / "vnc"),
        "QMP": lambda: _connect(root / "qmp"),
        "QMP before it is moved": lambda: _connect(vm / "qmp"),
        "agent": lambda: _connect(root / "qga"),
        "list": lambda: _list(root),
        "list of QEMU's files": lambda: _list(vm),
        "disk": lambda: _read(vm / "disk-0.qcow2"),
        "specification": lambda: _read(root / "spec.json"),
        "lock": lambda: _open(root / "lock", os.O_RDWR),
        "link among QEMU's files": lambda: (vm / "screen.png").symlink_to("/etc/passwd"),
        "session of its own": lambda: (sessions / ("0" * 20)).mkdir(),
        "another name": lambda: root.rename(sessions / "another"),
        "other rights": lambda: root.chmod(0o777),
        "audit log": lambda: _list(sessions / f".audit-{root.stat().st_uid}"),
    }


def _on_port(port: int) -> Mapping[str, Callable[[], object]]:
    paths = ("api/status", "api/screenshot", "api/files?path=/", "api/events", "proxy/tool/", "websockify")
    return {
        **{f"/{path}": lambda path=path: _get(port, path) for path in paths},  # type: ignore[misc]
        "the port itself": lambda: _share(port),
    }


def _on_process(name: str, pid: int) -> Mapping[str, Callable[[], object]]:
    process = Path(f"/proc/{pid}")
    return {
        f"{name}'s environment": lambda: _read(process / "environ"),
        f"{name}'s memory": lambda: _open(process / "mem", os.O_RDWR),
        f"{name}'s files": lambda: _list(process / "root"),
        f"{name}'s folder": lambda: _list(process / "cwd"),
        f"{name}'s descriptors": lambda: _list(process / "fd"),
        f"one of {name}'s descriptors": lambda: _take_descriptor(pid),
        f"{name}'s account": lambda: _enter(pid, "user"),
        f"{name}'s network": lambda: _enter(pid, "net"),
        f"{name}'s mounts": lambda: _enter(pid, "mnt"),
        f"{name} traced": lambda: _trace(pid),
        f"{name}'s limits": lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
        f"{name}'s end": lambda: os.kill(pid, signal.SIGKILL),
        f"{name} standing still": lambda: os.kill(pid, signal.SIGSTOP),
    }


def _find_qemus(root: Path) -> Iterator[int]:
    """What everybody may read is what they were started with."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *words = (entry / "cmdline").read_text(errors="replace").split("\0")
            if Path(program).name.startswith("qemu-") and any(str(root) in word for word in words):
                yield int(entry.name)


def main() -> None:
    wanted = sys.argv[1:]
    ended: dict[str, Counter[str]] = defaultdict(Counter)
    root, port, supervisor = Path(), 0, 0
    # Who waits for a desktop is to have one.
    os.nice(10)
    while True:
        if not supervisor or select.select([0], [], [], 0)[0]:
            given = sys.stdin.readline()
            if not given:
                break
            path, port, supervisor = json.loads(given)
            root = Path(path)
        qemus = list(_find_qemus(root))
        attempts = {**_on_files(root), **_on_port(port), **_on_process("the session", supervisor)}
        for pid in qemus:
            attempts |= _on_process("QEMU", pid)
        for name in wanted or attempts:
            try:
                attempts[name]()
                result = "got"
            except OSError as exc:
                result = type(exc).__name__
            ended[name][result] += 1
        if qemus:
            print("round", flush=True)
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
