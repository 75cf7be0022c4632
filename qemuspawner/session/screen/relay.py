"""The relay: each viewer's websocket on one side, a VNC connection of its own on the other.

Back-pressure holds both ways: nothing is read from one side before the other has taken the last piece,
so a stalled browser costs one buffer (see `wire`).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.desktop import Desktop, DesktopError, connect_desktop, keep_fresh
from qemuspawner.session.screen.visitors import (
    CloseCode,
    Farewell,
    Visitor,
    cancel,
    first_end,
    make_room,
    watch,
)
from qemuspawner.session.screen.websocket import WebSocket

log = logging.getLogger(__name__)

_GREETING_TIMEOUT_S = 10.0
_LET_GO_TIMEOUT_S = 1.0


class Viewer(Visitor):
    """Who looks at the desktop through one websocket. What reaches the desktop may change at any time."""

    def __init__(self, *, name: str, allowed: frozenset[rfb.Kind], is_owner: bool = False) -> None:
        super().__init__(name=name, is_owner=is_owner)
        self.allowed = allowed  # the kinds of messages that reach the desktop
        self._changed = asyncio.Event()

    def allow(self, kinds: frozenset[rfb.Kind]) -> None:
        """From now on only messages of these kinds reach the desktop."""
        if kinds != self.allowed:
            self.allowed = kinds
            self._changed.set()

    async def wait_for_change(self) -> None:
        """Return when `allow` was called since this returned last."""
        await self._changed.wait()
        self._changed.clear()


class Relay:
    """All viewers of one session's desktop."""

    def __init__(
        self,
        *,
        session_id: str,
        vnc_socket: Path,
        name: str,
        on_forward: Callable[[Viewer, rfb.Forward], None],
        refresh_keepalive_ms: int = 15,
    ) -> None:
        """Nothing is opened before a viewer comes.

        Args:
            session_id: Begins each line of the log.
            vnc_socket: QEMU's VNC server.
            name: What the desktop is called in a VNC client; QEMU's own name is not shown.
            on_forward: Called when a person did something (a key, the pointer, a copied text) or text was
                copied. Pictures asked for and pings answered do not count: an open tab sends them for ever.
            refresh_keepalive_ms: See `keep_fresh`; 0 switches it off.
        """
        self._session_id = session_id
        self._vnc_socket = vnc_socket
        self._name = name
        self._on_forward = on_forward
        self._refresh_interval_s = refresh_keepalive_ms / 1000
        self._links: list[_Link] = []  # oldest first
        self._keeping_fresh: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        return len(self._links)

    @property
    def present(self) -> Sequence[Viewer]:
        """Who looks at the desktop now, and is not on the way out; the longest first."""
        return [link.viewer for link in self._links if not link.viewer.dismissed]

    async def serve(self, websocket: WebSocket, viewer: Viewer) -> None:
        """Show the desktop to a viewer until either side ends, and close the websocket.

        Raises nothing: why it ended goes to the viewer and the log.
        """
        refusal = make_room(viewer, self.present)
        if refusal:
            log.info("%s: %s is refused: %s", self._session_id, viewer.name, refusal.reason)
            await websocket.close(refusal.code, refusal.reason)
            return
        link = _Link(websocket, viewer)
        self._links.append(link)
        self._freshen()
        log.info("%s: %s looks at the desktop", self._session_id, viewer.name)
        try:
            end = await link.run(self._vnc_socket, self._name, self._on_forward)
            log.info("%s: %s left the desktop: %d %s", self._session_id, viewer.name, end.code, end.reason)
        finally:
            websocket.abort()
            self._links.remove(link)
            link.gone.set()
            if not self._links and self._keeping_fresh is not None:
                self._keeping_fresh.cancel()
                self._keeping_fresh = None

    async def close_all(self, code: int, reason: str) -> None:
        """Send every viewer away; returns when all are gone, a stalled one after two seconds."""
        links = list(self._links)
        for link in links:
            link.viewer.dismiss(code, reason)
        await asyncio.gather(*(link.gone.wait() for link in links))

    def _freshen(self) -> None:
        if self._refresh_interval_s and (self._keeping_fresh is None or self._keeping_fresh.done()):
            work = keep_fresh(self._vnc_socket, interval_s=self._refresh_interval_s)
            self._keeping_fresh = asyncio.create_task(work)


