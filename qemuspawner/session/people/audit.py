"""The audit log: who started, saw, drove, copied and transferred what and when; one JSON line each.

No key and no copied word is in it: only names, counts and sizes.
"""

import logging
from pathlib import Path

from qemuspawner.audit_log import append_line
from qemuspawner.spec import SessionSpec

log = logging.getLogger(__name__)


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
        try:
            append_line(self._folder, event, by=by, facts={**self._session, **facts})
        except OSError as exc:
            log.error("%s: the audit log cannot be written: %s", self._session["session"], exc.strerror)
