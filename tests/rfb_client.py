"""A small VNC client over a websocket, written from RFC 6143 and from nothing of ours."""

import struct
from types import TracebackType

import aiohttp
import hubs
from yarl import URL


class RfbClient:
    """Connected and past the handshake; use as an async context manager."""

    def __init__(self, person: hubs.Person, desktop: URL) -> None:
        self._person = person
        self._url = desktop / "vnc"
        self._bytes = b""
        self.size = (0, 0)
        self.name = ""

    async def __aenter__(self) -> "RfbClient":
        headers = {"Authorization": f"token {self._person.token}"}
        self.websocket = await self._person.http.ws_connect(self._url, protocols=("binary",), headers=headers)
        assert await self._read(12) == b"RFB 003.008\n"
        await self.websocket.send_bytes(b"RFB 003.008\n")
        types = await self._read((await self._read(1))[0])
        assert 1 in types
        await self.websocket.send_bytes(b"\x01")
        assert await self._read(4) == bytes(4)
        await self.websocket.send_bytes(b"\x01")
        width, height = struct.unpack(">HH", await self._read(4))
        await self._read(16)
        (length,) = struct.unpack(">I", await self._read(4))
        self.size, self.name = (width, height), (await self._read(length)).decode()
        # 32 bits a pixel, raw encoding, nothing else.
        await self.websocket.send_bytes(
            struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        )
        await self.websocket.send_bytes(struct.pack(">BxHi", 2, 1, 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.websocket.close()

    async def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Ask for one pixel and wait for it; QEMU sends more around it."""
        await self.websocket.send_bytes(struct.pack(">BBHHHH", 3, 0, x, y, 1, 1))
        while True:
            kind, _, count = struct.unpack(">BBH", await self._read(4))
            assert kind == 0
            found = None
            for _ in range(count):
                left, top, width, height, encoding = struct.unpack(">HHHHi", await self._read(12))
                assert encoding == 0
                pixels = await self._read(width * height * 4)
                if left <= x < left + width and top <= y < top + height:
                    offset = ((y - top) * width + x - left) * 4
                    blue, green, red = pixels[offset : offset + 3]
                    found = (red, green, blue)
            if found:
                return found

    async def press(self, key: int) -> None:
        """Press and release a key, by its X11 number."""
        for down in (1, 0):
            await self.websocket.send_bytes(struct.pack(">BBxxI", 4, down, key))

    async def wait_for_close(self) -> tuple[int | None, str]:
        """Read on until the other side closes; its code and reason."""
        while True:
            message = await self.websocket.receive(timeout=30)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                return self.websocket.close_code, str(message.extra or "")

    async def _read(self, count: int) -> bytes:
        while len(self._bytes) < count:
            self._bytes += await self.websocket.receive_bytes(timeout=30)
        data, self._bytes = self._bytes[:count], self._bytes[count:]
        return data
