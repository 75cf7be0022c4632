"""`qemuspawner audit`: who started, saw, drove, copied and transferred what, and when."""

import contextlib
import json
import os
import re
import stat
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuspawner.errors import printable
from qemuspawner.paths import StatePaths

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
# A line of the log is far shorter; what is longer is no line of it.
_MAX_LINE_BYTES = 16 * 1024
# What every line has, in the order in which it is shown.
_COMMON = ("at", "event", "by", "owner", "server", "machine", "session")


def add_command(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("audit", help="print the audit log, the oldest first")
    parser.add_argument("--since", type=_day, default=None, metavar="DAY", help="from this day on, by UTC")
    parser.add_argument("--owner", default="", metavar="NAME", help="of this user's desktops")
    parser.add_argument("--by", default="", metavar="NAME", help="what this person did")
    parser.add_argument("--event", default="", metavar="NAME", help="such as joined, drove or upload")
    parser.add_argument("--json", action="store_true", help="the lines as they are, for programs")
    parser.set_defaults(command=show)


def _day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise ArgumentTypeError(f"'{text}' is no day such as 2026-01-31")
    return text


def show(arguments: Namespace, *, state: StatePaths, folders: list[Path]) -> int:  # noqa: ARG001
    """Print what matches."""
    wanted = {key: getattr(arguments, key) for key in ("owner", "by", "event") if getattr(arguments, key)}
    for line in _read_lines(state, since=arguments.since or ""):
        if all(line.get(key) == value for key, value in wanted.items()):
            print(json.dumps(line) if arguments.json else _render(line))
    return 0


def _read_lines(state: StatePaths, *, since: str) -> Iterator[dict[str, Any]]:
    """Every line, by day; what is none is counted and said."""
    days = sorted(state.sessions.glob(".audit-*/*.jsonl"), key=lambda path: (path.stem, path.parent.name))
    for path in days:
        if _DAY.fullmatch(path.stem) and path.stem >= since:
            bad = 0
            for text in _read(path):
                line = _parse(text)
                if line is None:
                    bad += 1
                else:
                    yield line
            if bad:
                print(f"{path.name} of {path.parent.name}: {bad} lines are not of the log", file=sys.stderr)


def _read(path: Path) -> Iterator[bytes]:
    # The folder is the sessions' account's, and we may be root: a link put there leads nowhere.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                while line := file.readline(_MAX_LINE_BYTES):
                    yield line


def _parse(text: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(text)
        if isinstance(line, dict) and all(isinstance(line.get(key), str) for key in _COMMON):
            return line
    return None


def _render(line: dict[str, Any]) -> str:
    """`2026-01-31T09:15:02.123+00:00 alice/desk bob: joined role=view staff=False`."""
    facts = " ".join(f"{key}={value}" for key, value in line.items() if key not in _COMMON)
    return printable(
        f"{line['at']} {line['owner']}/{line['server']} {line['by']}: {line['event']} {facts}"
    ).rstrip()
