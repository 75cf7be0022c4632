"""A session is a directory and a lock: made at the start, deleted at the end, swept after a crash.

What was saved of a session stays: its directory is then left with `saved/` and the lock alone.
"""

import contextlib
import logging
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import SessionError
from qemuspawner.locks import find_holder, try_lock
from qemuspawner.paths import MAX_SOCKET_PATH, QMP_SOCKET, SessionPaths, StatePaths
from qemuspawner.qemu.process import kill_orphan
from qemuspawner.saved import delete_expired
from qemuspawner.session.host.lease import (
    Lease,
    ask_for,
    find_host,
    is_forgotten,
    revoke,
    still_held,
    take_over,
)
from qemuspawner.session.host.salvage import keep_left
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# A predecessor that the hub has lost may shut its guest down, or save gigabytes of it, then it is killed.
_TERMINATE_S = 310
_KILL_S = 5
_NOT_GIVEN_BACK = Text("This desktop's former session cannot be ended.")


@contextlib.contextmanager
def claim(state: StatePaths, session_id: str, *, lease: Lease | None = None) -> Iterator[SessionPaths]:
    """Make the session's directory, hold its lock, and delete at the end what is not to be kept.

    A process that still holds it is a session that the hub no longer knows: it is ended first, or asked to
    end where it is on another host. A `lease` is for directories that other hosts have too: it is taken here,
    and what another start has taken over meanwhile is left alone at the end.

    Raises:
        SessionError: The directory cannot be made, belongs to somebody else, or is not given back.
    """
    paths = state.session(session_id)
    if len(os.fsencode(paths.agent_socket)) > MAX_SOCKET_PATH:
        raise SessionError(
            Text(
                "The state folder's path is too long for a unix socket of {max_socket_path} bytes.",
                max_socket_path=MAX_SOCKET_PATH,
            ),
            hint=Text("The administrator sets a shorter state_dir."),
        )
    descriptor = _lock_directory(paths)
    try:
        take_over(paths.root, patience_s=_TERMINATE_S)
        try:
            # What a killed predecessor left.
            _kill_orphans(paths)
            keep_left(paths)
            _delete_run(paths)
            delete_expired(paths)
            if lease is not None:
                lease.take()
            paths.vm.mkdir(mode=0o700)
            yield paths
        finally:
            if lease is None or lease.release():
                _delete_session(paths)
    finally:
        os.close(descriptor)


def _lock_directory(paths: SessionPaths) -> int:
    """Make and lock the directory; the lock file's descriptor."""
    terminate_at = kill_at = 0.0
    while True:
        descriptor = _open_lock(paths)
        if try_lock(descriptor):
            # Its last owner may have deleted the directory while we waited for the lock.
            with contextlib.suppress(FileNotFoundError):
                if paths.lock.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        time.sleep(0.1)
        holder = find_holder(paths.lock)
        now = time.monotonic()
        host = find_host(paths.root)
        if host:
            # Whose process it is there, only that host knows.
            ask_for(paths.root)
        if host or holder is None or holder <= 0:
            # Gone by now, being swept, or not to be named from here.
            if not kill_at:
                kill_at = now + _TERMINATE_S
            elif now > kill_at + _KILL_S:
                if host:
                    raise still_held(host)
                raise SessionError(_NOT_GIVEN_BACK, hint=Text("Tell the administrator, or wait."))
            continue
        if not terminate_at:
            log.warning("Session %s is still held by process %s; it is ended.", paths.root.name, holder)
            terminate_at, kill_at = now, now + _TERMINATE_S
            _signal(holder, signal.SIGTERM)
        elif now > kill_at + _KILL_S:
            raise SessionError(_NOT_GIVEN_BACK, hint=Text("Tell the administrator, or wait."))
        elif now > kill_at:
            _signal(holder, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _open_lock(paths: SessionPaths) -> int:
    while True:
        try:
            paths.root.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError as exc:
            raise SessionError(
                Text("The session's directory cannot be made: {strerror}.", strerror=exc.strerror),
                hint=Text("The administrator checks who owns the state folder, and its disk."),
            ) from exc
        try:
            status = paths.root.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise SessionError(Text("The session's directory belongs to somebody else."))
            return os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue  # deleted by its last owner just now
        except OSError as exc:
            raise SessionError(
                Text("The session cannot be locked: {strerror}.", strerror=exc.strerror)
            ) from exc


def sweep(state: StatePaths, *, own_id: str) -> int:
    """Delete the directories of this account's dead sessions, and end what runs in them; how many."""
    swept = 0
    with contextlib.suppress(FileNotFoundError, PermissionError):
        for root in state.sessions.iterdir():
            if root.name != own_id and not root.name.startswith(".") and _is_own_directory(root):
                swept += _sweep_one(SessionPaths(root=root))
    return swept


def _is_own_directory(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _sweep_one(paths: SessionPaths) -> bool:
    try:
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        # Shared: whoever starts this session meanwhile waits, and does not take us for its owner.
        if not try_lock(descriptor, shared=True) or not is_forgotten(paths.root):
            return False
        left = {entry.name for entry in paths.root.iterdir()}
        revoke(paths.root)
        _kill_orphans(paths)
        keep_left(paths)
        _delete_session(paths)
        if left <= {paths.lock.name, paths.saved.name} and paths.saved.exists():
            return False
        log.info("Swept what was left of session %s.", paths.root.name)
        return True
    finally:
        os.close(descriptor)


def _kill_orphans(paths: SessionPaths) -> None:
    """End a QEMU that outlived its supervisor, before or after its sockets were moved."""
    for folder in (paths.root, paths.vm):
        kill_orphan(folder / QMP_SOCKET)


def _delete_session(paths: SessionPaths) -> None:
    """Delete everything but what was saved; without that the directory too, and the lock last.

    Until the lock is gone nobody else makes anything in it.
    """
    _delete_run(paths)
    delete_expired(paths)
    try:
        paths.saved.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return  # something is kept
    paths.lock.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        paths.root.rmdir()


def _delete_run(paths: SessionPaths) -> None:
    """Delete everything but the lock and what was saved."""
    with contextlib.suppress(FileNotFoundError):
        for entry in paths.root.iterdir():
            if entry in (paths.lock, paths.saved):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
