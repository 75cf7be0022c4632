"""The audit log: who started, saw, drove, copied and transferred what and when; one JSON line each.

`sessions/.audit-UID/YYYY-MM-DD.jsonl`, by UTC. All sessions of an account append to the same file: a line is
one write to a descriptor opened for appending, which the kernel keeps whole. No key and no copied word is in
it: only names, counts and sizes.
"""

import contextlib
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from qemuspawner.spec import SessionSpec

log = logging.getLogger(__name__)

_LONGEST_TEXT = 500


class Audit:
    """Of one session."""

    def __init__(self, folder: Path, spec: SessionSpec) -> None:
        self._folder = folder
        self._session = {
            "session": spec.session_id,
            "owner": spec.user,
            "server": spec.server_name,
            "machine": spec.machine.id,
        }

    def note(self, event: str, *, by: str, **facts: object) -> None:
        """Append a line; a log that cannot be written is said in the other log, and stops nobody."""
        now = datetime.now(UTC)
        line = {
            "at": now.isoformat(timespec="milliseconds"),
            "event": event,
            "by": by,
            **self._session,
            **{name: _shorten(value) for name, value in facts.items()},
        }
        try:
            self._append(now, json.dumps(line, ensure_ascii=True).encode() + b"\n")
        except OSError as exc:
            log.error("%s: the audit log cannot be written: %s", self._session["session"], exc.strerror)

    def _append(self, now: datetime, line: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        path = self._folder / f"{now:%Y-%m-%d}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def _shorten(value: object) -> object:
    """A line is short enough to be written as one."""
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value
