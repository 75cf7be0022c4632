"""The walls around QEMU: it dies with its supervisor, is bounded, and sees nothing but its own files.

From outside in: `setpriv` (killed when the supervisor dies), `sh` (how large its files and its memory may
become, no core files, who goes first when memory runs out), `unshare` (a process-id namespace, so that
whatever is inside dies as one) and `bwrap` (bubblewrap: own file system, no network, no capabilities). QEMU's
seccomp filter (`-sandbox`) stands inside. All of it works without privileges. Whether they stand around a
QEMU that runs is for `walls` to see.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qemuspawner.errors import HostError
from qemuspawner.qemu.network import Outside
from qemuspawner.texts import Text

_TOOLS = ("setpriv", "unshare", "bwrap")

# The kernel takes the VM before the supervisor, and the supervisor before the hub.
OOM_SCORE = 500

# What QEMU may map beside the guest's memory and its CPUs' stacks, most of which it never touches: 350 MiB by
# emulation, the stacks of up to 64 threads for its disk, two screens of 256 MiB. QEMU 7.2 itself has no bound
# for what a guest says that it has copied: room is made for up to 4 GiB of that.
_BESIDE_MIB = 1536
_STACK_MIB = 8

# Far more than a QEMU with every device has open.
MAX_OPEN_FILES = 4096

# Between fork and the death signal's registration the supervisor may already be gone. A file that must not
# grow any more is an error of that write, which pauses the VM, and not the end of QEMU by SIGXFSZ. The shell
# does all of it itself: each program more takes milliseconds.
_IF_PARENT_LIVES = 'trap "" XFSZ; test "$PPID" = "$0"'
_GO_FIRST = f"echo {OOM_SCORE} > /proc/self/oom_score_adj"

# QEMU finds its firmware and its libraries there, whatever the distribution.
_FIRMWARE = ("qemu", "seabios", "ipxe", "ovmf", "OVMF", "edk2", "AAVMF", "qemu-efi-aarch64")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a QEMU may take for a guest of this size; whoever controls what runs in it cannot do more.

    It leaves no core file, which would hold the guest's memory.
    """

    memory_mib: int = 0  # the guest's
    cpus: int = 0
    file_mib: int | None = None  # how large its files may become

    def render(self) -> list[str]:
        """Each as a command of the shell; nothing but numbers of ours is in them."""
        data_mib = self.memory_mib + self.cpus * _STACK_MIB + _BESIDE_MIB
        commands = [
            "ulimit -c 0",
            f"ulimit -d {data_mib << 10}",
            # Of its threads, too: some sites have a limit of gigabytes.
            f"ulimit -S -s {_STACK_MIB << 10}",
            f"ulimit -n {MAX_OPEN_FILES}",
        ]
        # In blocks of 512 bytes.
        return commands if self.file_mib is None else [*commands, f"ulimit -f {self.file_mib << 11}"]


def tie_to_parent(
    command: Sequence[str],
    *,
    parent_pid: int,
    account: pwd.struct_passwd | None = None,
    limits: Limits | None = None,
) -> list[str]:
    """`command`, killed by the kernel as soon as its parent dies; with root's rights given up for `account`.

    The parent must start it from its main thread: the signal is sent when that thread ends.
    """
    become: tuple[str, ...] = ()
    if account is not None:
        # In the same call: a change of the account clears the death signal, which setpriv sets last.
        become = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups")
    steps = [_IF_PARENT_LIVES, _GO_FIRST, *(limits.render() if limits else ()), 'exec "$@"']
    return [
        *("setpriv", *become, "--pdeathsig", "KILL", "--"),
        *("sh", "-c", " && ".join(steps), str(parent_pid)),
        *command,
    ]


def in_jail(
    command: Sequence[str],
    *,
    work_dir: Path,
    files: Sequence[Path],
    kvm: bool,
    devices: Sequence[Path] = (),
    outside: Outside | None = None,
    resolv_conf: Path | None = None,
    folders: Sequence[str] = (),
) -> list[str]:
    """`command` in its own namespaces, in `work_dir`, the only place it may write to.

    It may use `devices`, and read `files`, the program that `command` begins with (an absolute path) and what
    QEMU needs to run: libraries and firmware, at their usual paths. There is no other program, and no shell.
    Its network leads nowhere, or to what `outside` lets pass; it finds `resolv_conf` at the usual path then.
    `folders` are bubblewrap's options for folders of the host that it serves.
    """
    program = Path(command[0])
    binds: list[str] = []
    for path in files:
        binds += ["--ro-bind", str(path), str(path)]
    for node in (*([Path("/dev/kvm")] if kvm else []), *devices):
        binds += ["--dev-bind", str(node), str(node)]
    if resolv_conf is not None:
        binds += ["--ro-bind", str(resolv_conf), "/etc/resolv.conf"]
    # Behind `outside` it has no rights either: its user namespace is another one than its network's.
    network = ["--unshare-net"] if outside is None else ["--unshare-user"]
    walled = [
        *("bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", *network),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        # One heap for all of QEMU's threads: each further one of glibc's keeps megabytes for nothing.
        *("--setenv", "MALLOC_ARENA_MAX", "1"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108 - the jail's own
        *_support_files(program),
        *("--ro-bind", str(program), str(program)),
        *("--bind", str(work_dir), str(work_dir)),
        *binds,
        *folders,
        *("--chdir", str(work_dir), "--"),
        *command,
    ]
    return [
        *("unshare", "--map-current-user", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
        *(walled if outside is None else outside.enter(walled)),
    ]


def _support_files(program: Path) -> list[str]:
    """Bubblewrap's options for what a program of QEMU's needs, where the host has it."""
    prefixes = dict.fromkeys([Path("/usr"), program.parent.parent])
    folders = [prefix / name for prefix in prefixes for name in ("lib", "lib64")]
    folders += [prefix / "share" / name for prefix in prefixes for name in _FIRMWARE]
    folders += [Path("/etc/ld.so.cache"), Path("/etc/alternatives")]
    binds = ["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    for folder in folders:
        binds += ["--ro-bind-try", str(folder), str(folder)]
    return binds


@cache
def check_jail(account: pwd.struct_passwd | None = None) -> None:
    """Raise HostError where these walls cannot be built on this host, by building them once."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise HostError(
            Text("The jail around QEMU needs {programs}.", programs=" and ".join(missing)),
            hint=Text("Install bubblewrap and util-linux, or set jail = False where every user is trusted."),
        )
    inside = in_jail(
        [shutil.which("true") or "/usr/bin/true"], work_dir=Path("/usr/lib"), files=(), kvm=False
    )
    command = tie_to_parent(inside, parent_pid=os.getpid(), account=account, limits=Limits())
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10)
    if done.returncode != 0:
        words = done.stderr.strip() or Text("exit code {code}", code=done.returncode)
        raise HostError(
            Text("The jail around QEMU cannot be built on this host: {words}.", words=words),
            hint=Text("Allow unprivileged user namespaces, or set jail = False where every user is trusted."),
        )
