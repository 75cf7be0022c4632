"""What differs between a machine's image and a desktop that began from it: packages and files.

It helps somebody who decides whether others may start that desktop, and proves nothing: who is root in a
desktop can hide what they changed.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from qemuspawner.errors import ImageError
from qemuspawner.machines.ext4 import Ext4, Node, find_root
from qemuspawner.texts import Sentence

_STATUS = "/var/lib/dpkg/status"
_MAX_STATUS_BYTES = 64 << 20
_MAX_PACKAGES = 2000
_MAX_FOLDERS = 100
_MAX_NAMED = 100  # of a folder's files, of each kind
_MAX_NAMED_AT_ALL = 3000
_MAX_TEXT = 200
# In their place, what lies in folders that are too many.
_OTHERS = "/..."


class PackageChange(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    before: str  # its version; "": it was not installed
    after: str  # "": it is not any more


class FolderChange(msgspec.Struct, frozen=True, kw_only=True):
    """What differs below one folder of the root."""

    path: str
    added: int
    changed: int
    removed: int
    files: tuple[str, ...]  # some of them: "+ /etc/motd", "~ /etc/passwd", "- /etc/issue"


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    unknown: Sentence = ""  # why nothing is known
    packages: tuple[PackageChange, ...] = ()  # at most 2000
    folders: tuple[FolderChange, ...] = ()


def compare(before: Path, after: Path) -> Changes:
    """Two raw disks; one that cannot be read is no error, as people may publish any system."""
    with before.open("rb") as old, after.open("rb") as new:
        try:
            was, now = find_root(old.fileno()), find_root(new.fileno())
            return Changes(
                packages=tuple(_compare_packages(_packages(was), _packages(now))),
                folders=tuple(_compare_files(dict(was.walk()), now)),
            )
        except ImageError as exc:
            return Changes(unknown=exc.message)


def _packages(system: Ext4) -> dict[str, str]:
    """What dpkg says to be installed; nothing where there is no dpkg."""
    node = system.find(_STATUS)
    if node is None or not stat.S_ISREG(node.mode):
        return {}
    found = {}
    for stanza in system.read(node, max_bytes=_MAX_STATUS_BYTES).decode(errors="replace").split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").endswith(" installed"):
            found[fields.get("Package", "")[:_MAX_TEXT]] = fields.get("Version", "")[:_MAX_TEXT]
    return found


def _compare_packages(before: dict[str, str], after: dict[str, str]) -> Iterator[PackageChange]:
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    for name in names[:_MAX_PACKAGES]:
        yield PackageChange(name=name, before=before.get(name, ""), after=after.get(name, ""))


def _compare_files(before: dict[bytes, Node], now: Ext4) -> list[FolderChange]:
    kinds: dict[str, dict[str, list[str]]] = {}

    def note(kind: str, path: bytes) -> None:
        # Of a hostile guest: no terminal and no page shall take a name for more than that.
        text = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in os.fsdecode(path))
        top = "/" + text.split("/")[1][:_MAX_TEXT]
        if top not in kinds and len(kinds) >= _MAX_FOLDERS:
            top = _OTHERS
        kinds.setdefault(top, {"+": [], "~": [], "-": []})[kind].append(text[:_MAX_TEXT])

    for path, node in now.walk():
        old = before.pop(path, None)
        if old is None:
            note("+", path)
        elif _said(old) != _said(node):
            note("~", path)
    for path in before:
        note("-", path)
    folders, left = [], _MAX_NAMED_AT_ALL
    for top, found in sorted(kinds.items()):
        folders.append(_folder(top, found, most=left))
        left -= len(folders[-1].files)
    return folders


def _said(node: Node) -> tuple[int, ...]:
    """What changes with a file; a folder's moments change with each file in it."""
    if stat.S_ISDIR(node.mode):
        return node.mode, node.owner, node.group
    return node.mode, node.owner, node.group, node.size, node.changed, node.touched


def _folder(top: str, found: dict[str, list[str]], *, most: int) -> FolderChange:
    named = [f"{kind} {path}" for kind, paths in found.items() for path in sorted(paths)[:_MAX_NAMED]]
    return FolderChange(
        path=top,
        added=len(found["+"]),
        changed=len(found["~"]),
        removed=len(found["-"]),
        files=tuple(named[:most]),
    )
