"""The desktop's sound: a VNC connection of the session's own while somebody listens, a websocket for each.

QEMU sends sound between pictures; on a connection without pictures it waits for none. The first message on a
listener's websocket says in JSON what follows: pieces of sound as QEMU sends them, about one in 10 ms, and an
empty message where the guest has stopped playing. Who does not take it loses the oldest, and holds up nobody.
"""

import asyncio
import json
import logging
from collections import deque
from pathlib import Path

from qemuspawner.qemu.command import SOUND_RATE_HZ
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.desktop import DesktopError, connect_desktop
from qemuspawner.session.screen.visitors import (
    CloseCode,
    Farewell,
    Visitor,
    cancel,
    farewell_for,
    first_end,
    make_room,
    watch,
)
from qemuspawner.session.screen.websocket import WebSocket
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

_CHANNELS = 2
_BYTES_PER_S = SOUND_RATE_HZ * _CHANNELS * 2
# What is older than this nobody wants to hear.
_BACKLOG_BYTES = _BYTES_PER_S // 4
_BACKLOG_PIECES = 100

FORMAT = json.dumps({"format": "s16le", "channels": _CHANNELS, "rate_hz": SOUND_RATE_HZ}).encode()


class Sound:
    """All who hear one session's desktop."""

    def __init__(self, *, session_id: str, vnc_socket: Path) -> None:
        """Nothing is opened before a listener comes."""
        self._session_id = session_id
        self._vnc_socket = vnc_socket
        self._links: list[_Link] = []  # oldest first
        self._hearing: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        return len(self._links)

    async def serve(self, websocket: WebSocket, listener: Visitor) -> None:
        """Let somebody hear the desktop until either side ends, and close the websocket.

        Raises nothing: why it ended goes to the listener and the log.
        """
        present = [link.listener for link in self._links if not link.listener.dismissed]
        if refusal := make_room(listener, present):
            await websocket.close(refusal.code, refusal.reason)
            return
        link = _Link(websocket, listener)
        self._links.append(link)
        if self._hearing is None or self._hearing.done():
            self._hearing = asyncio.create_task(self._hear())
        log.info("%s: %s listens to the desktop", self._session_id, listener.name)
        try:
            end = await link.run()
            log.info("%s: %s listens no more: %d %s", self._session_id, listener.name, end.code, end.reason)
        finally:
            websocket.abort()
            self._links.remove(link)
            link.gone.set()
            if not self._links and self._hearing is not None:
                self._hearing.cancel()
                self._hearing = None

    async def close_all(self, code: int, reason: str) -> None:
        """Send every listener away; returns when all are gone, a stalled one after two seconds."""
        links = list(self._links)
        for link in links:
            link.listener.dismiss(code, reason)
        await asyncio.gather(*(link.gone.wait() for link in links))

    async def _hear(self) -> None:
        """Hand what the guest plays to all listeners, until cancelled or the desktop is gone."""
        try:
            await self._relay()
        except Exception as exc:
            # What is wrong with QEMU's stream is no fault of the listeners.
            fault = DesktopError(str(exc)) if isinstance(exc, rfb.RfbError) else exc
            end = farewell_for(fault)
            log.info("%s: the desktop's sound ends: %s", self._session_id, end.reason)
            for link in self._links:
                link.listener.dismiss(end.code, end.reason)

    async def _relay(self) -> None:
        with await connect_desktop(self._vnc_socket) as desktop:
            await desktop.send(rfb.start_sound(rate_hz=SOUND_RATE_HZ, channels=_CHANNELS))
            messages = rfb.SoundMessages()
            data = desktop.early
            while True:
                for piece in messages.feed(data):
                    for link in self._links:
                        link.offer(piece)
                data = await desktop.receive()


class _Link:
    """One listener's websocket, and what he has not taken yet."""

    def __init__(self, websocket: WebSocket, listener: Visitor) -> None:
        self.listener = listener
        self.gone = asyncio.Event()
        self._websocket = websocket
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._arrived = asyncio.Event()

    def offer(self, piece: bytes) -> None:
        """Keep a piece until it is taken, or too old."""
        self._backlog.append(piece)
        self._backlog_bytes += len(piece)
        while self._backlog_bytes > _BACKLOG_BYTES or len(self._backlog) > _BACKLOG_PIECES:
            self._backlog_bytes -= len(self._backlog.popleft())
        self._arrived.set()

    async def run(self) -> Farewell:
        """Play until one side ends or the listener is dismissed, say goodbye, and return why."""
        playing = asyncio.create_task(self._play())
        others = [asyncio.create_task(self._await_leave()), asyncio.create_task(watch(self._websocket))]
        try:
            farewell = await first_end(self.listener, playing, *others)
            assert farewell is not None, "each of the three ends by raising"
            await cancel(*others)
            # Still playing: the close frame follows the frame that is being sent, it does not cut it.
            await self._websocket.close(farewell.code, farewell.reason)
        finally:
            await cancel(playing, *others)
        return farewell

    async def _play(self) -> None:
        await self._websocket.send(memoryview(FORMAT))
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._backlog:
                piece = self._backlog.popleft()
                self._backlog_bytes -= len(piece)
                await self._websocket.send(memoryview(piece))

    async def _await_leave(self) -> None:
        if await self._websocket.receive():
            raise Farewell(CloseCode.MALFORMED, Text("Who listens has nothing to send."))
        raise Farewell(CloseCode.NORMAL)
