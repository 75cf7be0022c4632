"""A process that is known again after a restart, and never mistaken for a later one of the same pid."""

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class KnownProcess:
    """A process by what no other process has: its pid, its start time and the boot it belongs to."""

    pid: int
    start_time: int  # clock ticks since the boot, as field 22 of /proc/PID/stat has it
    boot_id: str

    @classmethod
    def find(cls, pid: int) -> "KnownProcess | None":
        """The process that has this pid now; None where there is none, or only its zombie."""
        start_time = _start_time(pid)
        return None if start_time is None else cls(pid=pid, start_time=start_time, boot_id=_boot_id())

    @classmethod
    def from_state(cls, state: Mapping[str, object]) -> "KnownProcess | None":
        """As `state()` saved it; None where something is missing."""
        pid, start_time, boot_id = (state.get(key) for key in ("pid", "start_time", "boot_id"))
        if isinstance(pid, int) and isinstance(start_time, int) and isinstance(boot_id, str):
            return cls(pid=pid, start_time=start_time, boot_id=boot_id)
        return None

    def state(self) -> dict[str, int | str]:
        return {"pid": self.pid, "start_time": self.start_time, "boot_id": self.boot_id}

    def belongs_to(self, uid: int) -> bool:
        """Whether it runs, and as this account."""
        try:
            owner = Path(f"/proc/{self.pid}").stat().st_uid
        except OSError:
            return False
        # In this order: the pid may be a later process's by now, with another owner.
        return owner == uid and self.alive

    @property
    def alive(self) -> bool:
        return self.find(self.pid) == self

    def signal(self, number: int) -> bool:
        """Send a signal (0: none); False where the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # The descriptor stays with one process: whoever is checked here is who gets the signal.
                if self.alive:
                    if number:
                        signal.pidfd_send_signal(descriptor, number)
                    return True
            finally:
                os.close(descriptor)
        return False


def _start_time(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses. Source: proc(5).
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
