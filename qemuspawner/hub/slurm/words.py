"""How Slurm writes durations and moments, from `squeue`, `sinfo` and `scontrol`."""

import re
from datetime import datetime

_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,8}(?::\d{1,2}){0,2})", re.ASCII)
# What stands for "as long as one likes", and what for "nobody knows".
_ENDLESS = frozenset(("infinite", "unlimited"))


def parse_duration(text: str) -> int | None:
    """Seconds of a limit such as "5:00" (minutes), "1-0" (days and hours), "30" (minutes); None: no limit.

    Raises:
        ValueError: Nothing of that kind.
    """
    if text.lower() in _ENDLESS:
        return None
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time limit")
    days, clock = match.groups()
    numbers = [int(number) for number in clock.split(":")]
    if days is not None:
        # With days the first number is hours, without them minutes, or hours where there are three.
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def write_duration(seconds: int) -> str:
    """A limit as `--time` takes it, in whole minutes, not less."""
    return str(max(1, -(-seconds // 60)))


def parse_moment(text: str) -> float | None:
    """Seconds since the epoch of "2026-11-28T19:30:00" in this host's time zone; None: it names none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
