"""Lines of the audit log, which sessions and the hub append to.

`sessions/.audit-UID/YYYY-MM-DD.jsonl`, by UTC. All processes of an account append to the same file: a line is
one write to a descriptor opened for appending, which the kernel keeps whole.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

_LONGEST_TEXT = 500


def append_line(folder: Path, event: str, *, by: str, facts: Mapping[str, object]) -> None:
    """Note what somebody did; of texts the first 500 characters. Raises OSError."""
    now = datetime.now(UTC)
    line = {
        "at": now.isoformat(timespec="milliseconds"),
        "event": event,
        "by": by,
        **{name: _shorten(value) for name, value in facts.items()},
    }
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    descriptor = os.open(folder / f"{now:%Y-%m-%d}.jsonl", flags, 0o600)
    try:
        os.write(descriptor, json.dumps(line, ensure_ascii=True).encode() + b"\n")
    finally:
        os.close(descriptor)


def _shorten(value: object) -> object:
    """A line is short enough to be written as one."""
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value
