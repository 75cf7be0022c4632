"""The processes that work for a session, as /proc shows them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.paths import SessionPaths


def find_processes(paths: SessionPaths) -> list[int]:
    """All that names the session's directory: QEMU, each wall around it, qemu-img.

    The supervisor itself is not among them: it is told its session in the environment.
    """
    return [pid for pid, _ in _named(paths)]


def find_qemu(paths: SessionPaths) -> int | None:
    """The session's QEMU itself, without its walls."""
    return next(iter(find_qemus(paths)), None)


def find_qemus(paths: SessionPaths) -> list[int]:
    """All of them, where there should be one at most."""
    return [pid for pid, program in _named(paths) if Path(program).name.startswith("qemu-system")]


def _named(paths: SessionPaths) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Without an answer where it ended meanwhile; a zombie has no words.
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(str(paths.root) in word for word in words):
                    yield int(entry.name), words[0]
