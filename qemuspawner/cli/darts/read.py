"""DARTS's files, read line by line: machines.conf, and its configuration in Perl or as .ini.

The Perl is not run. What is no plain value is handed back for a person to look at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.cli.darts.perl import parse_pairs, parse_value
from qemuspawner.errors import QemuSpawnerError, printable

# DARTS's own are a few kilobytes.
_MAX_BYTES = 1 << 20
_MAX_SHOWN = 60

_SECTION = re.compile(r"\[([^\]]+)\]")
_PIECE = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|;|[^\#"';]+|["']""", re.DOTALL)
_SETTING = re.compile(r"""\$config\s*\{\s*(["']?)(\w+)\1\s*\}\s*=\s*(.+)""", re.DOTALL)
_VARIABLE = re.compile(r"(?:my|our)\s+([$@]\w+)\s*=\s*(.+)", re.DOTALL)
_TABLE = re.compile(r"(?:(?:my|our)\s+)?%config\s*=\s*\((.*)\)", re.DOTALL)
# What a Perl file needs and what says nothing.
_NOTHING = re.compile(r"1|(?:use|no)\s[\w:\s]+|package\s[\w:]+|(?:my|our)\s+%config")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something stands."""

    path: Path
    line: int  # from 1

    def __str__(self) -> str:
        return printable(f"{self.path.name}:{self.line}")


@dataclass(frozen=True, kw_only=True)
class Left:
    """Something that is not taken over."""

    place: Place
    what: str
    reason: str  # without a full stop

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.what}: {self.reason}.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A section of machines.conf."""

    place: Place
    name: str  # of a file, such as debian12.qcow2
    keys: dict[str, tuple[Place, str]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An option of DARTS: a number, text, a list of these, or None."""

    place: Place
    name: str
    value: object


def read_machines(path: Path) -> tuple[list[Entry], list[Left]]:
    """The machines of machines.conf, and its lines that belong to none."""
    entries: list[Entry] = []
    left: list[Left] = []
    for number, text in enumerate(_read(path).splitlines(), 1):
        line, place = text.strip(), Place(path=path, line=number)
        key, is_key, value = line.partition("=")
        if not line or line[0] in "#;":
            continue
        if section := _SECTION.fullmatch(line):
            entries.append(Entry(place=place, name=section[1].strip(), keys={}))
        elif is_key and entries:
            entries[-1].keys[key.strip().lower()] = place, value.strip()
        else:
            reason = "it is neither a [file] nor a key of one"
            left.append(Left(place=place, what=_shorten(line), reason=reason))
    return entries, left


def read_config(path: Path) -> tuple[list[Setting], list[Left]]:
    """The options of a file, the later of two with the same name; and what is no plain value."""
    lines = _read_ini(path) if path.suffix == ".ini" else _read_perl(path)
    settings: dict[str, Setting] = {}
    left: list[Left] = []
    for one in lines:
        if isinstance(one, Setting):
            settings[one.name] = one
        else:
            left.append(one)
    return list(settings.values()), left


def _read_ini(path: Path) -> Iterator[Setting | Left]:
    for number, text in enumerate(_read(path).splitlines(), 1):
        line, place = text.strip(), Place(path=path, line=number)
        if not line or line[0] in "#;" or _SECTION.fullmatch(line):
            continue
        name, is_setting, words = (part.strip() for part in line.partition("="))
        if not is_setting:
            yield Left(place=place, what=_shorten(line), reason="it is no option")
            continue
        try:
            value = parse_value(words)
        except ValueError:
            value = words
        yield Setting(place=place, name=name, value=value)


def _read_perl(path: Path) -> Iterator[Setting | Left]:
    known: dict[str, object] = {}  # what variables hold
    for number, text in _split_perl(_read(path)):
        place = Place(path=path, line=number)
        name, pairs = "", dict[str, object]()
        try:
            if match := _SETTING.fullmatch(text):
                name = match[2]
                pairs = {name: parse_value(match[3], known)}
            elif match := _TABLE.fullmatch(text):
                pairs = parse_pairs(match[1], known)
            elif match := _VARIABLE.fullmatch(text):
                known[match[1]] = parse_value(match[2], known)
            elif not _NOTHING.fullmatch(text):
                raise ValueError("it is Perl, which is not run")
        except ValueError as exc:
            # Never what it is set to: that may be a password.
            yield Left(place=place, what=name or _shorten(re.split(r"[\"'\n]", text)[0]), reason=str(exc))
        for name, value in pairs.items():
            known[f"$config{{{name}}}"] = value
            yield Setting(place=place, name=name, value=value)


def _split_perl(text: str) -> Iterator[tuple[int, str]]:
    """The statements without comments, each with its line."""
    number, start, pieces = 1, 1, list[str]()
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece == ";":
            yield start, "".join(pieces).strip()
            pieces = []
        elif piece[0] != "#":
            if not "".join(pieces).strip():
                start = number + piece[: len(piece) - len(piece.lstrip())].count("\n")
            pieces.append(piece)
        number += piece.count("\n")
    if rest := "".join(pieces).strip():
        yield start, rest


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as exc:
        raise QemuSpawnerError(f"'{path}' cannot be read: {exc.strerror}.") from exc
    if len(content) > _MAX_BYTES:
        raise QemuSpawnerError(f"'{path}' is larger than 1 MiB, so it is no such file of DARTS.")
    return content.decode(errors="replace")


def _shorten(text: str) -> str:
    text = text.strip()
    return f"'{text}'" if len(text) <= _MAX_SHOWN else f"'{text[:_MAX_SHOWN]}…'"
