"""What an administrator does where a wall around QEMU does not stand."""

from collections.abc import Mapping

from qemuspawner.spec import Wall

_BUBBLEWRAP = "'bwrap' on the PATH does that: reinstall your distribution's (Debian: bubblewrap)."
_SHELL = "'sh' on the PATH does that by 'ulimit' before QEMU starts: let it be your distribution's."


def _namespace(kind: str) -> str:
    return (
        f"Allow it by 'sysctl user.max_{kind}_namespaces=15000', and in /etc/sysctl.d for good; "
        "a container that the hub runs in has to allow it, too."
    )


WHAT_TO_DO: Mapping[Wall, str] = {
    "seccomp": "Install your distribution's QEMU, which is built with seccomp, "
    "and boot a kernel with CONFIG_SECCOMP_FILTER.",
    "privileges": _BUBBLEWRAP,
    "capabilities": _BUBBLEWRAP,
    "core": _SHELL,
    "memory": _SHELL,
    "oom": "Let this account write /proc/self/oom_score_adj: a container of the hub's needs it writable.",
    "processes": _namespace("pid"),
    "files": _namespace("mnt"),
    "network": _namespace("net"),
    "ipc": _namespace("ipc"),
    "users": _namespace("user"),
}
