"""What is kept of a user's desktops while they do not run: found and deleted from the hub.

The folders are the sessions' account's and the hub may be root: nothing is deleted through a link, and
nothing that is found there is trusted.
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.locks import find_holder, try_lock
from qemuspawner.paths import SAVED_FILE, SavedPaths, SessionPaths, StatePaths, session_id
from qemuspawner.saved import Saved, list_of_user, list_saved, load_saved

log = logging.getLogger(__name__)

# As sessions name the folders.
NAME = re.compile(r"[0-9a-f]{6,20}", re.ASCII)

_SWEEP_EVERY_S = 3600
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE_BYTES = 2 * 1024 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# The hub deletes in threads, and a lock ends when its process closes any descriptor of the file: while this
# process holds the lock of a session, nothing else in it may open that.
_one_deletion = threading.Lock()
_locked: set[Path] = set()
_guards_locked = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of one server; nothing, by default."""

    session_id: str = ""
    server_name: str = ""
    suspended: Saved | None = None
    checkpoints: tuple[Saved, ...] = ()  # the newest first

    def __bool__(self) -> bool:
        return self.suspended is not None or bool(self.checkpoints)

    @property
    def saved(self) -> tuple[Saved, ...]:
        return (*([self.suspended] if self.suspended else ()), *self.checkpoints)

    def find_checkpoint(self, name: object) -> Saved | None:
        return next((saved for saved in self.checkpoints if saved.name == name), None)


NOTHING = Kept()


def load_kept(state: StatePaths, *, user: str, server_name: str) -> Kept:
    """What is kept of this server, as far as this account may look."""
    found = session_id(user, server_name)
    saved = list_saved(state.session(found).saved)
    return _sorted(found, server_name, [one for one in saved if one.spec and one.spec.user == user])


def list_kept(state: StatePaths, user: str) -> list[Kept]:
    """All that is kept of the user's servers, also of those that the hub has forgotten, by their names."""
    found = [
        _sorted(paths.root.name, name, saved)
        for paths, saved in list_of_user(state, user)
        for name in {one.spec.server_name for one in saved if one.spec}
        if session_id(user, name) == paths.root.name
    ]
    return sorted(filter(None, found), key=lambda kept: kept.server_name)


def _sorted(found: str, server_name: str, saved: Iterable[Saved]) -> Kept:
    # What has expired is deleted at the session's next start, whatever that asks for.
    lasting = [one for one in saved if NAME.fullmatch(one.name) and not is_expired(one)]
    return Kept(
        session_id=found,
        server_name=server_name,
        suspended=next((one for one in lasting if one.kind == "suspended"), None),
        checkpoints=tuple(one for one in lasting if one.kind == "checkpoint"),
    )


def is_expired(saved: Saved) -> bool:
    return 0 < saved.expires < time.time()


def load_picture(paths: SessionPaths, name: str) -> bytes:
    """The screen of a saved VM, a PNG; empty where there is none, or it is too large for a page."""
    try:
        owner = paths.root.lstat().st_uid
        descriptor = os.open(
            SavedPaths(root=paths.saved / name).picture,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
        )
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            # A folder on the way may be a link; what it leads to is shown only where it is the session's own.
            if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
                return b""
            picture = file.read(_MAX_PICTURE_BYTES + 1)
    except OSError:
        return b""
    return picture if picture.startswith(_PNG) and len(picture) <= _MAX_PICTURE_BYTES else b""


def find_owner(paths: SessionPaths) -> int | None:
    """Whose session it is; see `find_holder`. Nobody's, while this process deletes what is kept of it."""
    with _guards_locked:
        return None if paths.lock in _locked else find_holder(paths.lock)


# Deleting


def delete_kept(paths: SessionPaths, *, name: str = "") -> bool:
    """Delete what is saved of a session that does not run, or the one of this name; False where it runs."""
    return _delete(paths, lambda entry, _saved: not name or entry == name)


