"""Whatever a machine.toml says wrongly is a problem that names its key, and hides no other machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.machines.edits import set_keys

TEXT = 'name = "Mini"\n[image]\nfile = "d"\nformat = "qcow2"\n'
# A value that TOML has and no key takes.
MOMENT = "2026-01-31T00:00:00Z"


def tables(kind: type[msgspec.Struct] = Machine, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every table of machine.toml with the keys in it that are none themselves."""
    plain = []
    for field in msgspec.structs.fields(kind):
        inner = [
            option
            for option in (field.type, *get_args(field.type))
            if isinstance(option, type) and issubclass(option, msgspec.Struct)
        ]
        if inner:
            yield from tables(inner[0], f"{prefix}{field.name}.")
        elif field.name not in ("id", "folder"):
            plain.append(f"{prefix}{field.name}")
    yield prefix, tuple(plain)


KEYS = [key for _, keys in tables() for key in keys]


@pytest.fixture
def problems_with(
    write_machine: Callable[..., Path], images: Path
) -> Callable[[str, str], list[tuple[str, str]]]:
    """The problems of a machine with a key set so; a good machine beside it is there all the same."""

    def run(key: str, value: str) -> list[tuple[str, str]]:
        write_machine(TEXT, name="good")
        text = set_keys(TEXT, {key: value}).replace(f'"{MOMENT}"', MOMENT)
        folder = write_machine(text, name="wrong")
        catalogue = load_catalogue([folder.parent], images)
        assert list(catalogue.machines) == ["good"]
        return [(problem.key, problem.reason) for problem in catalogue.problems]

    return run


def is_about(where: str, key: str) -> bool:
    """Or about a value in it, or about the table whose short form was given a value."""
    return where == key or where.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{where}.")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_the_wrong_type_is_named_with_what_it_is(
    key: str, problems_with: Callable[[str, str], list[tuple[str, str]]]
) -> None:
    problems = problems_with(key, MOMENT)

    assert any(is_about(where, key) and "2026" in reason for where, reason in problems), problems


@pytest.mark.parametrize("table", [prefix for prefix, _ in tables()])
def test_a_key_that_there_is_not_is_named_in_every_table(
    table: str, problems_with: Callable[[str, str], list[tuple[str, str]]]
) -> None:
    problems = problems_with(f"{table}colour", "red")

    assert any("colour" in where or "colour" in reason for where, reason in problems), problems


def test_there_is_no_including_of_other_files(
    problems_with: Callable[[str, str], list[tuple[str, str]]],
) -> None:
    """So that nothing can include itself."""
    assert problems_with("include", "../wrong/machine.toml") == [("include", "there is no such key")]
