"""What QEMU's VNC server says to a client of our own: which parts of the screen changed. Bytes in, facts out.

The pixels themselves are passed over: that something changed, where, is what is wanted.

Sources: RFC 6143; the RFB community wiki's rfbproto.rst for the pseudo-encodings.
"""

import struct
from dataclasses import dataclass

from qemuspawner.session.screen import rfb

_RAW = 0
_DESKTOP_SIZE = -223
_POINTER_TYPE = -257

# What a client of ours offers: pixels as they are, since they are thrown away.
ENCODINGS = (_RAW, _DESKTOP_SIZE, _POINTER_TYPE, rfb.EXTENDED_KEY)

_RECT_BYTES = 12
# Heads of FramebufferUpdate, SetColourMapEntries, Bell and ServerCutText.
_HEAD_BYTES = {0: 4, 1: 6, 2: 1, 3: 8}


@dataclass(frozen=True, kw_only=True)
class Rect:
    """A part of the screen, in pixels from its upper left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    def meets(self, other: "Rect") -> "Rect | None":
        """What both have in common."""
        left, top = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        if left >= right or top >= bottom:
            return None
        return Rect(x=left, y=top, width=right - left, height=bottom - top)

    def join(self, other: "Rect") -> "Rect":
        """The smallest that holds both."""
        left, top = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Rect(x=left, y=top, width=right - left, height=bottom - top)


class Updates:
    """The stream behind QEMU's handshake, as it comes in pieces cut anywhere."""

    def __init__(self, head: bytes) -> None:
        """`head` are the 20 bytes of ServerInit."""
        self.width, self.height = struct.unpack_from(">HH", head)
        self.absolute: bool | None = None  # whether the pointer can be put anywhere; None: not told yet
        self._pixel_bytes = head[4] // 8
        self._head = bytearray()  # of the message or rectangle that is coming
        self._skip = 0  # bytes to pass over
        self._rects_left = 0
        self._update: list[Rect] = []  # what has come of it

    @property
    def screen(self) -> Rect:
        return Rect(x=0, y=0, width=self.width, height=self.height)

    def feed(self, data: memoryview) -> list[list[Rect]]:
        """Take the next bytes; the updates that are whole now, each as the parts of the screen in it.

        Raises:
            RfbError: A message that cannot be read; the stream is of no use then.
        """
        updates = []
        at = 0
        while at < len(data):
            if self._skip:
                size = min(self._skip, len(data) - at)
                self._skip -= size
            else:
                size = min(self._head_bytes(data[at]) - len(self._head), len(data) - at)
                self._head += data[at : at + size]
                if len(self._head) == self._head_bytes(self._head[0]):
                    self._take(bytes(self._head))
                    self._head.clear()
            at += size
            if self._update and not self._rects_left and not self._skip:
                updates.append(self._update)
                self._update = []
        return updates

    def _head_bytes(self, first: int) -> int:
        """Of what is coming; `first` is the message's first byte, where it has not come before."""
        if self._rects_left:
            return _RECT_BYTES
        code = self._head[0] if self._head else first
        try:
            return _HEAD_BYTES[code]
        except KeyError:
            raise rfb.RfbError(f"The desktop's message {code} is unknown.") from None

    def _take(self, head: bytes) -> None:
        if self._rects_left:
            self._rects_left -= 1
            self._take_rect(head)
        elif head[0] == 0:
            self._rects_left = int.from_bytes(head[2:], "big")
        elif head[0] == 1:
            self._skip = 6 * int.from_bytes(head[4:], "big")
        elif head[0] == 3:
            self._skip = int.from_bytes(head[4:], "big")

    def _take_rect(self, head: bytes) -> None:
        x, y, width, height, encoding = struct.unpack(">HHHHi", head)
        if encoding == _RAW:
            self._update.append(Rect(x=x, y=y, width=width, height=height))
            self._skip = width * height * self._pixel_bytes
        elif encoding == _DESKTOP_SIZE:
            self.width, self.height = width, height
            self._update.append(self.screen)
        elif encoding == _POINTER_TYPE:
            self.absolute = bool(x)
        elif encoding != rfb.EXTENDED_KEY:
            raise rfb.RfbError(f"The desktop's encoding {encoding} was not asked for.")


class Changes:
    """What changed in one part of the screen since the last `clear`, told from what only flickers.

    The smallest rectangle around all of it counts: a text cursor that blinks for ever is a small one.
    """

    def __init__(self, region: Rect, *, least_px: int) -> None:
        """Below `least_px` pixels a change does not count."""
        self._region = region
        self._least_px = least_px
        self._around: Rect | None = None

    def note(self, rect: Rect) -> None:
        if inside := rect.meets(self._region):
            self._around = self._around.join(inside) if self._around else inside

    @property
    def any(self) -> bool:
        return self._around is not None and self._around.area >= self._least_px

    def clear(self) -> None:
        self._around = None
