"""Locks on files: the kernel's own record of who is alive, released by any death.

POSIX record locks (lockf), because the kernel tells who holds one. They end when the process closes *any*
descriptor of the file, so a process opens its own lock file once.
"""

import fcntl
import os
import struct
from pathlib import Path

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = "hhqqi"


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock the whole file; False where another process holds it.

    A shared lock keeps owners away without being one: `find_holder` does not name it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def find_holder(path: Path) -> int | None:
    """The process id of who holds the lock on `path`; None where nobody does.

    0 or less: somebody whom we cannot name, in another namespace or on another host.
    """
    try:
        # The folder may be another account's: follow no link, wait for no pipe, open nothing for writing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
    finally:
        os.close(descriptor)
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer[: struct.calcsize(_FLOCK)])
    return int(pid) if kind == fcntl.F_WRLCK else None
