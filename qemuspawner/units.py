"""Sizes and durations as people write them: "4 GiB" <-> 4096 MiB, "2 h" <-> 7200 s."""

import re

from qemuspawner.texts import Text

_GIB, _TIB = 1024, 1024**2
_MIB = {"mib": 1, "m": 1, "mb": 1, "gib": _GIB, "g": _GIB, "gb": _GIB, "tib": _TIB, "t": _TIB, "tb": _TIB}
_SECONDS = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1,
    "min": 60, "m": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hour": 3600, "hours": 3600,
    "d": 86400, "day": 86400, "days": 86400,
    "w": 604800, "week": 604800, "weeks": 604800,
}  # fmt: skip
# Nothing longer is meant as a quantity, and a 1 MB string must cost nothing.
_MAX_TEXT = 32
_QUANTITY = re.compile(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_mib(value: object) -> int:
    """A memory or disk size in MiB from "2 GiB", "512 MiB" or a number of MiB.

    GB and G mean GiB, as QEMU and most people have it.

    Raises:
        ValueError: Not such a quantity; the text is a reason without the value.
    """
    return _parse(
        value,
        _MIB,
        default_unit="mib",
        wrong=Text('it is not of the form "2 GiB", or a whole number of MiB'),
        broken=Text("it is not a whole number of MiB"),
    )


def parse_seconds(value: object) -> int:
    """A duration in seconds from "8 h", "30 min", "2 d" or a number of seconds.

    Raises:
        ValueError: Not such a quantity; the text is a reason without the value.
    """
    return _parse(
        value,
        _SECONDS,
        default_unit="s",
        wrong=Text('it is not of the form "8 h", or a whole number of seconds'),
        broken=Text("it is not a whole number of seconds"),
    )


def _parse(value: object, factors: dict[str, int], *, default_unit: str, wrong: Text, broken: Text) -> int:
    """`wrong` and `broken` are the reasons why text or a number cannot be such a quantity."""
    if isinstance(value, bool):
        raise ValueError(wrong)
    if isinstance(value, int):
        if value < 0:
            raise ValueError(Text("it is negative"))
        return value
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(wrong)
    match = _QUANTITY.fullmatch(value)
    if match is None:
        raise ValueError(wrong)
    number, unit = match.groups()
    factor = factors.get(unit.lower() or default_unit)
    if factor is None:
        raise ValueError(wrong)
    quantity = float(number) * factor
    if quantity != int(quantity):
        raise ValueError(broken)
    return int(quantity)


def render_mib(size_mib: int) -> Text:
    """2048 -> "2 GiB", 1536 -> "1.5 GiB", 512 -> "512 MiB"; from 10 TiB on in TiB."""
    if size_mib < 1024:
        return Text("{number} MiB", number=size_mib)
    if size_mib >= 10 << 20:
        return Text("{number} TiB", number=size_mib / (1 << 20))
    return Text("{number} GiB", number=size_mib / 1024)


def render_size(*, cpus: int, memory_mib: int) -> Text:
    """As "2 CPUs, 4 GiB"."""
    memory = render_mib(memory_mib)
    if cpus == 1:
        return Text("1 CPU, {memory}", memory=memory)
    return Text("{cpus} CPUs, {memory}", cpus=cpus, memory=memory)


def render_seconds(duration_s: float) -> Text:
    """5400 -> "1 h 30 min", 90061 -> "1 d 1 h"; the two largest parts, at least "0 s"."""
    rest = round(duration_s)
    days, rest = divmod(rest, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [
        part
        for count, part in (
            (days, Text("{days} d", days=days)),
            (hours, Text("{hours} h", hours=hours)),
            (minutes, Text("{minutes} min", minutes=minutes)),
            (seconds, Text("{number} s", number=seconds)),
        )
        if count
    ]
    match parts[:2]:
        case [larger, smaller]:
            return Text("{larger} {smaller}", larger=larger, smaller=smaller)
        case [only]:
            return only
    return Text("{number} s", number=0)
