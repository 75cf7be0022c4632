"""Small files that are there whole or not at all, and locks on folders."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in its place that every account may read; after a crash it is the old or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk keep which names there are in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A folder that sessions of any account can read, whatever our umask; existing ones stay as they are.

    It belongs to whom the folder above belongs to, who called us with sudo and may want to remove it.
    """
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # somebody else was quicker
            folder.chmod(0o755)
            owner = folder.parent.stat()
            os.chown(folder, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def locked_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock, against other processes and other threads of ours.

    Raises:
        BlockingIOError: Somebody holds it, and we do not `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
