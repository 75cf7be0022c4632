"""The texts that a machine.toml had: a file each, with who changed it and when in its first line."""

import hashlib
import json
import re
import time
from pathlib import Path

import msgspec

from qemuspawner.errors import CatalogueError
from qemuspawner.machines.writing import replace_file
from qemuspawner.texts import Text

_FOLDER = ".history"
_NAME = re.compile(r"([0-9]{6})\.toml", re.ASCII)
# The oldest go first.
_KEEP = 50
_MAX_FIRST_LINE = 4096


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One of the texts."""

    number: int = 0
    at: float  # Unix seconds
    by: str  # who made it so; "" where it was found so
    what: str  # what they did, such as "hide"
    digest: str


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def list_versions(folder: Path) -> list[Version]:
    """Those of the machine in `folder`, the newest first."""
    found = []
    for number, path in _paths(folder):
        try:
            with path.open("rb") as file:
                line = file.readline(_MAX_FIRST_LINE)
            found.append(msgspec.structs.replace(msgspec.json.decode(line[2:], type=Version), number=number))
        except (OSError, msgspec.DecodeError):
            continue
    return found


def load_version(folder: Path, number: int) -> str:
    """The text.

    Raises:
        CatalogueError: There is none of this number.
    """
    try:
        content = (folder / _FOLDER / f"{number:06}.toml").read_text()
    except OSError as exc:
        raise CatalogueError(
            "missing", Text("'{machine}' has no version {number}.", machine=folder.name, number=number)
        ) from exc
    return content.partition("\n")[2]


def add_version(folder: Path, text: str, *, by: str, what: str) -> None:
    """Note a text before it is put in place; raises OSError."""
    (folder / _FOLDER).mkdir(mode=0o755, exist_ok=True)
    paths = _paths(folder)
    about = {"at": round(time.time(), 3), "by": by, "what": what, "digest": digest_of(text)}
    # As JSON, it is one line whatever somebody's name holds.
    content = f"# {json.dumps(about)}\n{text}"
    number = paths[0][0] + 1 if paths else 1
    replace_file(folder / _FOLDER / f"{number:06}.toml", content.encode())
    for _, path in paths[_KEEP - 1 :]:
        path.unlink(missing_ok=True)


def _paths(folder: Path) -> list[tuple[int, Path]]:
    try:
        entries = list((folder / _FOLDER).iterdir())
    except OSError:
        return []
    found = [(int(match[1]), path) for path in entries if (match := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)
