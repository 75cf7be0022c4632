"""A cgroup for a test, with less memory than its processes want."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def memory_group(*, mib: int) -> Iterator[Callable[[int], None]]:
    """Puts a process where it, and all who are there, take no more than so much from then on.

    What it has already stays where it was counted. All must have ended at the end.
    """
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    top = Path("/sys/fs/cgroup") if unified else Path("/sys/fs/cgroup/memory")
    group = top / f"qemuspawner-test-{os.getpid()}"
    if unified:
        (top / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(mib << 20))

    def put(pid: int) -> None:
        (group / "cgroup.procs").write_text(str(pid))

    yield put
    group.rmdir()
