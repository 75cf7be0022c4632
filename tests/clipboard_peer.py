"""What shares QEMU's clipboard, as a guest's agent does: a VNC client with the extended clipboard alone.

QEMU passes texts on between all that are connected, so to a page this is the guest's side.
"""

import asyncio
import contextlib
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

_EXTENDED_CLIPBOARD = 0xC0A1E5CE
_TEXT = 1
_CAPS, _REQUEST, _PEEK, _NOTIFY, _PROVIDE = (1 << bit for bit in range(24, 29))


class ClipboardPeer:
    """One client; it takes every text that another one has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._own = b""
        self._taken: asyncio.Queue[bytes] = asyncio.Queue()

    async def greet(self) -> None:
        await self._reader.readexactly(12)
        self._writer.write(b"RFB 003.008\n")
        await self._reader.readexactly((await self._reader.readexactly(1))[0])
        self._writer.write(b"\x01")
        await self._reader.readexactly(4)
        self._writer.write(b"\x01")
        head = await self._reader.readexactly(24)
        await self._reader.readexactly(int.from_bytes(head[20:], "big"))
        self._writer.write(struct.pack(">BxHiI", 2, 2, 0, _EXTENDED_CLIPBOARD))

    def copy(self, text: bytes) -> None:
        """Have a text, and say so: the others ask for it."""
        self._own = text
        self._send(_NOTIFY | _TEXT)

    def empty(self) -> None:
        self._send(_NOTIFY)

    async def take(self) -> bytes:
        """The next text that it gets of the others, in the bytes that come."""
        return await asyncio.wait_for(self._taken.get(), timeout=10)

    def _send(self, flags: int, data: bytes = b"") -> None:
        self._writer.write(struct.pack(">BxxxiI", 6, -4 - len(data), flags) + data)

    async def run(self) -> None:
        """Answer QEMU, and take every text that others have."""
        while True:
            assert (await self._reader.readexactly(1)) == b"\x03", "only its clipboard is asked for"
            (length,) = struct.unpack(">xxxi", await self._reader.readexactly(7))
            assert length < 0
            message = await self._reader.readexactly(-length)
            flags, data = int.from_bytes(message[:4], "big"), message[4:]
            if flags & _CAPS:
                self._send(_CAPS | _REQUEST | _PEEK | _NOTIFY | _PROVIDE | _TEXT, bytes(4))
            elif flags & _NOTIFY and flags & _TEXT:
                self._send(_REQUEST | _TEXT)
            elif flags & _REQUEST:
                self._send(_PROVIDE | _TEXT, zlib.compress(struct.pack(">I", len(self._own)) + self._own))
            elif flags & _PROVIDE:
                plain = zlib.decompressobj().decompress(data)
                self._taken.put_nowait(plain[4 : 4 + int.from_bytes(plain[:4], "big")])


@contextlib.asynccontextmanager
async def clipboard_peer(vnc_socket: Path) -> AsyncIterator[ClipboardPeer]:
    reader, writer = await asyncio.open_unix_connection(vnc_socket)
    peer = ClipboardPeer(reader, writer)
    await peer.greet()
    running = asyncio.create_task(peer.run())
    try:
        yield peer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        writer.close()
