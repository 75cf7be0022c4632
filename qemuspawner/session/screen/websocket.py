"""A websocket's server side that copies fast: the handshake belongs to Tornado, the bytes to us.

Tornado's own websocket copies every message three times and has no way to stop its reader. Here one
buffer goes to the socket as it is, behind a header of two to ten bytes, and nothing more is read from
the desktop until the browser took it.

permessage-deflate is never negotiated: it would compress pictures that are compressed, at 57 MB/s.
"""

import asyncio
import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.web import HTTPError, RequestHandler

from qemuspawner.session.screen import frames
from qemuspawner.session.screen.frames import WebSocketError
from qemuspawner.session.screen.wire import HEADROOM, StreamTransport, Wire

__all__ = ["WebSocket", "WebSocketError", "accept_websocket", "offered_ticket"]

SUBPROTOCOL = "binary"
TICKET_PREFIX = "qs.ticket."

# What a browser sends is parsed in one go, and meanwhile nobody else is served. Two copies of it stay below
# what makes glibc give memory back and fetch it again.
_READ_BYTES = 48 * 1024
_SHORT_BYTES = 4096
_CLOSE_TIMEOUT_S = 2.0
_KEY_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 4.2.2


def offered_subprotocols(request: HTTPServerRequest) -> list[str]:
    """What the browser listed in `new WebSocket(url, [...])`."""
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    return [name.strip() for name in offered.split(",") if name.strip()]


def offered_ticket(request: HTTPServerRequest) -> str | None:
    """The one-use ticket, which travels as the subprotocol `qs.ticket.T`: in no URL, so in no log."""
    for name in offered_subprotocols(request):
        if name.startswith(TICKET_PREFIX):
            return name.removeprefix(TICKET_PREFIX)
    return None


def upgrade_headers(request: HTTPServerRequest) -> dict[str, str]:
    """The headers that accept this request as a websocket; raises HTTPError where it is none.

    Only `binary` is ever selected: a ticket must not come back in a response.
    """
    headers = request.headers
    connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in connection:
        raise HTTPError(426, reason="A websocket is expected here")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise HTTPError(426, reason="Only version 13 of websockets is spoken")
    key = headers.get("Sec-WebSocket-Key", "")
    if not key.isascii() or not 16 <= len(key) <= 64:
        raise HTTPError(400, reason="Sec-WebSocket-Key is not a key")
    if SUBPROTOCOL not in offered_subprotocols(request):
        raise HTTPError(400, reason="The websocket subprotocol 'binary' is not offered")
    return {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": _accept_token(key),
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
    }


def _accept_token(key: str) -> str:
    digest = hashlib.sha1(key.encode() + _KEY_SUFFIX, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


async def accept_websocket(handler: RequestHandler, *, say: Callable[[str], str] = str) -> "WebSocket":
    """Answer a handler's GET with 101 and take its connection over.

    Who may come in is decided before; the handler writes nothing afterwards::

        async def get(self) -> None:
            ...  # login, Origin, offered_ticket(self.request): HTTPError(403) for who must stay out
            websocket = await accept_websocket(self)
            await self.relay.serve(websocket, Viewer(name="alice", role="owner"))

    `say` turns the reason of a close into the peer's language.

    Raises:
        HTTPError: The request is no websocket handshake.
    """
    headers = upgrade_headers(handler.request)
    handler.set_status(101)
    handler.clear_header("Content-Type")
    for name, value in headers.items():
        handler.set_header(name, value)
    with suppress(StreamClosedError):  # the peer went meanwhile, as it may at any time later
        await handler.flush()
    return await _take_over(handler.detach(), say)


async def _take_over(stream: IOStream, say: Callable[[str], str]) -> "WebSocket":
    """Go on with a Tornado stream on which the 101 response has been written."""
    websocket = WebSocket(say)
    if isinstance(stream, SSLIOStream) or stream.closed():
        StreamTransport(stream, websocket.wire)
        return websocket
    # The bare socket, without the stream; what that one has read beyond the request's headers comes out at
    # once or not at all.
    early = b""
    with suppress(StreamClosedError):
        while (read := cast(asyncio.Future[bytes], stream.read_bytes(_READ_BYTES, partial=True))).done():
            early += read.result()
        read.add_done_callback(asyncio.Future.exception)  # closing the stream makes it one
    if stream.socket is None:  # the peer went meanwhile, and Tornado has noticed in reading
        websocket.abort()
        return websocket
    bare = stream.socket.dup()
    stream.close()
    bare.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: websocket.wire, sock=bare)
    if early:
        websocket.take_early(early)
    return websocket


