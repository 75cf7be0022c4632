"""Whether the kernel has ended something for want of memory: QEMU is told nothing, it is just gone.

The counts are of our own memory cgroup where there is one, and of the whole host. Sources: cgroup-v2.rst
(memory.events), cgroup-v1/memory.rst (memory.oom_control), and mm/oom_kill.c for `oom_kill` of /proc/vmstat.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# How a process ends that was killed, itself and as bubblewrap passes it on.
KILLED = (-9, 128 + 9)
# So long a large process may take to end on a busy host.
_LATELY_S = 10

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


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


class OomWatch:
    """Compares the counts with those of the last look."""

    def __init__(
        self, *, count: Callable[[], int] = count_kills, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._now = now
        self._before = self._count()
        self._seen_at = float("-inf")

    def look(self) -> bool:
        """Whether there were more since the last look, or shortly before it.

        The count goes up before its process has ended: a look in between must not keep it from the next one.
        """
        before, self._before = self._before, self._count()
        if self._before > before:
            self._seen_at = self._now()
        return self._now() - self._seen_at <= _LATELY_S
