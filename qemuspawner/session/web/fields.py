"""A request's JSON object, read field by field; whatever is not as it should be is a 400 with a sentence."""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from tornado import web

_LONGEST_SHOWN = 40

T = TypeVar("T")


class Fields:
    """The fields of one object; without a default a field must be there."""

    def __init__(self, body: Mapping[str, Any], *, known: Collection[str], within: str = "") -> None:
        """`within` begins the names of an inner object's fields in sentences."""
        for name in body:
            if name not in known:
                raise web.HTTPError(
                    400, f"There is no field {_show(within + name)}, only {', '.join(known)}."
                )
        self._body = body
        self._within = within

    def has(self, name: str) -> bool:
        return name in self._body

    def whole(self, name: str, *, least: int, most: int, why: str = "", default: int | None = None) -> int:
        """A whole number; `why` goes on with the sentence after the bounds."""
        value = self._get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self._refuse(name, value, f"a whole number from {least} to {most}{why}")
        return value

    def number(self, name: str, *, least: float, most: float, default: float | None = None) -> float:
        value = self._get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise self._refuse(name, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._get(name, default)
        if type(value) is not bool:
            raise self._refuse(name, value, "true or false")
        return value

    def choice(self, name: str, choices: Collection[T], *, default: T | None = None) -> T:
        value = self._get(name, default)
        # As a list: what cannot be hashed may not be looked up in a set.
        for choice in choices:
            if value == choice and type(value) is type(choice):
                return choice
        raise self._refuse(name, value, "one of " + ", ".join(f"'{choice}'" for choice in choices))

    def text(self, name: str, *, most: int) -> str:
        value = self._get(name, None)
        if not isinstance(value, str):
            raise self._refuse(name, value, f"a text of 1 to {most} characters")
        if not 0 < len(value) <= most:
            raise web.HTTPError(400, f"'{name}' has {len(value)} characters; it may have 1 to {most}.")
        return value

    def texts(self, name: str, *, most: int, longest: int) -> list[str]:
        value = self._get(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._refuse(name, value, f"a list of 1 to {most} texts")
        if not 0 < len(value) <= most:
            raise web.HTTPError(400, f"'{name}' has {len(value)} entries; it may have 1 to {most}.")
        if too_long := next((item for item in value if len(item) > longest), None):
            raise web.HTTPError(
                400, f"An entry of '{name}' has {len(too_long)} characters; it may have {longest} at most."
            )
        return value

    def inner(self, name: str, *, known: Collection[str]) -> "Fields":
        value = self._get(name, None)
        if not isinstance(value, dict):
            raise self._refuse(name, value, f"an object with {', '.join(known)}")
        return Fields(value, known=known, within=f"{name}.")

    def _get(self, name: str, default: Any) -> Any:
        value = self._body.get(name, default)
        if value is None:
            raise web.HTTPError(400, f"'{self._within}{name}' is missing.")
        return value

    def _refuse(self, name: str, value: object, wanted: str) -> web.HTTPError:
        return web.HTTPError(400, f"'{self._within}{name}' is {_show(value)}; it must be {wanted}.")


def _show(value: object) -> str:
    """What came, short enough for a sentence; of lists and objects only that they are."""
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case True | False:
            return str(value).lower()
        case str():
            return repr(value[:_LONGEST_SHOWN])
    return str(value)[:_LONGEST_SHOWN]
