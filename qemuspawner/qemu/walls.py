"""Which walls stand around a QEMU that runs, as the kernel sees it: a command line is no proof.

Looked at before the guest runs its first instruction. All of it is in the files of /proc of QEMU's process,
which its own account may read. Source: proc(5), namespaces(7), capabilities(7).
"""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from qemuspawner.errors import HostError, VmError
from qemuspawner.qemu.command import SANDBOX
from qemuspawner.qemu.host import Qemu
from qemuspawner.qemu.jail import OOM_SCORE, Limits, in_jail, tie_to_parent
from qemuspawner.qemu.process import connect_socket, end_qemu, find_listener, start_qemu
from qemuspawner.spec import Wall
from qemuspawner.texts import Text

# Around every QEMU, and those that the jail adds.
ALWAYS: tuple[Wall, ...] = ("seccomp", "privileges", "core", "oom", "memory")
JAIL: tuple[Wall, ...] = ("capabilities", "processes", "files", "network", "ipc", "users")

# What each of them keeps from QEMU, or keeps it from.
MEANINGS: Mapping[Wall, str] = {
    "seccomp": "system call that it does not need",
    "privileges": "way to gain privileges by another program",
    "core": "file of the guest's memory after a crash",
    "oom": "memory that the hub needs when there is little",
    "memory": "memory of the host beyond its guest's and 1.5 GiB",
    "capabilities": "right of an administrator",
    "processes": "process of the host",
    "files": "file but its own",
    "network": "network of the host",
    "ipc": "shared memory of other programs",
    "users": "account of the host but its own",
}

_NAMESPACES: Mapping[Wall, str] = {
    "processes": "pid",
    "files": "mnt",
    "network": "net",
    "ipc": "ipc",
    "users": "user",
}

_TRY_TIMEOUT_S = 5


def check_walls(pid: int, *, jail: bool) -> tuple[Wall, ...]:
    """The walls around the QEMU that is process `pid`.

    Raises:
        VmError: One that has to be there is not.
    """
    standing = find_walls(pid)
    needed = (*ALWAYS, *JAIL) if jail else ALWAYS
    missing = [wall for wall in needed if wall not in standing]
    if missing:
        raise VmError(
            Text("QEMU runs without walls that it must have: {walls}.", walls=", ".join(missing)),
            hint=Text("It was ended before the guest ran. The administrator calls 'qemuspawner doctor'."),
        )
    return standing


def find_walls(pid: int) -> tuple[Wall, ...]:
    """The walls around process `pid`; none where it has ended or may not be looked at."""
    process = Path("/proc") / str(pid)
    try:
        standing = _find_in_status((process / "status").read_text(errors="replace"))
        standing |= _find_in_limits((process / "limits").read_text())
        if int((process / "oom_score_adj").read_text()) >= OOM_SCORE:
            standing.add("oom")
        for wall, name in _NAMESPACES.items():
            if (process / "ns" / name).readlink() != Path("/proc/self/ns", name).readlink():
                standing.add(wall)
        if os.path.samestat((process / "root").stat(), Path("/").stat()):
            standing.discard("files")
    except (OSError, ValueError):
        return ()
    return tuple(wall for wall in (*ALWAYS, *JAIL) if wall in standing)


def _find_in_status(status: str) -> set[Wall]:
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    standing: set[Wall] = set()
    if facts["Seccomp"].strip() == "2":
        standing.add("seccomp")
    if facts["NoNewPrivs"].strip() == "1":
        standing.add("privileges")
    # The bounding set is what programs could gain, and no program gains anything: see "privileges".
    if not any(int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")):
        standing.add("capabilities")
    return standing


def _find_in_limits(limits: str) -> set[Wall]:
    # "Max core file size  0  0  bytes": soft and hard.
    hard = {name.strip(): words.split()[1] for name, words in map(_split_limit, limits.splitlines()[1:])}
    standing: set[Wall] = set()
    if hard["Max core file size"] == "0":
        standing.add("core")
    if hard["Max data size"] != "unlimited":
        standing.add("memory")
    return standing


def _split_limit(line: str) -> tuple[str, str]:
    """Its name, and the rest of the line; the kernel writes it in columns."""
    return line[:26], line[26:]


def try_walls(qemu: Qemu) -> tuple[Wall, ...]:
    """The walls that stand on this host around a QEMU without a guest, which is started to see it.

    Raises:
        HostError: It does not start in the jail.
    """
    with tempfile.TemporaryDirectory(prefix="qemuspawner-walls-") as folder:
        work_dir = Path(folder)
        command = in_jail(
            [
                *(str(qemu.program), "-nodefaults", "-no-user-config", "-sandbox", SANDBOX),
                *("-machine", "none", "-display", "none", "-S", "-qmp", "unix:qmp,server=on,wait=off"),
            ],
            work_dir=work_dir,
            files=(),
            kvm=False,
        )
        try:
            process = start_qemu(
                tie_to_parent(command, parent_pid=os.getpid(), limits=Limits()), work_dir=work_dir
            )
        except VmError as exc:
            raise HostError(exc.message, hint=exc.hint) from exc
        try:
            return find_walls(_wait_for_listener(process, work_dir / "qmp"))
        finally:
            end_qemu(process)


def _wait_for_listener(process: "subprocess.Popen[bytes]", path: Path) -> int:
    until = time.monotonic() + _TRY_TIMEOUT_S
    while time.monotonic() < until and process.poll() is None:
        # bind() makes the file before listen() accepts: a refused connection means "not yet".
        with (
            contextlib.suppress(FileNotFoundError, ConnectionRefusedError),
            connect_socket(path) as connection,
        ):
            return find_listener(connection)
        time.sleep(0.01)
    words = b""
    if process.poll() is not None and process.stderr is not None:
        words = process.stderr.read(2000)
    raise HostError(
        Text(
            "QEMU does not start in its jail: {words}",
            words=words.decode(errors="replace").strip()
            or Text("no answer within {timeout_s} s.", timeout_s=_TRY_TIMEOUT_S),
        )
    )