class _Link:
    """One viewer's websocket and its connection to the desktop."""

    def __init__(self, websocket: WebSocket, viewer: Viewer) -> None:
        self.viewer = viewer
        self.gone = asyncio.Event()
        self._websocket = websocket

    async def run(
        self, vnc_socket: Path, name: str, on_forward: Callable[[Viewer, rfb.Forward], None]
    ) -> Farewell:
        """Relay until one side ends or the viewer is dismissed, say goodbye, and return why."""
        with ExitStack() as stack:
            opening = asyncio.create_task(self._open(stack, vnc_socket, name))
            farewell = await first_end(self.viewer, opening)
            if farewell is not None:
                await cancel(opening)
                await self._websocket.close(farewell.code, farewell.reason)
                return farewell
            desktop, messages = opening.result()
            showing = desktop.wire.pour(self._websocket.send_piece, into=self._websocket.wire)
            obey = partial(self._obey, desktop, messages, on_forward)
            obeying = self._websocket.pour(obey, into=desktop.wire)
            others = [
                asyncio.create_task(self._adapt(desktop, messages)),
                asyncio.create_task(watch(self._websocket)),
            ]
            try:
                farewell = await first_end(self.viewer, showing, obeying, *others)
                assert farewell is not None, "each of them ends by raising"
                await cancel(*others)
                await self._let_go(desktop, messages)
                await self._websocket.close(farewell.code, farewell.reason)
            finally:
                await cancel(*others)
        return farewell

    async def _open(
        self, stack: ExitStack, vnc_socket: Path, name: str
    ) -> tuple[Desktop, rfb.ViewerMessages]:
        """Shake hands with both sides; the desktop's connection is left on `stack`."""
        desktop = stack.enter_context(await connect_desktop(vnc_socket))
        async with asyncio.timeout(_GREETING_TIMEOUT_S):
            return desktop, await self._greet(desktop, name)

    async def _greet(self, desktop: Desktop, name: str) -> rfb.ViewerMessages:
        handshake = rfb.Handshake(rfb.greet_viewer())
        await self._websocket.send(handshake.opening)
        while not handshake.done:
            data = await self._websocket.receive()
            if not data:
                raise Farewell(CloseCode.NORMAL)
            answer = handshake.feed(data)
            if answer:
                await self._websocket.send(answer)
        await self._websocket.send(rfb.server_init(desktop.head, name) + desktop.early)
        messages = rfb.ViewerMessages(self.viewer.allowed)
        # What came early is the beginning of the first message, or all of it.
        await desktop.send(messages.feed(handshake.rest).data)
        if self._websocket.has_said_goodbye:
            raise Farewell(CloseCode.NORMAL)  # in the same piece: nothing follows by which it would be seen
        return messages

    def _obey(
        self,
        desktop: Desktop,
        messages: rfb.ViewerMessages,
        on_forward: Callable[[Viewer, rfb.Forward], None],
        data: bytes,
    ) -> None:
        """Forward what the viewer may send to the desktop."""
        forward = messages.feed(data)
        if forward.by_person or forward.copied_in or forward.copied_out:
            on_forward(self.viewer, forward)
        if forward.data:
            desktop.wire.write(forward.data)

    async def _adapt(self, desktop: Desktop, messages: rfb.ViewerMessages) -> None:
        """Follow what the viewer may send."""
        while True:
            await desktop.send(messages.allow(self.viewer.allowed))
            await self.viewer.wait_for_change()

    async def _let_go(self, desktop: Desktop, messages: rfb.ViewerMessages) -> None:
        """Nobody who has left holds a key down."""
        with suppress(DesktopError, TimeoutError):
            async with asyncio.timeout(_LET_GO_TIMEOUT_S):
                await desktop.send(messages.allow(frozenset()))
