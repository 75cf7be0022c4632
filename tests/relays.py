"""A relay behind a web server, and bare sockets to it, which send what no proper client does."""

import asyncio
import base64
import os
import socket
import ssl
import struct
from collections.abc import Mapping

from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.websocket import accept_websocket

GREETING = rfb.VERSION + b"\x01\x00"  # no security, and nobody else is to be there
_SERVER_INIT = 24  # bytes, and a name


class Served:
    """A relay behind a Tornado server; the path says who comes: /ROLE/NAME."""

    def __init__(self, relay: Relay, tls: ssl.SSLContext | None = None) -> None:
        self.relay = relay
        listening, self.port = bind_unused_port()
        routes = web.Application([(r"/(\w+)/(\w+)", self._handler())])
        self.server = httpserver.HTTPServer(routes, ssl_options=tls)
        self.server.add_sockets([listening])

    def _handler(self) -> type[web.RequestHandler]:
        relay = self.relay

        class Handler(web.RequestHandler):
            async def get(self, role: str, name: str) -> None:
                websocket = await accept_websocket(self)
                allowed = rfb.VIEW if role == "view" else rfb.CONTROL
                await relay.serve(websocket, Viewer(name=name, allowed=allowed, is_owner=role == "owner"))

        return Handler


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    head = bytes([opcode | (0x80 if fin else 0)])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack(">BH", bit | 126, len(payload))
    else:
        head += struct.pack(">BQ", bit | 127, len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Bare:
    """A socket past its websocket handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self, *, timeout_s: float | None = 20) -> tuple[int, bytes]:
        """The next frame's opcode and payload."""
        async with asyncio.timeout(timeout_s):
            first, second = await self.reader.readexactly(2)
            size = second
            if second == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif second == 127:
                (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
            return first & 15, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """The code of the close frame, past whatever comes before it."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")

    async def greet(self) -> None:
        """All of RFB's handshake at once, before the relay has said a word."""
        self.writer.write(frame(2, GREETING))
        while True:
            opcode, payload = await self.frame()
            assert opcode == 2, payload
            if len(payload) >= _SERVER_INIT:
                return


async def open_websocket(
    port: int,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    receive_buffer: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Bare:
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(
        sock=connection, limit=16 * 1024, ssl=tls, server_hostname="localhost" if tls else None
    )
    writer.write(upgrade(path, headers or {}))
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return Bare(reader, writer)


def upgrade(path: str, headers: Mapping[str, str]) -> bytes:
    """The request that opens a websocket for RFB."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: x",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Protocol: binary",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join((*lines, "", "")).encode()


async def open_bare(
    served: Served,
    path: str = "/owner/alice",
    *,
    receive_buffer: int = 0,
    tls: ssl.SSLContext | None = None,
) -> Bare:
    """A viewer past RFB's greeting."""
    bare = await open_websocket(served.port, path, receive_buffer=receive_buffer, tls=tls)
    await bare.greet()
    return bare
