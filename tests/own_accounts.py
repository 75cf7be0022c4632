"""An account of a host that only a test's own processes know of."""

from pathlib import Path

_SHOW = (
    'for file in passwd shadow group; do mount --bind "$1/$file" "/etc/$file" || exit; done; shift; exec "$@"'
)


def knowing_account(folder: Path, *, name: str, uid: int, home: Path, password: str = "!") -> list[str]:
    """The beginning of a command that finds the account in its /etc; `folder` gets the files for that.

    `password` is a hash as /etc/shadow has it; "!" is none.
    """
    for file, line in (
        ("passwd", f"{name}:x:{uid}:{uid}::{home}:/bin/sh"),
        ("shadow", f"{name}:{password}:1::::::"),
        ("group", f"{name}:x:{uid}:"),
    ):
        (folder / file).write_text(Path("/etc", file).read_text() + line + "\n")
    return ["unshare", "--mount", "sh", "-c", _SHOW, "sh", str(folder)]
