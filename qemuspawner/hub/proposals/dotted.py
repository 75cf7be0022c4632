"""Our fields of a proposal in somebody else's JSON, found by dotted paths."""

from collections.abc import Mapping, Sequence

# Names of a field may stand in several places.
Paths = str | Sequence[str]

# No field of ours has as many entries, however an answer is nested.
_MAX_FOUND = 10_000


def find_value(document: object, path: str) -> object:
    """The value at a dotted path, such as "pi.name"; None where there is none. "" is the document itself.

    A list on the way means each of its entries: the values of all of them are found, as one flat list.
    """
    value = document
    for key in path.split(".") if path else ():
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list):
            value = _flatten([entry.get(key) for entry in value if isinstance(entry, Mapping)])
        else:
            return None
    return value


def find_first(document: object, paths: Paths) -> object:
    """The first value at one of the paths."""
    found = (find_value(document, path) for path in _as_list(paths))
    return next((value for value in found if value is not None), None)


def find_all(document: object, paths: Paths) -> list[object]:
    """The values at all of the paths, as one flat list without what is empty."""
    return [
        value for value in _flatten([find_value(document, path) for path in _as_list(paths)]) if value != ""
    ]


def _as_list(paths: Paths) -> Sequence[str]:
    return [paths] if isinstance(paths, str) else paths


def _flatten(values: list[object]) -> list[object]:
    flat: list[object] = []
    for value in values:
        flat += value if isinstance(value, list) else [value]
    return [value for value in flat[:_MAX_FOUND] if value is not None]
