"""Single keys of a machine.toml changed in its text, with comments and order left as they are."""

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from qemuspawner.errors import CatalogueError
from qemuspawner.texts import Text

# A value that a program gives is no deeper than machine.toml itself.
_MAX_DEPTH = 4


def set_keys(text: str, values: Mapping[str, object]) -> str:
    """The text with each dotted key ("cpus.default") set to its value; None takes the key out.

    What the values mean is not looked at.

    Raises:
        CatalogueError: The text is no TOML, a key goes through no table, or a value has no form in it.
    """
    try:
        document = tomlkit.parse(text)
        for key, value in values.items():
            _set(document, key.split("."), value)
        return tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, RecursionError) as exc:
        raise CatalogueError(
            "invalid", Text("The machine's text cannot be changed so: {reason}.", reason=exc)
        ) from exc


def _set(table: Any, names: list[str], value: object) -> None:
    *parents, last = names
    for name in parents:
        if name not in table:
            if value is None:
                return
            table[name] = tomlkit.table()
        table = table[name]
        if not isinstance(table, dict):
            raise ValueError(f"'{name}' is no table")
    if value is None:
        table.pop(last, None)
    else:
        table[last] = _plain(value, _MAX_DEPTH)


def _plain(value: object, depth: int) -> Any:
    """The value as TOML has it: no null, and no floating-point numbers, which no key takes."""
    if isinstance(value, (bool, int, str)):
        return value
    if depth and isinstance(value, list):
        return [_plain(one, depth - 1) for one in value]
    if depth and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        inline = tomlkit.inline_table()
        inline.update({name: _plain(one, depth - 1) for name, one in value.items()})
        return inline
    raise ValueError(f"{type(value).__name__} is no kind of value for a key")
