"""A connection to QEMU's VNC server, past its handshake."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.wire import Wire
from qemuspawner.texts import Text

# While QEMU restores a template its main loop answers nobody.
CONNECT_TIMEOUT_S = 10.0

# Between tries where others wait to be taken, too.
_FULL_PAUSE_S = 0.01

_READ_BYTES = 256 * 1024

# A guest takes a size from when its graphics driver is there, which comes after the first picture.
_SIZE_TRIES = 60
_SIZE_PAUSE_S = 1.0
# Asked again so often: each time the guest's monitor is plugged in anew, which keeps a slow guest busy.
_ASK_EVERY = 5

# QEMU drops the release of a key that was never pressed, so nothing reaches the guest; F24 is on no keyboard.
_HARMLESS = rfb.extended_key(keysym=0xFFD5, scan_code=0x76, down=False)


class DesktopError(Exception):
    """The desktop cannot be reached; the text is one sentence for the log."""


class Desktop:
    """An open connection to the desktop; a context manager that closes it."""

    def __init__(self, wire: Wire, head: bytes, early: bytes) -> None:
        self.wire = wire  # raises DesktopError at its end
        self.head = head  # 20 bytes of ServerInit: size and pixel format
        self.early = early  # what arrived behind the handshake

    async def receive(self) -> bytes:
        """What QEMU sent, at least one byte; raises DesktopError at the end."""
        data = await self.wire.receive()
        if not data:
            raise DesktopError(Text("The desktop ended the connection."))
        return data

    async def send(self, data: bytes) -> None:
        """Return when QEMU's socket has taken all of it; raises DesktopError where it cannot."""
        self.wire.write(data)
        await self.wire.drain()

    def close(self) -> None:
        self.wire.abort()

    def __enter__(self) -> "Desktop":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _describe_end(error: Exception | None) -> DesktopError:
    if error is None:
        return DesktopError(Text("The desktop ended the connection."))
    return DesktopError(Text("The desktop's connection was lost: {error}.", error=error))


async def connect_desktop(vnc_socket: Path) -> Desktop:
    """Connect to QEMU and shake hands.

    Raises:
        DesktopError: Nobody listens, or something else than a desktop does.
    """
    wire = Wire(buffer_bytes=_READ_BYTES, describe_end=_describe_end)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            connection = await _connect(vnc_socket)
            await asyncio.get_running_loop().create_unix_connection(lambda: wire, sock=connection)
            return await _shake_hands(wire)
    except BaseException as exc:
        wire.abort()
        if isinstance(exc, TimeoutError):
            raise DesktopError(
                Text(
                    "The desktop did not answer within {connect_timeout_s} s.",
                    connect_timeout_s=CONNECT_TIMEOUT_S,
                )
            ) from exc
        if isinstance(exc, (OSError, rfb.RfbError)):
            raise DesktopError(Text("The desktop cannot be reached: {exc}", exc=exc)) from exc
        raise


async def _connect(vnc_socket: Path) -> socket.socket:
    """A connection to QEMU, which has room for one that it has not taken yet.

    The next is told to try again, which asyncio's own connecting takes for a connection that is under way.

    Source: QEMU's ui/vnc.c, vnc_display_listen (a backlog of 1); connect(2), EAGAIN.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        while True:
            try:
                connection.connect(str(vnc_socket))
            except BlockingIOError:
                await asyncio.sleep(_FULL_PAUSE_S)
            else:
                return connection
    except BaseException:
        connection.close()
        raise


async def _shake_hands(wire: Wire) -> Desktop:
    handshake = rfb.Handshake(rfb.greet_desktop())
    while not handshake.done:
        data = await wire.receive()
        if not data:
            raise ConnectionResetError("it closed the connection during the handshake.")
        wire.write(handshake.feed(data))
        await wire.drain()
    return Desktop(wire, handshake.result, handshake.rest)


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
        ended = desktop.wire.pour(_ignore, into=desktop.wire)
        while not ended.done():
            await desktop.send(_HARMLESS)
            await asyncio.sleep(interval_s)


async def set_size(vnc_socket: Path, *, width: int, height: int) -> None:
    """Give the guest's screen a size in pixels.

    Raises:
        VmError: It still has another one after a minute.
    """
    has = ""
    for attempt in range(_SIZE_TRIES):
        with suppress(DesktopError), await connect_desktop(vnc_socket) as desktop:
            size = rfb.size_of(desktop.head)
            if size == (width, height):
                return
            has = f" and stays at {size[0]}x{size[1]}"
            if attempt % _ASK_EVERY == 0:
                await desktop.send(rfb.set_desktop_size(width=width, height=height))
        await asyncio.sleep(_SIZE_PAUSE_S)
    raise VmError(f"it does not become {width}x{height}{has}.")


def _ignore(_buffer: memoryview, _size: int) -> None:
    """Some QEMUs answer."""
