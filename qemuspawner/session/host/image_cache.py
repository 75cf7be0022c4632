"""The host's own copies of files on storage that many hosts share: each fetched once, and used from there.

A copy is known by what it was made from: path, inode, size and moment of change, two of which it keeps.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import ImageError
from qemuspawner.machine import Machine
from qemuspawner.qemu.host import DISK_RESERVE_MIB
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)

Report = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True)
class ImageCache:
    """A folder of this account's, which nobody else may write to."""

    folder: Path

    @classmethod
    def within(cls, folder: str) -> "ImageCache | None":
        """This account's part of a folder that several may have; None where it cannot be had."""
        own = Path(folder) / str(os.geteuid())
        try:
            own.parent.mkdir(exist_ok=True)
            own.mkdir(mode=0o700, exist_ok=True)
            status = own.lstat()
        except OSError as exc:
            log.warning("Images are not copied to this host: %s", exc)
            return None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            log.warning("Images are not copied to this host: %s is somebody else's", own)
            return None
        return cls(folder=own)

    def localise(self, machine: Machine, report: Report) -> Machine:
        """The machine with its image here, or as it is where there is no room for that.

        Raises:
            ImageError: It is not the one that machine.toml names, or changes while it is read.
        """
        image = machine.image
        local = {
            "file": self.find(image.file, report, digest=image.digest),
            "kernel": self.find(image.kernel, report),
            "initrd": self.find(image.initrd, report),
        }
        return structs.replace(machine, image=structs.replace(image, **local))

    def find(self, name: str, report: Report, *, digest: str = "") -> str:
        """The copy of a file, made where it is missing. Raises ImageError as `localise` does."""
        if not name:
            return ""
        source = Path(name)
        try:
            status = source.stat()
            key = f"{source}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
            copy = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}-{source.name[-60:]}"
            with _locked(copy.with_name(f".{copy.name}.lock")):
                if not _is_copy(copy, status):
                    report(Text("Copying what the machine starts from to this host"), 10)
                    self._make_room(status.st_blocks * 512)
                    _copy(source, copy, digest=digest)
        except OSError as exc:
            log.warning("%s is used where it lies: %s", source, exc)
            return name
        return str(copy)

    def _make_room(self, needed: int) -> None:
        """Delete what was used least recently, as long as the disk would become full."""
        copies = sorted(
            (path for path in self.folder.glob("[!.]*") if path.is_file()),
            key=lambda path: _used_at(path.with_name(f".{path.name}.lock")),
        )
        for path in copies:
            status = os.statvfs(self.folder)
            if status.f_bavail * status.f_frsize >= needed + (DISK_RESERVE_MIB << 20):
                return
            # Who runs on it has it open.
            path.unlink(missing_ok=True)
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)


def _copy(source: Path, copy: Path, *, digest: str) -> None:
    draft_path = copy.with_name(f".{copy.name}.draft")
    # Of one that was interrupted by a power cut; nobody may write to it any more.
    draft_path.unlink(missing_ok=True)
    try:
        with source.open("rb") as file, draft_path.open("wb") as draft:
            before = os.fstat(file.fileno())
            found = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                # Holes stay holes.
                if chunk == _ZEROS[: len(chunk)]:
                    draft.seek(len(chunk), os.SEEK_CUR)
                else:
                    draft.write(chunk)
            draft.truncate()
            after = os.fstat(file.fileno())
            draft.flush()
            os.fchmod(draft.fileno(), 0o400)
            os.utime(draft.fileno(), ns=(after.st_mtime_ns, after.st_mtime_ns))
            os.fsync(draft.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ImageError(
                Text("The disk image '{name}' was changed while it was read.", name=source.name),
                hint=Text("Try again."),
            )
        if digest and digest != f"sha256:{found.hexdigest()}":
            raise ImageError(
                Text("The disk image '{name}' is not the one that machine.toml names.", name=source.name),
                hint=Text("Ask the administrator to build or fetch the machine's image again."),
            )
        draft_path.replace(copy)
    finally:
        draft_path.unlink(missing_ok=True)


def _is_copy(copy: Path, of: os.stat_result) -> bool:
    try:
        found = copy.lstat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (of.st_size, of.st_mtime_ns)


def _used_at(lock: Path) -> int:
    try:
        return lock.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Others wait meanwhile, and find what we have made. When it was used last is seen by this file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)