class WebSocket:
    """One peer: binary messages out, a stream of bytes in."""

    def __init__(self, say: Callable[[str], str] = str) -> None:
        self._say = say
        self.wire = Wire(buffer_bytes=_READ_BYTES)
        self.wire.on_drained = self._pong
        self._frames = frames.FrameReader()
        self._early = b""
        self._is_silent = False  # after a close frame nothing more may be sent

    @property
    def heard_at(self) -> float:
        """When the peer sent something, by the event loop's clock."""
        return self.wire.heard_at

    @property
    def has_said_goodbye(self) -> bool:
        """Whether the peer has sent a close frame, after which it sends nothing."""
        return self._frames.closed

    def take_early(self, data: bytes) -> None:
        """What the peer has sent before the wire was there."""
        self._early = data

    async def receive(self) -> bytes:
        """The next bytes of binary messages, as they come; b"" once the peer is gone.

        A message's borders mean nothing to us; only its length is checked.

        Raises:
            WebSocketError: The peer sent something else. The caller closes with its code and reason.
        """
        while not self._frames.closed:
            data, self._early = self._early or await self.wire.receive(), b""
            if not data:
                break
            if payload := self._read(data):
                return payload
        return b""

    def pour(self, consume: Callable[[bytes], None], into: Wire) -> asyncio.Future[None]:
        """From now on call `consume` with the bytes of binary messages; it writes to `into`.

        What is returned fails with what `consume` raises, with WebSocketError, or with OSError at the end.
        """

        def take(buffer: memoryview, size: int) -> None:
            data = buffer[HEADROOM : HEADROOM + size]
            if payload := self._read(bytes(data) if size < _SHORT_BYTES else data):
                consume(payload)
            if self._frames.closed:
                raise ConnectionResetError("it was closed")

        return self.wire.pour(take, into)

    async def send(self, payload: bytes | memoryview) -> None:
        """Send one binary message and return when the kernel has all of it.

        Raises:
            OSError: The connection is lost.
        """
        if self._is_silent:
            raise StreamClosedError
        self.wire.write(frames.header(len(payload)) + payload)
        await self.wire.drain()

    def send_piece(self, buffer: memoryview, size: int) -> None:
        """Send one binary message that lies in a wire's buffer, with its header before it."""
        if not self._is_silent:
            header = frames.header(size)
            start = HEADROOM - len(header)
            buffer[start:HEADROOM] = header
            self.wire.write(buffer[start : HEADROOM + size])

    async def ping(self) -> None:
        """Ask the peer for a sign of life; `heard_at` moves when it answers."""
        if not self._is_silent:
            self.wire.write(frames.ping())
            await self.wire.drain()

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, give the peer a moment to answer, and let go of the connection.

        Nobody may be receiving any more; pouring ends. What is being sent is finished first.
        """
        if not self._is_silent:
            self.wire.write(frames.farewell(code, self._say(reason)))
            self._is_silent = True
        self.wire.stop_pouring()
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self.wire.drain()
                # Closed with unread bytes in it, a TCP socket is reset and our close frame lost.
                while not self._frames.closed and (data := await self.wire.receive()):
                    with suppress(WebSocketError):
                        self._frames.feed(data)
        self.abort()

    def abort(self) -> None:
        """Let go of the connection at once."""
        self.wire.abort()

    def _read(self, data: bytes | memoryview) -> bytes:
        payload = self._frames.feed(data)
        if self._frames.ping is not None:
            self._pong()
        return payload

    def _pong(self) -> None:
        """Answer the newest ping; while the peer takes nothing, it gets no answers to collect either."""
        payload = self._frames.ping
        if payload is not None and not self.wire.is_full and not self._is_silent:
            self._frames.ping = None
            self.wire.write(frames.pong(payload))
