"""Where in a text of TOML a key stands, for messages about a text that somebody is just editing."""

import re

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_INDEX = re.compile(r"\[[0-9]+\]")


def find_line(text: str, key: str) -> int:
    """The line, from 1, where `key` ("cpus.default") is set, or else its table begins; 0: nowhere.

    Inside a text of several lines what only looks like a key is taken for one.
    """
    # A value's place in a list, "cpus.offered[2]", is on the line of the list.
    wanted = _INDEX.sub("", key)
    table, found = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = _find_table(line)
        if header:
            name = table = header
        elif match := _KEY.match(line.lstrip()):
            name = f"{table}.{_plain(match[1])}" if table else _plain(match[1])
        else:
            continue
        if name == wanted:
            return number
        # The nearest thing around it: a table for a key that is missing, an inline table for one in it.
        if not found and name and wanted.startswith(f"{name}."):
            found = number
    return found


def _find_table(line: str) -> str:
    """The name of the table that begins on this line; "" where none does."""
    # By no regular expression: a line of 256 KiB takes those long.
    line = line.strip()
    name, bracket, rest = line.lstrip("[").partition("]")
    rest = rest.lstrip("]").lstrip()
    # What has a comma is a list of values.
    is_header = line.startswith("[") and bracket and (not rest or rest.startswith("#")) and "," not in name
    return _plain(name) if is_header else ""


def _plain(dotted: str) -> str:
    """A dotted key without quotes and blanks."""
    return ".".join(part.strip().strip("\"'") for part in dotted.split("."))
