"""Where in a text of TOML a key stands, for messages about a text that somebody is just editing."""

import re

_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(#.*)?")
_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_INDEX = re.compile(r"\[[^\]]*\]")


def find_line(text: str, key: str) -> int:
    """The line, from 1, where `key` ("cpus.default") is set, or else its table begins; 0: nowhere.

    Inside a text of several lines what only looks like a key is taken for one.
    """
    # A value's place in a list, "cpus.offered[2]", is on the line of the list.
    wanted = _INDEX.sub("", key)
    table, found = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = _plain(header[1])
            name = table
        elif match := _KEY.match(line):
            name = f"{table}.{_plain(match[1])}" if table else _plain(match[1])
        else:
            continue
        if name == wanted:
            return number
        # The nearest thing around it: a table for a key that is missing, an inline table for one in it.
        if not found and name and wanted.startswith(f"{name}."):
            found = number
    return found


def _plain(dotted: str) -> str:
    """A dotted key without quotes and blanks."""
    return ".".join(part.strip().strip("\"'") for part in dotted.split("."))
