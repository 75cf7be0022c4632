"""A websocket's server side that copies fast: the handshake belongs to Tornado, the bytes to us.

Tornado's own websocket copies every message three times and has no way to stop its reader. Here one
buffer goes to the socket as it is, behind a header of two to ten bytes, and nothing more is read from
the desktop until the browser took it. What browsers send is small; wsproto reads it.

permessage-deflate is never negotiated: it would compress pictures that are compressed, at 57 MB/s.
"""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import Protocol, cast

from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError
from tornado.web import HTTPError, RequestHandler
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, generate_accept_token

SUBPROTOCOL = "binary"
TICKET_PREFIX = "qs.ticket."
MAX_MESSAGE_BYTES = 256 * 1024

_READ_BYTES = 64 * 1024
# Tornado's streams make new bytes of every write; larger pieces cost page faults.
_TLS_PIECE_BYTES = 64 * 1024
_CLOSE_TIMEOUT_S = 2.0
# A broken connection: ours (OSError), Tornado's (StreamClosedError is an OSError), TLS's.
_LOST = (OSError, ssl.SSLError)


class WebSocketError(Exception):
    """The peer broke the rules of websockets, or ours."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


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
        "Sec-WebSocket-Accept": generate_accept_token(key.encode()).decode(),
        "Sec-WebSocket-Protocol": SUBPROTOCOL,
    }


async def accept_websocket(handler: RequestHandler) -> "WebSocket":
    """Answer a handler's GET with 101 and take its connection over.

    Who may come in is decided before; the handler writes nothing afterwards::

        async def get(self) -> None:
            ...  # login, Origin, offered_ticket(self.request): HTTPError(403) for who must stay out
            websocket = await accept_websocket(self)
            await self.relay.serve(websocket, Viewer(name="alice", role="owner"))

    Raises:
        HTTPError: The request is no websocket handshake.
    """
    headers = upgrade_headers(handler.request)
    handler.set_status(101)
    handler.clear_header("Content-Type")
    for name, value in headers.items():
        handler.set_header(name, value)
    await handler.flush()
    return WebSocket(handler.detach())


class WebSocket:
    """One peer: binary messages out, a stream of bytes in. One task may receive, many may send."""

    def __init__(self, stream: IOStream) -> None:
        """Take over a Tornado stream on which the 101 response has been written."""
        self._frames = Connection(ConnectionType.SERVER)
        self._writing = asyncio.Lock()  # held for a whole frame
        self._message_bytes = 0
        self._silent = False  # after a close frame, or a frame cut off, nothing more may be sent
        self._finished = False  # a close frame went out or came in
        self.heard_at = asyncio.get_running_loop().time()
        self._transport: _Transport
        if isinstance(stream, SSLIOStream) or stream.closed():
            self._transport = _StreamTransport(stream)
        else:
            self._transport = _SocketTransport(stream)

    async def receive(self) -> bytes:
        """The next bytes of binary messages, as they come; b"" once the peer is gone.

        A message's borders mean nothing to us; only its length is checked.

        Raises:
            WebSocketError: The peer sent something else. The caller closes with its code and reason.
        """
        while not self._finished:
            data = await self._read()
            self._frames.receive_data(data or None)
            payload = bytearray()
            for event in self._frames.events():
                payload += await self._take(event)
            if payload:
                return bytes(payload)
        return b""

    async def send(self, payload: memoryview) -> None:
        """Send one binary message and return when the kernel has all of it.

        Raises:
            OSError: The connection is lost.
        """
        size = len(payload)
        if size < 126:
            header = struct.pack(">BB", 0x82, size)
        elif size < 65536:
            header = struct.pack(">BBH", 0x82, 126, size)
        else:
            header = struct.pack(">BBQ", 0x82, 127, size)
        await self._write(header, payload)

    async def ping(self) -> None:
        """Ask the peer for a sign of life; `heard_at` moves when it answers."""
        await self._control(Ping())

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, give the peer a moment to answer, and let go of the connection.

        Nobody may be receiving any more. A frame in the middle of being sent is finished first.
        """
        with suppress(TimeoutError, *_LOST):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._control(CloseConnection(code=code, reason=reason))
                self._silent = True
                # Closed with unread bytes in it, a TCP socket is reset and our close frame lost.
                while self._frames.state is ConnectionState.LOCAL_CLOSING and (data := await self._read()):
                    self._frames.receive_data(data)
                    for _ in self._frames.events():
                        pass
        self.abort()

    def abort(self) -> None:
        """Let go of the connection at once."""
        self._finished = True
        self._transport.close()

    async def _read(self) -> bytes:
        try:
            data = await self._transport.read()
        except _LOST:
            return b""
        self.heard_at = asyncio.get_running_loop().time()
        return data

    async def _take(self, event: Event) -> bytes:
        """Deal with one event; returns what of it is payload."""
        if isinstance(event, BytesMessage):
            self._message_bytes += len(event.data)
            if self._message_bytes > MAX_MESSAGE_BYTES:
                raise WebSocketError(1009, f"A message is longer than {MAX_MESSAGE_BYTES} bytes.")
            if event.message_finished:
                self._message_bytes = 0
            return bytes(event.data)
        if isinstance(event, Ping):
            await self._control(event.response())
        elif isinstance(event, TextMessage):
            raise WebSocketError(1003, "Only binary messages are read.")
        elif isinstance(event, CloseConnection):
            if self._frames.state is ConnectionState.OPEN:  # not the peer's farewell but wsproto's finding
                raise WebSocketError(int(event.code), event.reason or "The websocket protocol was broken.")
            self._finished = True
        return b""

    async def _control(self, event: Event) -> None:
        # What wsproto does not allow in its present state, such as a ping after a close, is not needed then.
        with suppress(LocalProtocolError):
            await self._write(bytes(self._frames.send(event)), memoryview(b""))

    async def _write(self, header: bytes, payload: memoryview) -> None:
        async with self._writing:
            if self._silent:
                raise StreamClosedError
            self._silent = True  # until the whole frame is out, even if this task is cancelled
            await self._transport.write(header, payload)
            self._silent = False


