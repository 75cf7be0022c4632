"""Those who came by a websocket, to see or to hear: room for them, signs of life, and the farewell."""

import asyncio
import logging
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.desktop import DesktopError
from qemuspawner.session.screen.websocket import WebSocket, WebSocketError
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# Of each kind, viewers as listeners. QEMU throws out the 33rd connection: a viewer has one, all listeners
# together one, and `keep_fresh` another.
MAX_VISITORS = 24
MAX_VISITORS_PER_PERSON = 2

_PING_EVERY_S = 20.0
_DEAD_AFTER_S = 60.0


class CloseCode(IntEnum):
    """Why a session closed a websocket; session.js and sound.js know the same numbers."""

    NORMAL = 1000
    ENDED = 4001  # the session is over
    ASLEEP = 4002  # it is suspended, and can be woken
    MALFORMED = 4400
    WITHDRAWN = 4403  # the viewer may no longer see this desktop
    REPLACED = 4409  # the same person opened the desktop once more
    AWAY = 4410  # the owner has left, and nobody may stay without
    FULL = 4429  # too many viewers
    UNREACHABLE = 4503  # the desktop does not answer


class Farewell(Exception):  # noqa: N818
    """Ends a websocket with a close code and a reason; a way out more often than an error."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Visitor:
    """Who came by one websocket, until they are sent away."""

    def __init__(self, *, name: str, is_owner: bool = False) -> None:
        self.name = name
        self.is_owner = is_owner
        self.dismissal: asyncio.Future[Farewell] = asyncio.get_running_loop().create_future()

    @property
    def dismissed(self) -> bool:
        return self.dismissal.done()

    def dismiss(self, code: int, reason: str) -> None:
        """Send the visitor away; the first reason counts."""
        if not self.dismissed:
            self.dismissal.set_result(Farewell(code, reason))


def make_room(visitor: Visitor, present: Sequence[Visitor]) -> Farewell | None:
    """Dismiss who of `present`, the longest first, has to go for `visitor`; or the answer that refuses."""
    own = [other for other in present if other.name == visitor.name]
    if len(own) >= MAX_VISITORS_PER_PERSON:
        own[0].dismiss(CloseCode.REPLACED, Text("The desktop was opened in another window."))
    elif len(present) >= MAX_VISITORS:
        guests = [other for other in present if not other.is_owner]
        if not visitor.is_owner or not guests:
            return Farewell(
                CloseCode.FULL,
                Text("{max_visitors} viewers look at this desktop already.", max_visitors=MAX_VISITORS),
            )
        guests[0].dismiss(CloseCode.FULL, Text("The owner came and the desktop was full."))
    return None


def farewell_for(error: BaseException) -> Farewell:
    """What to tell somebody whose websocket ended with `error`."""
    match error:
        case Farewell():
            return error
        case rfb.RfbError():
            return Farewell(CloseCode.MALFORMED, str(error))
        case WebSocketError():
            return Farewell(error.code, error.reason)
        case DesktopError():
            return Farewell(CloseCode.UNREACHABLE, str(error))
        case TimeoutError():
            return Farewell(CloseCode.NORMAL, Text("the viewer did not answer in time"))
        case OSError():
            return Farewell(CloseCode.NORMAL, Text("the connection was lost"))
    log.error("The relay failed", exc_info=error)
    return Farewell(1011, Text("The relay failed; the log has the detail."))


async def first_end(visitor: Visitor, *tasks: asyncio.Future[Any]) -> Farewell | None:
    """Wait for the first task to end, or the visitor's dismissal; None if the task just returned."""
    try:
        await asyncio.wait([*tasks, visitor.dismissal], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        await cancel(*tasks)
        raise
    if visitor.dismissed:
        return visitor.dismissal.result()
    error = next(task for task in tasks if task.done()).exception()
    return farewell_for(error) if error else None


async def watch(websocket: WebSocket) -> None:
    """Ask for signs of life until there are none."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_PING_EVERY_S)
        silent_s = loop.time() - websocket.heard_at
        if silent_s > _DEAD_AFTER_S:
            raise Farewell(CloseCode.NORMAL, Text("nothing was heard for {silent_s} s", silent_s=silent_s))
        # A viewer that takes nothing holds the ping up too; by then it is as good as dead.
        async with asyncio.timeout(_DEAD_AFTER_S):
            await websocket.ping()


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
