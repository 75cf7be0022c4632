"""How long a session may last: its lifetime, and how long it may go without use.

Counted on CLOCK_BOOTTIME, which no change of the wall clock moves and which runs on while a laptop sleeps.
"""

import time
from collections.abc import Callable
from typing import Literal

from qemuspawner.errors import SessionError
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

# Extending by less helps nobody; clock.js has the same.
LEAST_GAIN_S = 60


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
        self._last_busy = 0.0
        self._not_idle_before = 0.0

    def now(self) -> float:
        return self._now()

    def note_input(self) -> None:
        """A person typed or moved the pointer; the first time: could have."""
        self._last_input = self._now()

    def note_busy(self) -> None:
        """The guest works, though perhaps nobody looks on. A boot is no such work."""
        if self._last_input is not None:
            self._last_busy = self._now()

    def postpone_idle(self) -> None:
        """What should have followed the idle time has failed; the next time is after another one."""
        self._not_idle_before = self._now()

    @property
    def last_input(self) -> float | None:
        """When a person used it last; None before anybody could."""
        return self._last_input

    @property
    def last_activity(self) -> float | None:
        """When the desktop was used last, by a person or by its own work; None before anybody could."""
        return None if self._last_input is None else max(self._last_input, self._last_busy)

    @property
    def idle_deadline(self) -> float | None:
        if not self._idle_s or self.last_activity is None:
            return None
        return max(self.last_activity, self._not_idle_before) + self._idle_s

    def extend(self, seconds: int | None = None) -> None:
        """Move the deadline later, by the session's first lifetime unless `seconds` says otherwise.

        Raises:
            SessionError: The longest lifetime is reached already.
        """
        if self.deadline >= self.max_deadline:
            longest = render_seconds(self.max_deadline - self.started)
            raise SessionError(
                Text("The session has reached its longest lifetime of {longest}.", longest=longest),
                hint=Text("Save your work elsewhere before the end, or ask for more time with a reason."),
            )
        self.deadline = min(self.deadline + (seconds or self._lifetime_s), self.max_deadline)

    @property
    def can_extend(self) -> bool:
        """Whether extending is worth it: by a minute at least."""
        return self.max_deadline - self.deadline >= LEAST_GAIN_S

    def grant(self, seconds: int) -> None:
        """Move the deadline later by `seconds`, and the longest lifetime with it where that is in the way."""
        self.deadline += seconds
        self.max_deadline = max(self.max_deadline, self.deadline)

    def why_over(self) -> tuple[Literal["lifetime", "idle"], str] | None:
        """What ends the session now, and a sentence about it; None while nothing does."""
        if self._now() >= self.deadline:
            lifetime = render_seconds(self.deadline - self.started)
            return "lifetime", Text("The session's lifetime of {lifetime} is over.", lifetime=lifetime)
        if self.idle_deadline is not None and self._now() >= self.idle_deadline:
            return "idle", Text("Nobody used the desktop for {span}.", span=render_seconds(self._idle_s))
        return None

    @property
    def next_check_s(self) -> float:
        """Seconds until the next deadline."""
        deadline = min(self.deadline, self.idle_deadline or self.deadline)
        return max(0.0, deadline - self._now())

    def unix(self, moment: float) -> float:
        """A moment of this clock as Unix seconds by the wall clock of now."""
        return time.time() + moment - self._now()
