"""The screen made small, for pages that show many desktops."""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable

from qemuspawner.errors import VmError

# As wide as a card of the hub's home page on a screen of twice the pixels would be too much to send so often.
_WIDTH_PX = 320
_HEIGHT_PX = 240
_QUALITY = 75
# The screens that QEMU draws are far smaller; a picture is decoded whole.
_MAX_PX = 1 << 25
# However many look on, the guest's screen is read so often.
_GOOD_FOR_S = 1.0


class Thumbnails:
    """Small pictures of one desktop's screen, made when somebody asks for them."""

    def __init__(self, screenshot: Callable[[], Awaitable[bytes]]) -> None:
        self._screenshot = screenshot
        self._lock = asyncio.Lock()
        self._newest = b""
        self._made_at = float("-inf")

    async def newest(self) -> bytes:
        """A JPEG of at most 320x240 pixels that is not older than a second.

        Raises:
            VmError: There is no screen.
        """
        async with self._lock:
            if time.monotonic() - self._made_at > _GOOD_FOR_S:
                self._newest = await asyncio.to_thread(shrink, await self._screenshot())
                self._made_at = time.monotonic()
            return self._newest


def shrink(png: bytes) -> bytes:
    """A screenshot as a small JPEG. Raises VmError where it is none."""
    # It costs 30 ms to import, and many sessions are never asked.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
            if picture.width * picture.height > _MAX_PX:
                raise VmError(f"The screen of {picture.width}x{picture.height} pixels is too large.")
            small = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise VmError("The screen cannot be read.") from exc
    small.thumbnail((_WIDTH_PX, _HEIGHT_PX))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=_QUALITY)
    return jpeg.getvalue()
