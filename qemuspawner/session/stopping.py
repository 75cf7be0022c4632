"""The signals that stop a session: one handler from its process's first step to its last."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

# What a batch system sends before a job's time is over, or where it wants its place back and gives notice.
NOTICE = signal.SIGUSR1
# SIGUSR2 is what Grid Engine sends before it kills a job that is deleted.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, NOTICE)


class StopSignal:
    """Takes these signals on, for whoever heeds them at the time.

    Until `hand_to`, a stop ends the process where it is, by `SystemExit`. The exception may get lost in C
    code that calls Python and forgives errors, as msgspec does while it looks at a type for the first time;
    so it is remembered for who comes next. An event loop's own handlers would not do: it puts the default
    back when it closes, and a second stop would kill a session that ends as it should.
    """

    def __init__(self) -> None:
        self._came = 0
        self._heed: Callable[[int], object] | None = None
        for number in _SIGNALS:
            signal.signal(number, self._take)

    def hand_to(self, heed: Callable[[int], object]) -> None:
        """Call `heed` with the signal of each stop from now on, and at once where one came before."""
        self._heed = heed
        if self._came:
            heed(self._came)

    def ignore(self) -> None:
        """Heed no stop any more: all is done."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._came = number
        if self._heed is None:
            sys.exit(1)
        self._heed(number)
