"""A VNC server for tests that need QEMU to say what it never says."""

import asyncio
import struct
from contextlib import suppress
from pathlib import Path

from qemuspawner.session.screen import rfb

HEAD = struct.pack(">HH", 640, 480) + bytes(16)


class FakeDesktop:
    """A VNC server that shakes hands and then does what a test says; one connection at a time is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shared_flags: list[int] = []
        self.connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            writer.write(rfb.VERSION)
            assert await reader.readexactly(12) == rfb.VERSION
            writer.write(b"\x01\x01")
            await reader.readexactly(1)
            writer.write(bytes(4))
            self.shared_flags += await reader.readexactly(1)
            writer.write(HEAD + struct.pack(">I", 4) + b"QEMU")
            self.connections.put_nowait((reader, writer))
