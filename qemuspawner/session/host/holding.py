"""A lease that is kept: written to in time, and while it was not, the session's QEMU stands still.

Two threads, as the storage may hang for minutes: one writes, and the other only looks at the clock. Nothing
is logged here, as the log may lie on that storage too.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from qemuspawner.errors import SessionError
from qemuspawner.session.host.lease import Lease, LeaseLostError, now_s
from qemuspawner.texts import Text

# Of a lease's time: written to so often, and the clock looked at.
_RENEWALS = 6
_LOOKS = 60
_MOST_LOOK_S = 0.5
# A thread that waits for the storage is left to it.
_CLOSE_S = 2

# "lapsed": not written to in time, so that another host may have taken over; "lost": one has.
Hold = Literal["held", "lapsed", "lost"]


class Holding:
    """One session's, from when it has its directory until it gives it back; also a context manager."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._lease_s = lease.lease_s
        self._renewed_at = now_s()
        self._hold: Hold = "held"
        self._is_wanted = False
        self._mutex = threading.Lock()
        self._closed = threading.Event()
        self._freeze: Callable[[], None] = _nothing
        self._thaw: Callable[[], None] = _nothing
        self._tell: Callable[[], None] = _nothing
        self._writer = threading.Thread(target=self._write, name="lease", daemon=True)
        self._watch = threading.Thread(target=self._look, name="lease-watch", daemon=True)

    @property
    def hold(self) -> Hold:
        return self._hold

    @property
    def is_wanted(self) -> bool:
        """Whether another start waits for this session's end."""
        return self._is_wanted

    def check(self) -> None:
        """Raise SessionError where the directory may be another host's by now."""
        if self._hold != "held":
            raise SessionError(
                Text("The desktop's storage did not answer for too long while it started."),
                hint=Text("Try again."),
            )

    def heed(self, *, freeze: Callable[[], None], thaw: Callable[[], None], tell: Callable[[], None]) -> None:
        """Whom to call from now on, from threads: to stop QEMU, to let it go on, and of each change."""
        with self._mutex:
            self._freeze, self._thaw, self._tell = freeze, thaw, tell
        tell()

    def __enter__(self) -> "Holding":
        self._writer.start()
        self._watch.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._closed.set()
        with self._mutex:
            self._freeze = self._thaw = self._tell = _nothing
        self._writer.join(_CLOSE_S)
        self._watch.join(_CLOSE_S)

    def _write(self) -> None:
        while not self._closed.wait(self._lease_s / _RENEWALS):
            begun = now_s()
            try:
                # What has begun in time and was long under way is as good as late.
                if self._hold == "held":
                    self._lease.renew()
                else:
                    self._lease.resume()
                    self._go_on(begun)
                self._note_renewed(begun)
                is_wanted = self._lease.is_wanted()
            except LeaseLostError:
                self._become("lost")
                return
            except OSError:
                continue
            if is_wanted and not self._is_wanted:
                self._is_wanted = True
                self._tell()

    def _note_renewed(self, begun: float) -> None:
        with self._mutex:
            if self._hold == "held":
                self._renewed_at = begun

    def _go_on(self, begun: float) -> None:
        with self._mutex:
            if now_s() - begun < self._lease_s:
                self._renewed_at, self._hold = begun, "held"
                self._thaw()
        self._tell()

    def _look(self) -> None:
        while not self._closed.wait(min(_MOST_LOOK_S, self._lease_s / _LOOKS)):
            with self._mutex:
                lapses = self._hold == "held" and now_s() - self._renewed_at >= self._lease_s
                if lapses:
                    self._hold = "lapsed"
                if self._hold != "held":
                    # A VM may have been started since.
                    self._freeze()
            if lapses:
                self._tell()

    def _become(self, hold: Hold) -> None:
        with self._mutex:
            self._hold = hold
            self._freeze()
        self._tell()


def _nothing() -> None:
    """Before anybody heeds it."""
