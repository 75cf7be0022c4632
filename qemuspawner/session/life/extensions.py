"""More time than the longest lifetime: somebody asks for it with a reason, and the site's staff answer."""

from msgspec import structs

from qemuspawner.errors import SessionError
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.spec import Extension
from qemuspawner.texts import Text


class Extensions:
    """One session's newest request, answered or not."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._asked: Extension | None = None
        self._at = 0.0

    @property
    def newest(self) -> Extension | None:
        # By the wall clock of now, as all moments of a status.
        return self._asked and structs.replace(self._asked, at=self._clocks.unix(self._at))

    def ask(self, *, by: str, reason: str, seconds: int) -> None:
        """Note a request; it takes the place of an earlier one."""
        self._at = self._clocks.now()
        self._asked = Extension(by=by, reason=reason, seconds=seconds, at=0)

    def answer(self, *, by: str, granted_s: int, comment: str) -> None:
        """Grant some seconds; or none, which refuses.

        Raises:
            SessionError: Nobody waits for an answer.
        """
        asked = self._asked
        if asked is None or asked.answer:
            raise SessionError(Text("Nobody waits for an answer about more time."))
        if granted_s:
            self._clocks.grant(granted_s)
        self._asked = structs.replace(
            asked,
            answer="granted" if granted_s else "refused",
            answered_by=by,
            granted_s=granted_s,
            comment=comment,
        )