class _Transport(Protocol):
    async def read(self) -> bytes: ...
    async def write(self, header: bytes, payload: memoryview) -> None: ...
    def close(self) -> None: ...


class _SocketTransport:
    """The bare socket of a Tornado stream, without the stream."""

    def __init__(self, stream: IOStream) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = stream.socket.dup()
        self._socket.setblocking(False)
        if self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._early = b""
        with suppress(StreamClosedError):
            # What the stream has read beyond the request's headers comes out at once or not at all.
            while (early := cast(asyncio.Future[bytes], stream.read_bytes(_READ_BYTES, partial=True))).done():
                self._early += early.result()
            early.add_done_callback(asyncio.Future.exception)  # closing the stream makes it one
        stream.close()

    async def read(self) -> bytes:
        if self._early:
            data, self._early = self._early, b""
            return data
        return await self._loop.sock_recv(self._socket, _READ_BYTES)

    async def write(self, header: bytes, payload: memoryview) -> None:
        try:
            sent = self._socket.sendmsg((header, payload))
        except BlockingIOError:
            sent = 0
        if sent < len(header):
            await self._loop.sock_sendall(self._socket, header[sent:])
        rest = payload[max(0, sent - len(header)) :]
        if rest:
            await self._loop.sock_sendall(self._socket, rest)

    def close(self) -> None:
        self._socket.close()


class _StreamTransport:
    """A Tornado stream as it is: TLS between proxy and session (JupyterHub's internal_ssl)."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self._reading: Awaitable[bytes] | None = None
        stream.set_nodelay(True)

    async def read(self) -> bytes:
        # A stream's read cannot be cancelled, only be waited for by the next who reads.
        try:
            if self._reading is None:
                self._reading = self._stream.read_bytes(_READ_BYTES, partial=True)
            data = await asyncio.shield(self._reading)
        except StreamClosedError:
            return b""
        self._reading = None
        return data

    async def write(self, header: bytes, payload: memoryview) -> None:
        first = _TLS_PIECE_BYTES - len(header)
        await self._stream.write(header + payload[:first])
        for at in range(first, len(payload), _TLS_PIECE_BYTES):
            await self._stream.write(payload[at : at + _TLS_PIECE_BYTES])

    def close(self) -> None:
        self._stream.close()
