"""A file and a port of this host that an image names, and nobody may touch: the kernel says who does."""

import contextlib
import ctypes
import errno
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WAYS = ("path", "file", "relative", "nbd", "http", "json")

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Bait:
    """`file` would do as a raw disk."""

    file: Path
    port: int
    _watch: int
    _listener: socket.socket

    def name(self, way: str) -> str:
        """One of WAYS to have QEMU open it."""
        at = f"127.0.0.1:{self.port}"
        return {
            "path": str(self.file),
            "file": f"file:{self.file}",
            "relative": f"../{self.file.parent.name}/{self.file.name}",
            "nbd": f"nbd://{at}/x",
            "http": f"http://{at}/x",
            "json": f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{self.file}"}}}}',
        }[way]

    def count_touches(self) -> int:
        """How often it was opened or read, or connected to, since the last count."""
        found = 0
        with contextlib.suppress(BlockingIOError):
            # Events of a file that is watched itself have no name: each takes 16 bytes.
            while events := os.read(self._watch, 1 << 16):
                found += len(events) // 16
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.close()
                found += 1
        return found


def _start_watching() -> int:
    """The descriptor of a new inotify instance."""
    for _ in range(100):
        watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if watch >= 0 or ctypes.get_errno() != errno.EMFILE:
            break
        # Each account has 128 of them, and those that were closed count until the kernel comes to free them.
        time.sleep(0.1)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    return int(watch)


@contextlib.contextmanager
def laid_bait(folder: Path) -> Iterator[Bait]:
    """`folder` is made, and holds nothing else."""
    folder.mkdir()
    file = folder / "secret"
    file.write_bytes(b"The secret of this host. ".ljust(512) * 2048)
    watch = _start_watching()
    try:
        watched = _libc.inotify_add_watch(watch, os.fsencode(file), _IN_OPEN | _IN_ACCESS)
        assert watched >= 0, os.strerror(ctypes.get_errno())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            yield Bait(file=file, port=listener.getsockname()[1], _watch=watch, _listener=listener)
    finally:
        os.close(watch)
