"""The processes that work for a session, as /proc shows them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.paths import SessionPaths


def find_processes(paths: SessionPaths) -> list[int]:
    """All that names the session's directory: QEMU, each wall around it, qemu-img.

    The supervisor itself is not among them: it is told its session in the environment.
    """
    return [pid for pid, _ in list_programs(paths)]


def find_qemu(paths: SessionPaths) -> int | None:
    """The session's QEMU itself, without its walls."""
    return next(iter(find_qemus(paths)), None)


def find_qemus(paths: SessionPaths) -> list[int]:
    """All of them, where there should be one at most."""
    return [pid for pid, program in list_programs(paths) if Path(program).name.startswith("qemu-system")]


def find_marked(mark: str) -> list[str]:
    """The processes with this word in their environment or command line, each with its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if mark.encode() in words or mark.encode() in (entry / "environ").read_bytes():
                found.append(f"{entry.name} {words.replace(bytes(1), b' ')[:200].decode(errors='replace')}")
    return found


def list_programs(paths: SessionPaths) -> Iterator[tuple[int, str]]:
    """The same as `find_processes`, each with the path of its program."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Without an answer where it ended meanwhile; a zombie has no words.
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if any(str(paths.root) in word for word in words):
                    yield int(entry.name), words[0]


def find_descendants(pid: int) -> set[int]:
    """Whatever a process has started, and what that has, as far as it runs still."""
    found = set()
    # Threads and helpers end while they are looked at.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child), *find_descendants(int(child))}
    return found


def count_descriptors(pid: int) -> int:
    """How many files, sockets and pipes a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_mib(pid: int) -> float:
    """The memory of a process, also what it shares with others."""
    return _memory_mib(pid, "Rss")


def pss_mib(pid: int, kind: str = "Pss") -> float:
    """The memory of a process with its part of what it shares with others; 0 where it has ended."""
    try:
        return _memory_mib(pid, kind)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def private_mib(pid: int) -> float:
    """The memory of a process that it has for itself alone."""
    return _memory_mib(pid, "Private_Clean", "Private_Dirty")


def _memory_mib(pid: int, *kinds: str) -> float:
    """Source: proc(5), /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines}
    return sum(kib[kind] for kind in kinds) / 1024
