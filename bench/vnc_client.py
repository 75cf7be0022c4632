"""A small VNC client, from RFC 6143, on QEMU's own unix socket or a websocket: whole frames, and keys."""

import asyncio
import contextlib
import struct
from pathlib import Path
from typing import Protocol

import aiohttp

_RAW, _NEW_SIZE = 0, -223


class Writer(Protocol):
    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class VncClient:
    """Connected and past the handshake; use as an async context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.size = (0, 0)
        self._picture = bytearray()

    async def connect(self) -> tuple[asyncio.StreamReader, Writer]:
        while True:
            try:
                return await asyncio.open_unix_connection(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.002)

    async def __aenter__(self) -> "VncClient":
        self._reader, self._writer = await self.connect()
        await self._reader.readexactly(12)
        self._writer.write(b"RFB 003.008\n")
        (count,) = await self._reader.readexactly(1)
        await self._reader.readexactly(count)
        self._writer.write(b"\x01")
        await self._reader.readexactly(4)
        self._writer.write(b"\x01")
        width, height, _, length = struct.unpack(">HH16sI", await self._reader.readexactly(24))
        self.size = (width, height)
        await self._reader.readexactly(length)
        # 32 bits a pixel, raw encoding, and a word when the screen has another size.
        self._writer.write(struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self._writer.write(struct.pack(">BxHii", 2, 2, _RAW, _NEW_SIZE))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def frame(self) -> bytes:
        """The whole screen, 4 bytes a pixel: blue, green, red, and one that says nothing."""
        while True:
            size = self.size
            self._ask(incremental=False)
            self._picture = bytearray(size[0] * size[1] * 4)
            missing = size[0] * size[1]
            while missing > 0 and self.size == size:
                missing -= await self._update()
            if self.size == size:
                return bytes(self._picture)

    async def next_frame(self) -> bytes:
        """The whole screen, once something on it has changed since the frame before."""
        self._ask(incremental=True)
        size = self.size
        await self._update()
        return bytes(self._picture) if self.size == size else await self.frame()

    async def press_and_wait(self, key: int) -> None:
        """Press a key, and wait until something on the screen has changed."""
        self._ask(incremental=True)
        for down in (1, 0):
            self._writer.write(struct.pack(">BBxxI", 4, down, key))
        await self._update()

    def _ask(self, *, incremental: bool) -> None:
        self._writer.write(struct.pack(">BBHHHH", 3, incremental, 0, 0, *self.size))

    async def _update(self) -> int:
        """Read one update into the picture, if there is one; how many pixels it had."""
        kind, _, count = struct.unpack(">BBH", await self._reader.readexactly(4))
        assert kind == 0
        pixels = 0
        for _ in range(count):
            left, top, width, height, encoding = struct.unpack(">HHHHi", await self._reader.readexactly(12))
            if encoding == _NEW_SIZE:
                self.size = (width, height)
                continue
            assert encoding == _RAW
            data = await self._reader.readexactly(width * height * 4)
            pixels += width * height
            if len(self._picture) == self.size[0] * self.size[1] * 4:
                for row in range(height):
                    offset = ((top + row) * self.size[0] + left) * 4
                    self._picture[offset : offset + width * 4] = data[row * width * 4 : (row + 1) * width * 4]
        return pixels


class WebVncClient(VncClient):
    """The same on an open websocket, which carries the bytes in pieces of any size."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._websocket = socket
        self.size = (0, 0)
        self._picture = bytearray()

    async def connect(self) -> tuple[asyncio.StreamReader, Writer]:
        reader = asyncio.StreamReader()
        return reader, _WebSocketWriter(self._websocket, reader)

    async def __aenter__(self) -> "WebVncClient":
        try:
            await super().__aenter__()
        except BaseException:
            # Nobody calls `__aexit__` of what was not entered.
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._websocket.close()


class _WebSocketWriter:
    """Sends in the order of the calls, and feeds the reader with what comes back."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, reader: asyncio.StreamReader) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(self._send(socket)),
            asyncio.create_task(self._receive(socket, reader)),
        ]

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await socket.send_bytes(await self._queue.get())

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse, reader: asyncio.StreamReader) -> None:
        async for message in socket:
            reader.feed_data(message.data)
        reader.feed_eof()

    def write(self, data: bytes) -> None:
        self._queue.put_nowait(data)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
