"""virtiofsd: one process for each folder, which serves it to QEMU over a socket.

It runs unprivileged, in a jail with nothing but its folder, where the session's account has the number of
the guest's user. QEMU itself sees nothing of the folder.
"""

import contextlib
import errno
import os
import socket
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qemuspawner.errors import HostError, VmError
from qemuspawner.qemu.folders import Ids, OpenFolder, bind_folders, folder_place
from qemuspawner.qemu.jail import tie_to_parent
from qemuspawner.spec import Folder
from qemuspawner.texts import Text

# Debian 13 and Fedora have the one that is written in Rust, Debian 12 has QEMU's former one.
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
_THREADS = 8
_TIMEOUT_S = 5

# QEMU's own gives up all groups at its start, which no program without privileges can. It is told that it
# did: the groups of the account are what its folders are read with. Source: linux/seccomp.h, linux/audit.h
_SETGROUPS = {"x86_64": (0xC000003E, 116), "aarch64": (0xC00000B7, 159)}
_RET_ERRNO_0, _RET_ALLOW = 0x00050000, 0x7FFF0000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_AT_NUMBER, _AT_ARCHITECTURE = 0, 4
# What it then takes from itself: all but the right to shut itself in.
_WITHOUT_CAPABILITIES = "-chown:-dac_override:-fowner:-fsetid:-setgid:-setuid:-mknod:-setfcap"

_GET_FEATURES = struct.pack("=III", 1, 1, 0)  # a vhost-user message: request, version, no payload


@dataclass(frozen=True, kw_only=True)
class Virtiofsd:
    """The program of this host."""

    program: Path
    is_of_qemu: bool  # as it was up to QEMU 7.2


@dataclass(frozen=True, kw_only=True)
class FolderServer:
    """One that runs; `connection` is for QEMU."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket

    def stop(self) -> None:
        """End it at once, also where it hangs."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


def find_virtiofsd() -> Virtiofsd:
    """Raises HostError where there is none, or it does not run here."""
    for place in _PLACES:
        if os.access(place, os.X_OK):
            return _look_at(Path(place))
    raise HostError(Text("this host has no virtiofsd"))


@cache
def _look_at(program: Path) -> Virtiofsd:
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S
    )
    # QEMU's wants to give up its groups before it says even that.
    is_of_qemu = told.returncode != 0 or "FUSE kernel" in told.stdout
    found = Virtiofsd(program=program, is_of_qemu=is_of_qemu)
    with tempfile.TemporaryDirectory(prefix="qemuspawner-") as folder:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _check(found, descriptor, Path(folder) / "socket")
        except (OSError, VmError) as exc:
            raise HostError(Text("this host's virtiofsd does not run without privileges")) from exc
        finally:
            os.close(descriptor)
    return found


def _check(virtiofsd: Virtiofsd, descriptor: int, socket_path: Path) -> None:
    """Raises OSError where it does not answer as QEMU would ask it."""
    nothing = OpenFolder(folder=Folder(name="", path="", mount=""), descriptor=descriptor)
    # A guest's user is never root, and it runs otherwise where it takes itself for that.
    server = start_server(virtiofsd, nothing, Ids(uid=1, gid=1), socket_path)
    try:
        server.connection.settimeout(_TIMEOUT_S)
        server.connection.sendall(_GET_FEATURES)
        # It says that from within all walls; a word is enough.
        if not server.connection.recv(1):
            raise OSError("virtiofsd hung up")
    finally:
        server.stop()


def start_server(virtiofsd: Virtiofsd, opened: OpenFolder, ids: Ids, socket_path: Path) -> FolderServer:
    """Serve a folder; must be called from the main thread, as it ends with that.

    Its socket is at `socket_path` for a moment, in a folder of ours alone.

    Raises:
        VmError: It could not be started.
    """
    connection = socket.socket(socket.AF_UNIX)
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            listener.bind(str(socket_path))
            stack.callback(socket_path.unlink)
            listener.listen(1)
            connection.connect(str(socket_path))
            passed = [opened.descriptor, listener.fileno()]
            walls: list[str] = []
            if virtiofsd.is_of_qemu:
                passed.append(_make_filter())
                stack.callback(os.close, passed[-1])
                # It shuts itself in its folder.
                walls += ["--cap-add", "CAP_SYS_CHROOT", "--cap-add", "CAP_SETPCAP"]
                walls += ["--seccomp", str(passed[-1])]
                # With a ninth thread glibc would ask how many processors there are (sched_getaffinity(2)),
                # for which its own filter kills it, in the midst of a user's files.
                walls += ["--setenv", "MALLOC_ARENA_MAX", "4"]
            command = [*_jail(opened, ids), *walls, "--", *_command(virtiofsd, listener.fileno())]
            process = subprocess.Popen(
                tie_to_parent(command, parent_pid=os.getpid()),
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # What a guest makes it say has no end.
                stderr=subprocess.DEVNULL,
                pass_fds=passed,
                start_new_session=True,
            )
        except OSError as exc:
            raise VmError(Text("virtiofsd could not be started: {strerror}.", strerror=exc.strerror)) from exc
        return FolderServer(process=process, connection=connection.dup())


def _jail(opened: OpenFolder, ids: Ids) -> list[str]:
    """The walls around it; what is inside them, and the program, come behind."""
    return [
        *("unshare", "--map-current-user", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
        *("bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        # Rust's looks for its process's limits and descriptors there.
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108 - the jail's own
        *bind_folders([opened], ids),
        *("--chdir", "/"),
    ]


def _command(virtiofsd: Virtiofsd, listener: int) -> list[str]:
    common = [str(virtiofsd.program), f"--fd={listener}", f"--thread-pool-size={_THREADS}"]
    if virtiofsd.is_of_qemu:
        options = f"source={folder_place(0)},sandbox=chroot,modcaps={_WITHOUT_CAPABILITIES}"
        return [*common, "--rlimit-nofile=0", "-o", options]
    return [*common, "--rlimit-nofile=0", "--sandbox=none", f"--shared-dir={folder_place(0)}"]


def _make_filter() -> int:
    """The descriptor of a seccomp program that answers setgroups(2) with success, and lets all else pass.

    Raises:
        OSError: This kind of processor is not known here.
    """
    machine = os.uname().machine
    if machine not in _SETGROUPS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    architecture, number = _SETGROUPS[machine]
    program = [
        (_LOAD, 0, 0, _AT_ARCHITECTURE),
        (_IF_EQUAL, 0, 3, architecture),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_IF_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _RET_ERRNO_0),
        (_RETURN, 0, 0, _RET_ALLOW),
    ]
    descriptor = os.memfd_create("qemuspawner-filter", os.MFD_CLOEXEC)
    os.write(descriptor, b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
