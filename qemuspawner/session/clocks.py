"""How long a session may last: its lifetime, and how long it may go without input.

Counted on CLOCK_BOOTTIME, which no change of the wall clock moves and which runs on while a laptop sleeps.
"""

import time
from collections.abc import Callable
from typing import Literal

from qemuspawner.errors import SessionError
from qemuspawner.spec import SessionSpec
from qemuspawner.units import render_seconds


def boot_time() -> float:
    """Seconds since this host's boot, suspends included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clocks:
    """The deadlines of one session, in seconds of `now`'s clock."""

    def __init__(self, spec: SessionSpec, *, now: Callable[[], float] = boot_time) -> None:
        self._now = now
        self._lifetime_s = spec.lifetime_s
        self._idle_s = spec.idle_s
        self.started = now()
        self.deadline = self.started + spec.lifetime_s
        self.max_deadline = self.started + max(spec.lifetime_s, spec.max_lifetime_s)
        self._last_input: float | None = None  # not before somebody could use the desktop

    def now(self) -> float:
        return self._now()

    def note_input(self) -> None:
        """A person typed or moved the pointer; the first time: could have."""
        self._last_input = self._now()

    @property
    def idle_deadline(self) -> float | None:
        if not self._idle_s or self._last_input is None:
            return None
        return self._last_input + self._idle_s

    def extend(self, seconds: int | None = None) -> None:
        """Move the deadline later, by the session's first lifetime unless `seconds` says otherwise.

        Raises:
            SessionError: The longest lifetime is reached already.
        """
        if self.deadline >= self.max_deadline:
            longest = render_seconds(self.max_deadline - self.started)
            raise SessionError(
                f"The session has reached its longest lifetime of {longest}.",
                hint="Save your work elsewhere before the end.",
            )
        self.deadline = min(self.deadline + (seconds or self._lifetime_s), self.max_deadline)

    def why_over(self) -> tuple[Literal["lifetime", "idle"], str] | None:
        """What ends the session now, and a sentence about it; None while nothing does."""
        if self._now() >= self.deadline:
            lifetime = render_seconds(self.deadline - self.started)
            return "lifetime", f"The session's lifetime of {lifetime} is over."
        if self.idle_deadline is not None and self._now() >= self.idle_deadline:
            return "idle", f"Nobody used the desktop for {render_seconds(self._idle_s)}."
        return None

    @property
    def next_check_s(self) -> float:
        """Seconds until the next deadline."""
        deadline = min(self.deadline, self.idle_deadline or self.deadline)
        return max(0.0, deadline - self._now())

    def unix(self, moment: float) -> float:
        """A moment of this clock as Unix seconds by the wall clock of now."""
        return time.time() + moment - self._now()
