"""QEMU's VNC server, as far as it shows that the display is there."""

import asyncio
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.texts import Text


async def wait_for_display(socket: Path, *, timeout_s: float) -> str:
    """Wait until QEMU's VNC server answers on `socket`, and return its RFB version.

    The server's first message is 12 bytes, ``RFB 003.008`` and a newline; "003.008" is returned.

    Raises:
        VmError: No greeting within `timeout_s` seconds.

    Source: RFC 6143, section 7.1.1.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    reader, writer = await asyncio.open_unix_connection(str(socket))
                except (FileNotFoundError, ConnectionRefusedError):
                    # bind() makes the file before listen() accepts: a refused connection means "not yet".
                    await asyncio.sleep(0.02)
                    continue
                try:
                    greeting = await reader.readexactly(12)
                finally:
                    writer.close()
                return greeting[4:11].decode("ascii", "replace")
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as exc:
        raise VmError(
            Text("The machine's display did not answer within {timeout_s} s.", timeout_s=timeout_s)
        ) from exc
