"""Digests of an image's files, noted beside them: what they hold, without reading gigabytes at every start.

A digest counts for the file that was read: another one in its place has none, nor has one that was written
to, until somebody reads it again. So a copy on another host has none at first, and then the same.
"""

import contextlib
import hashlib
import os
import stat
from pathlib import Path

import msgspec

from qemuspawner.errors import ImageError
from qemuspawner.machine import Image
from qemuspawner.paths import DIGESTS

_MAX_RECORD_BYTES = 1 << 20


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """Of one file: which one it was when it was read, and what it held."""

    inode: int
    size_bytes: int
    mtime_ns: int
    digest: str  # sha256:<hex>

    def is_of(self, status: os.stat_result) -> bool:
        return (self.inode, self.size_bytes, self.mtime_ns) == _which(status)


def image_files(image: Image) -> tuple[Path, ...]:
    names = (image.file, image.kernel, image.initrd, image.drivers)
    return tuple(Path(name) for name in names if name)


def find_digest(path: Path) -> str:
    """What the file holds, as it was read; "" where nobody has, or it has changed since.

    Raises OSError where it is missing.
    """
    known = _load(path.parent).get(path.name)
    return known.digest if known is not None and known.is_of(path.stat()) else ""


def read_digest(path: Path) -> str:
    """Read the whole file. Raises OSError."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def note_digest(path: Path, digest: str) -> None:
    """Write down what has just been read of the file. Raises OSError."""
    inode, size_bytes, mtime_ns = _which(path.stat())
    known = _Known(inode=inode, size_bytes=size_bytes, mtime_ns=mtime_ns, digest=digest)
    record = path.with_name(DIGESTS)
    draft = path.with_name(f".{DIGESTS}.draft")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(_load(path.parent) | {path.name: known})))
    draft.chmod(0o644)
    draft.replace(record)


def check_digest(path: Path) -> str:
    """Read the file, and write down what it holds; that.

    Raises:
        OSError: It cannot be read, or nothing can be written beside it.
        ImageError: It holds something else than when it was read the last time, though nobody has written to
            it as far as its file system tells.
    """
    before = find_digest(path)
    found = read_digest(path)
    if before and found != before:
        raise ImageError(
            f"{path.name} has changed: it had the digest {before}.",
            hint="Its date has not, so the disk or somebody on the host has changed it; replace it.",
        )
    if not before:
        note_digest(path, found)
    return found


def _which(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _load(folder: Path) -> dict[str, _Known]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        descriptor = os.open(folder / DIGESTS, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return msgspec.json.decode(file.read(_MAX_RECORD_BYTES), type=dict[str, _Known])
    return {}
