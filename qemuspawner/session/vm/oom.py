"""Whether the kernel has ended something for want of memory: QEMU is told nothing, it is just gone.

The counts are of our own memory cgroup where there is one, and of the whole host. Sources: cgroup-v2.rst
(memory.events), cgroup-v1/memory.rst (memory.oom_control), and mm/oom_kill.c for `oom_kill` of /proc/vmstat.
"""

import re
from collections.abc import Iterator
from pathlib import Path

# How a process ends that was killed, itself and as bubblewrap passes it on.
KILLED = (-9, 128 + 9)

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomWatch:
    """Compares the counts with those of the last look."""

    def __init__(self) -> None:
        self._before = count_kills()

    def look(self) -> bool:
        """Whether there were more since the last look."""
        before, self._before = self._before, count_kills()
        return self._before > before


def count_kills(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes were killed for it since the host's boot and our cgroup's beginning, added up."""
    return sum(_count(path) for path in (proc / "vmstat", *_cgroup_files(proc, cgroups)))


def _cgroup_files(proc: Path, cgroups: Path) -> Iterator[Path]:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield cgroups / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield cgroups / "memory" / path.lstrip("/") / "memory.oom_control"


def _count(path: Path) -> int:
    try:
        found = _COUNT.search(path.read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
