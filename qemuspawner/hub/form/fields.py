"""One option of a start request: how its value is read, and what is said of one that cannot be accepted."""

import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qemuspawner.texts import Text, list_texts, reason_of

_MAX_SHOWN = 60
_MAX_LISTED = 8
_CPUS = re.compile(r"\s*([0-9]{1,4})\s*", re.ASCII)
# Never writes out more of a value than is shown of it.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _MAX_SHOWN

Parse = Callable[[object], Any]


@dataclass(frozen=True, kw_only=True)
class Field:
    """An option as it is for one machine."""

    name: str
    default: Any
    parse: Parse  # raises ValueError, whose text is a reason or empty
    bound: str  # what is allowed: "'Debian' offers 1, 2 or 4"

    def read(self, options: Mapping[str, object]) -> Any:
        """Its value in `options`.

        Raises:
            ValueError: It cannot be accepted; the text is the whole sentence.
        """
        if self.name not in options:
            return self.default
        value = options[self.name]
        try:
            return self.parse(value)
        except ValueError as exc:
            raise ValueError(self._say_refused(value, reason_of(exc))) from None

    def _say_refused(self, value: object, why: str) -> Text:
        name, bound = self.name, self.bound
        if not why:
            return Text("The option '{name}' is {value}; {bound}.", name=name, value=show(value), bound=bound)
        return Text(
            "The option '{name}' is {value} ({why}); {bound}.",
            name=name,
            value=show(value),
            why=why,
            bound=bound,
        )


def parse_count(value: object) -> int:
    """A whole number, also as text. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _CPUS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(Text("it is not a whole number"))
    return int(match[1])


def one_of(parse: Parse, offered: Collection[Any]) -> Parse:
    def parse_offered(value: object) -> Any:
        parsed = parse(value)
        if parsed not in offered:
            raise ValueError
        return parsed

    return parse_offered


def in_range(parse: Callable[[object], int], least: int, most: int) -> Parse:
    def parse_in_range(value: object) -> int:
        number = parse(value)
        if not least <= number <= most:
            raise ValueError
        return number

    return parse_in_range


def show(value: object) -> Text:
    """A value as it may stand in a sentence: quoted, cut short, its control characters visible."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    cut = "…" if len(text) > _MAX_SHOWN else ""
    visible = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[:_MAX_SHOWN]
    )
    return quote(f"{visible}{cut}")


def quote(text: str) -> Text:
    """A name in quotes, which are others in other languages."""
    return Text("'{text}'", text=text)


def any_of(values: Iterable[object], *, most: int = _MAX_LISTED) -> str:
    """(1, 2, 4) -> "1, 2 or 4"; not more than `most`."""
    *some, last = _words(values, most)
    return Text("{some} or {last}", some=list_texts(some), last=last) if some else last


def all_of(values: Iterable[object], *, most: int = _MAX_LISTED) -> str:
    """(1, 2, 4) -> "1, 2 and 4"; not more than `most`."""
    *some, last = _words(values, most)
    return Text("{some} and {last}", some=list_texts(some), last=last) if some else last


def _words(values: Iterable[object], most: int) -> list[str]:
    words = [value if isinstance(value, str) else str(value) for value in values]
    return words if len(words) <= most else [*words[:most], Text("others")]