def delete_all(state: StatePaths, user: str) -> list[str]:
    """Delete everything that is kept of this user, of whatever server; the sessions where it cannot be."""
    return [
        paths.root.name
        for paths, saved in list_of_user(state, user)
        if any(one.spec and session_id(user, one.spec.server_name) == paths.root.name for one in saved)
        and not delete_kept(paths)
    ]


def sweep_expired(state: StatePaths) -> int:
    """Delete what has been kept for long enough, of all sessions that do not run; of how many."""
    swept = 0
    try:
        roots = [root for root in state.sessions.iterdir() if not root.name.startswith(".")]
    except OSError:
        return 0
    for root in roots:
        paths = SessionPaths(root=root)
        # Most have nothing, and are left alone.
        if any(is_expired(saved) for saved in list_saved(paths.saved)):
            swept += _delete(paths, lambda _entry, saved: saved is None or is_expired(saved))
    if swept:
        log.info("Deleted what was kept of %s sessions and has expired.", swept)
    return swept


class Sweeper:
    """Sweeps in a thread, at most once an hour, when somebody looks at what is kept."""

    def __init__(self) -> None:
        self._next = 0.0

    def sweep(self, state: StatePaths) -> None:
        """Begin, where it is time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SWEEP_EVERY_S
        threading.Thread(target=self._run, args=(state,), name="sweep", daemon=True).start()

    def _run(self, state: StatePaths) -> None:
        try:
            sweep_expired(state)
        except Exception:
            log.exception("What has expired cannot be deleted")


def _delete(paths: SessionPaths, chosen: Callable[[str, Saved | None], bool]) -> bool:
    """Delete the chosen folders below `saved/`; False where the session runs, or cannot be looked into."""
    try:
        root = os.open(paths.root, _FOLDER)
    except OSError:
        return False
    try:
        with _shared_lock(paths, root) as is_ours:
            if is_ours:
                _delete_in(root, paths, chosen)
            return is_ours
    finally:
        os.close(root)


@contextlib.contextmanager
def _shared_lock(paths: SessionPaths, root: int) -> Iterator[bool]:
    """Hold the lock of the session with the directory `root`, where nobody does who runs it.

    Shared: whoever starts this session meanwhile waits, and does not take us for its owner.
    """
    with _one_deletion:
        with _guards_locked:
            lock = _try_to_lock(paths.lock.name, root)
            if lock is not None:
                _locked.add(paths.lock)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                with _guards_locked:
                    _locked.discard(paths.lock)
                    os.close(lock)


def _try_to_lock(name: str, root: int) -> int | None:
    """The descriptor with the lock on it."""
    try:
        # No link is followed and no pipe waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=root)
    except OSError:
        return None
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and try_lock(descriptor, shared=True):
            return descriptor
    except OSError as exc:
        log.warning("%s cannot be locked: %s", name, exc.strerror)
    os.close(descriptor)
    return None


def _delete_in(root: int, paths: SessionPaths, chosen: Callable[[str, Saved | None], bool]) -> None:
    """Delete in the session's directory `root`, and that too where nothing is left; its lock is ours."""
    try:
        folder = os.open(paths.saved.name, _FOLDER, dir_fd=root)
    except OSError:
        return
    try:
        for entry in os.listdir(folder):  # noqa: PTH208
            if chosen(entry, load_saved(Path(f"/proc/self/fd/{folder}/{entry}"))):
                _delete_one(folder, entry)
    finally:
        os.close(folder)
    try:
        os.rmdir(paths.saved.name, dir_fd=root)
        if os.listdir(root) == [paths.lock.name]:
            os.unlink(paths.lock.name, dir_fd=root)
            paths.root.rmdir()
    except OSError:
        pass  # something is kept


def _delete_one(folder: int, entry: str) -> None:
    """The manifest first, so that what is left after a crash is a draft."""
    try:
        inner = os.open(entry, _FOLDER, dir_fd=folder)
    except OSError:
        return
    try:
        os.unlink(SAVED_FILE, dir_fd=inner)
    except OSError:
        pass
    finally:
        os.close(inner)
    shutil.rmtree(entry, ignore_errors=True, dir_fd=folder)
