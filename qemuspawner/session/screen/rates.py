"""How fast somebody may do something: a bucket of tokens for each person, which fills by itself."""

import time
from collections.abc import Callable

_MAX_PEOPLE = 100


class Rates:
    """Tokens to spend, by name: `burst` at most, and `per_s` more each second."""

    def __init__(self, *, per_s: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.burst = burst
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def spend(self, name: str, tokens: int) -> float:
        """Take `tokens` of `name`'s bucket; 0, or the seconds until there are as many, none taken."""
        now = self._now()
        had, then = self._buckets.pop(name, (float(self.burst), now))
        have = min(self.burst, had + (now - then) * self.per_s)
        missing = tokens - have
        self._buckets[name] = (have if missing > 0 else have - tokens, now)
        # Who acted last longest ago has long had a full bucket again.
        if len(self._buckets) > _MAX_PEOPLE:
            del self._buckets[next(iter(self._buckets))]
        return max(0.0, missing / self.per_s)
