"""A small VNC client on QEMU's own unix socket, written from RFC 6143: whole frames, and keys."""

import asyncio
import struct
from pathlib import Path

_RAW = 0


class VncClient:
    """Connected and past the handshake; use as an async context manager."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.size = (0, 0)

    async def __aenter__(self) -> "VncClient":
        while True:
            try:
                self._reader, self._writer = await asyncio.open_unix_connection(str(self._socket))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.002)
        await self._reader.readexactly(12)
        self._writer.write(b"RFB 003.008\n")
        (count,) = await self._reader.readexactly(1)
        await self._reader.readexactly(count)
        self._writer.write(b"\x01")
        await self._reader.readexactly(4)
        self._writer.write(b"\x01")
        *self.size, _, length = struct.unpack(">HH16sI", await self._reader.readexactly(24))
        await self._reader.readexactly(length)
        # 32 bits a pixel, raw encoding, nothing else.
        self._writer.write(struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        self._writer.write(struct.pack(">BxHi", 2, 1, _RAW))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def frame(self) -> bytes:
        """The whole screen, 4 bytes a pixel."""
        width, height = self.size
        self._ask(incremental=False)
        picture = bytearray(width * height * 4)
        missing = width * height
        while missing > 0:
            missing -= await self._update(picture)
        return bytes(picture)

    async def press_and_wait(self, key: int) -> None:
        """Press a key, and wait until something on the screen has changed."""
        self._ask(incremental=True)
        for down in (1, 0):
            self._writer.write(struct.pack(">BBxxI", 4, down, key))
        await self._update(None)

    def _ask(self, *, incremental: bool) -> None:
        self._writer.write(struct.pack(">BBHHHH", 3, incremental, 0, 0, *self.size))

    async def _update(self, picture: bytearray | None) -> int:
        """Read one update; how many pixels it had."""
        kind, _, count = struct.unpack(">BBH", await self._reader.readexactly(4))
        assert kind == 0
        pixels = 0
        for _ in range(count):
            left, top, width, height, encoding = struct.unpack(">HHHHi", await self._reader.readexactly(12))
            assert encoding == _RAW
            data = await self._reader.readexactly(width * height * 4)
            pixels += width * height
            if picture is not None:
                for row in range(height):
                    offset = ((top + row) * self.size[0] + left) * 4
                    picture[offset : offset + width * 4] = data[row * width * 4 : (row + 1) * width * 4]
        return pixels
