"""A connection to QEMU's VNC server, past its handshake."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from qemuspawner.session import rfb

# While QEMU restores a template its main loop answers nobody.
CONNECT_TIMEOUT_S = 10.0

_DRAIN_BYTES = 4096

# QEMU drops the release of a key that was never pressed, so nothing reaches the guest; F24 is on no keyboard.
_HARMLESS = rfb.extended_key(keysym=0xFFD5, scan_code=0x76, down=False)


class DesktopError(Exception):
    """The desktop cannot be reached; the text is one sentence for the log."""


class Desktop:
    """An open connection to the desktop; a context manager that closes it."""

    def __init__(self, connection: socket.socket, head: bytes, early: bytes) -> None:
        self._socket = connection
        self.head = head  # 20 bytes of ServerInit: size and pixel format
        self.early = early  # what arrived behind the handshake
        self.in_order = True  # no message was cut off half-way

    async def receive_into(self, buffer: memoryview) -> int:
        """Fill `buffer` with what QEMU sent, at least one byte; raises DesktopError at the end."""
        try:
            size = await asyncio.get_running_loop().sock_recv_into(self._socket, buffer)
        except OSError as exc:
            raise DesktopError(f"The desktop's connection was lost: {exc}.") from exc
        if not size:
            raise DesktopError("The desktop ended the connection.")
        return size

    async def send(self, data: bytes) -> None:
        """Return when QEMU's socket has taken all of it; raises DesktopError where it cannot."""
        self.in_order = False  # until all is out, even if this task is cancelled
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, data)
        except OSError as exc:
            raise DesktopError(f"The desktop's connection was lost: {exc}.") from exc
        self.in_order = True

    def drain(self) -> None:
        """Throw away what QEMU sent; raises DesktopError at the end."""
        with suppress(BlockingIOError):
            if not self._socket.recv(_DRAIN_BYTES):
                raise DesktopError("The desktop ended the connection.")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Desktop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def connect_desktop(vnc_socket: Path) -> Desktop:
    """Connect to QEMU and shake hands.

    Raises:
        DesktopError: Nobody listens, or something else than a desktop does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await _shake_hands(connection, str(vnc_socket))
    except BaseException as exc:
        connection.close()
        if isinstance(exc, TimeoutError):
            raise DesktopError(f"The desktop did not answer within {CONNECT_TIMEOUT_S:g} s.") from exc
        if isinstance(exc, (OSError, rfb.RfbError)):
            raise DesktopError(f"The desktop cannot be reached: {exc}") from exc
        raise


async def _shake_hands(connection: socket.socket, address: str) -> Desktop:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, address)
    handshake = rfb.Handshake(rfb.greet_desktop())
    while not handshake.done:
        data = await loop.sock_recv(connection, 4096)
        if not data:
            raise ConnectionResetError("it closed the connection during the handshake.")
        await loop.sock_sendall(connection, handshake.feed(data))
    return Desktop(connection, handshake.result, handshake.rest)


async def keep_fresh(vnc_socket: Path, *, interval_s: float) -> None:
    """Keep QEMU from slowing its screen down, until cancelled or the desktop is gone.

    QEMU looks at the guest's screen every 30 ms and adds 50 ms for each look that finds nothing, up to 3 s.
    A key's effect is missed by the look that the key itself causes, and so is seen after 80 ms at best. Any
    message from any client sets the interval back to 30 ms: one that does nothing, sent all the time on a
    connection of our own, takes a key's way to the screen from 92 to 28 ms. It costs 1 % of a core.

    Source: QEMU's ui/vnc.c, vnc_refresh and protocol_client_msg; measured with 7.2.
    """
    with suppress(DesktopError, OSError), await connect_desktop(vnc_socket) as desktop:
        await desktop.send(rfb.set_encodings([rfb.EXTENDED_KEY]))
        while True:
            await desktop.send(_HARMLESS)
            await asyncio.sleep(interval_s)
            desktop.drain()
