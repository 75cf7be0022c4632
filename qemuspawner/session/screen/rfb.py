"""RFB, the protocol of VNC, as the relay between a viewer and QEMU must know it. Pure: bytes in, bytes out.

The relay ends both handshakes itself, so what a viewer says in its own never reaches QEMU. Of what
follows, the server's bytes pass unread. The viewer's are cut into messages, and each message is forwarded
or dropped by its kind: QEMU's VNC server has no view-only mode and lets a client throw out all others.

Lengths are certain only while no extension changes them, so SetEncodings is cut to those that do not.

Sources: RFC 6143; the RFB community wiki's rfbproto.rst for the extensions.
"""

import enum
import struct
from collections.abc import Generator, Iterable
from typing import Generic, NamedTuple, TypeVar

VERSION = b"RFB 003.008\n"
MAX_CLIPBOARD_BYTES = 256 * 1024
MAX_DESKTOP_PIXELS = 8192  # on a side
MAX_ENCODINGS = 256
MAX_HELD_KEYS = 64

_NO_SECURITY = 1
_EXTENDED_CLIPBOARD = struct.unpack(">i", b"\xc0\xa1\xe5\xce")[0]
EXTENDED_KEY = -258
SOUND = -259
MAX_SOUND_BYTES = 64 * 1024

_ENCODINGS = frozenset({
    0, 1, 2, 5, 6, 7, 16, -260,  # raw, copy, RRE, hextile, zlib, tight, ZRLE, tight PNG
    *range(-32, -22),  # JPEG quality
    *range(-256, -246),  # compression
    -223, -224, -308,  # the desktop's size, last rectangle, size with screens (makes 251 possible)
    -239, -314, 0x574D5664,  # the pointer's shape
    EXTENDED_KEY, -261,  # QEMU: scan codes, keyboard lights
})  # fmt: skip


class RfbError(Exception):
    """The stream is not what RFB allows here; the text is one sentence for the log and the other side."""


class Kind(enum.Enum):
    """What a viewer's message does; the unit of what a viewer may."""

    DISPLAY = "display"  # asks for pictures and says in which form: whoever may look may send it
    INPUT = "input"  # keys and pointer
    COPY_IN = "copy in"  # text for the guest's clipboard
    COPY_OUT = "copy out"  # asks for the text of the guest's clipboard
    RESIZE = "resize"  # another size of the guest's desktop
    POWER = "power"  # QEMU's shut down and reset by VNC

    __hash__ = object.__hash__  # members are single; Enum's own hashes a name, in Python, for every message


VIEW = frozenset({Kind.DISPLAY})
# Power has a route of its own, where a person confirms and the log says who it was.
CONTROL = frozenset({Kind.DISPLAY, Kind.INPUT, Kind.COPY_IN, Kind.COPY_OUT, Kind.RESIZE})
_CLIPBOARD = frozenset({Kind.COPY_IN, Kind.COPY_OUT})


class Forward(NamedTuple):
    """What came of a piece of a viewer's stream."""

    data: bytes  # for QEMU
    by_person: bool  # a key, the pointer or a copied text was in it: somebody is there
    copied_in: int = 0  # bytes of text for the guest's clipboard, packed or not
    copied_out: bool = False  # the guest's text was asked for


class ViewerMessages:
    """A viewer's stream after the handshake, filtered by the kinds this viewer may send.

    Holds at most one message that is not yet whole (4 KiB); clipboard text passes through as it comes. What
    is allowed may change at any time, by `allow`.
    """

    def __init__(self, allowed: frozenset[Kind]) -> None:
        self._allowed = allowed
        self._pending = b""  # the beginning of a message
        self._text_left = 0  # bytes of clipboard text still to come
        self._text_passes = False
        self._encodings: bytes | None = None  # the viewer's last SetEncodings, uncut
        self._held: dict[bytes, bytes] = {}  # keys that are down -> the message that releases one
        self._buttons = b""  # the pointer with its buttons up again, while one is down

    def allow(self, kinds: frozenset[Kind]) -> bytes:
        """Allow these kinds from now on; returns what QEMU has to be told.

        Who loses the keyboard holds no key down in the guest; who loses the clipboard is told of it no more.
        """
        lost, changed = self._allowed - kinds, self._allowed ^ kinds
        self._allowed = kinds
        out = b""
        if self._text_left and self._text_passes and (Kind.COPY_IN in lost or Kind.INPUT in lost):
            # QEMU waits for the rest of a text that it must not have any more, and reads nothing else before.
            out = bytes(self._text_left)
            self._text_passes = False
        if Kind.INPUT in lost:
            out += self.release()
        if (
            changed & _CLIPBOARD
            and self._encodings is not None
            and not (self._text_left and self._text_passes)
        ):
            out += self._cut(self._encodings)
        return out

    def release(self) -> bytes:
        """What lets go of every key and button that is down."""
        out = b"".join(self._held.values()) + self._buttons
        self._held.clear()
        self._buttons = b""
        return out

    def feed(self, data: bytes) -> Forward:
        """Take the next bytes of the stream, cut anywhere.

        Raises:
            RfbError: A message that is unknown, too long or impossible. The stream is of no use then.
        """
        if self._pending:
            data = self._pending + data
        passed: list[bytes] = []
        by_person = copied_out = False
        copied_in = 0
        at, end = 0, len(data)
        uncopied = 0  # from here up to `at` all passes as it is; copied once for a whole run of messages
        while at < end:
            start = at
            if self._text_left:
                at += min(self._text_left, end - at)
                self._text_left -= at - start
                if not self._text_passes:
                    passed.append(data[uncopied:start])
                    uncopied = at
                continue
            code = data[at]
            size = _FIXED_SIZES.get(code) or message_size(data, at)
            if size is None or at + size > end:
                break
            at += size
            message = data[start:at]
            passes = self._passes(message)
            if passes and code in _AS_THEY_ARE:
                by_person |= code in _INPUTS
                continue
            passed.append(data[uncopied:start])
            uncopied = at
            if code == 6:
                self._text_left = abs(_text_length(message)) - (size - 8)
                self._text_passes = passes
            elif code == 2:
                self._encodings = message
            if passes:
                passed.append(self._cut(message))
                by_person |= _is_by_person(message)
                copied_in += _copied_in(message)
                copied_out |= _copies_out(message)
        passed.append(data[uncopied:at])
        self._pending = data[at:]
        return Forward(data=b"".join(passed), by_person=by_person, copied_in=copied_in, copied_out=copied_out)

    def _passes(self, message: bytes) -> bool:
        """Whether this viewer may send it, be it only the head of a text; notes the keys that are down."""
        if message[0] == 6:
            return bool(_clipboard_kinds(message) & self._allowed)
        kind = message_kind(message[0])
        if kind not in self._allowed:
            return False
        return kind is not Kind.INPUT or self._note_held(message)

    def _note_held(self, message: bytes) -> bool:
        """Remember what is pressed; False for one key more than anybody has fingers for."""
        if message[0] == 5:
            self._buttons = message[:1] + b"\0" + message[2:] if message[1] else b""
            return True
        if message[0] == 4:
            key, is_down, up = message[4:], message[1] != 0, message[:1] + b"\0" + message[2:]
        else:
            key, is_down, up = message[8:], message[2:4] != bytes(2), message[:2] + bytes(2) + message[4:]
        if not is_down:
            self._held.pop(key, None)
        elif len(self._held) < MAX_HELD_KEYS or key in self._held:
            self._held[key] = up
        else:
            return False
        return True

    def _cut(self, message: bytes) -> bytes:
        """The message as QEMU may have it."""
        if message[0] == 2:
            offered = struct.unpack(f">{(len(message) - 4) // 4}i", message[4:])
            # Without this encoding QEMU tells a client nothing of the guest's clipboard either.
            extra = {_EXTENDED_CLIPBOARD} if self._allowed & _CLIPBOARD else set()
            return set_encodings(code for code in offered if code in _ENCODINGS or code in extra)
        if message[0] == 251:
            width, height, screens = struct.unpack_from(">HHB", message, 2)
            sane = screens == 1 and 0 < width <= MAX_DESKTOP_PIXELS and 0 < height <= MAX_DESKTOP_PIXELS
            return message if sane else b""
        return message


_KINDS = {
    0: Kind.DISPLAY,  # SetPixelFormat
    2: Kind.DISPLAY,  # SetEncodings
    3: Kind.DISPLAY,  # FramebufferUpdateRequest
    4: Kind.INPUT,  # KeyEvent
    5: Kind.INPUT,  # PointerEvent
    6: Kind.COPY_IN,  # ClientCutText; the extended form may be COPY_OUT
    250: Kind.POWER,  # XVP
    251: Kind.RESIZE,  # SetDesktopSize
    255: Kind.INPUT,  # QEMU: extended key event
}
_FIXED_SIZES = {0: 20, 3: 10, 4: 8, 5: 6, 250: 4}
_INPUTS = frozenset({4, 5, 255})
_AS_THEY_ARE = frozenset({0, 3, 250}) | _INPUTS  # where they pass at all


def message_kind(code: int) -> Kind:
    """Raises RfbError for a message we do not know, as its length cannot be known either."""
    try:
        return _KINDS[code]
    except KeyError:
        raise RfbError(f"Message type {code} is unknown.") from None


def message_size(data: bytes, at: int = 0) -> int | None:
    """Bytes of the message at `at`, of clipboard text the head only; None while that cannot be told yet.

    Raises:
        RfbError: The message is unknown or its length is out of bounds.
    """
    code = data[at]
    message_kind(code)
    if code in _FIXED_SIZES:
        return _FIXED_SIZES[code]
    available = len(data) - at
    if code == 2:
        if available < 4:
            return None
        count = int.from_bytes(data[at + 2 : at + 4], "big")
        if count > MAX_ENCODINGS:
            raise RfbError(f"SetEncodings lists {count} encodings; at most {MAX_ENCODINGS} are read.")
        return 4 + 4 * count
    if code == 6:
        return _text_head_size(data, at) if available >= 8 else None
    if code == 251:
        return 8 + 16 * data[at + 6] if available >= 7 else None
    if available < 2:
        return None
    if data[at + 1] != 0:
        raise RfbError(f"QEMU message {data[at + 1]} is unknown.")
    return 12


def _text_length(message: bytes, at: int = 0) -> int:
    """A clipboard message's length field: negative marks the extended form."""
    return int.from_bytes(message[at + 4 : at + 8], "big", signed=True)


def _text_head_size(data: bytes, at: int) -> int:
    length = _text_length(data, at)
    if abs(length) > MAX_CLIPBOARD_BYTES:
        raise RfbError(f"A clipboard text has {abs(length)} bytes; at most {MAX_CLIPBOARD_BYTES} are read.")
    if -4 < length < 0:
        raise RfbError("An extended clipboard message is shorter than its flags.")
    # The extended form's flags belong to the head: they tell a person's copy from the browser's bookkeeping.
    return 12 if length < 0 else 8


# What an extended clipboard message does: one of these, only that _CAPS lists the others beside itself.
_CAPS, _REQUEST, _PEEK, _NOTIFY, _PROVIDE = (1 << bit for bit in range(24, 29))


def _clipboard_kinds(message: bytes) -> frozenset[Kind]:
    """The kinds of which one must be allowed for the clipboard message with this head."""
    if len(message) == 8:
        return frozenset({Kind.COPY_IN})
    flags = int.from_bytes(message[8:12], "big")
    if flags & _CAPS:
        return _CLIPBOARD
    return frozenset({Kind.COPY_OUT if flags & (_REQUEST | _PEEK) else Kind.COPY_IN})


def _is_by_person(message: bytes) -> bool:
    """Whether somebody did something, as against a page that answers the guest by itself."""
    if message[0] != 6:
        return message[0] in _INPUTS
    return len(message) == 8 or int.from_bytes(message[8:12], "big") & (_CAPS | _NOTIFY) == _NOTIFY


def _copied_in(message: bytes) -> int:
    """Bytes of text that a message, of which this is the head, brings to the guest."""
    if message[0] != 6 or (len(message) == 12 and not int.from_bytes(message[8:12], "big") & _PROVIDE):
        return 0
    return abs(_text_length(message)) - (len(message) - 8)


def _copies_out(message: bytes) -> bool:
    """Whether it asks for the text of the guest's clipboard."""
    return (
        message[0] == 6
        and len(message) == 12
        and int.from_bytes(message[8:12], "big") & (_CAPS | _REQUEST) == _REQUEST
    )


def set_encodings(encodings: Iterable[int]) -> bytes:
    codes = list(encodings)
    return struct.pack(f">BxH{len(codes)}i", 2, len(codes), *codes)


def size_of(head: bytes) -> tuple[int, int]:
    """Width and height from the head of a ServerInit."""
    width, height = struct.unpack_from(">HH", head)
    return width, height


def set_desktop_size(*, width: int, height: int) -> bytes:
    """The message for one screen of this size, in pixels."""
    screen = struct.pack(">IHHHHI", 0, 0, 0, width, height, 0)
    return struct.pack(">BxHHBx", 251, width, height, 1) + screen


def extended_key(*, keysym: int, scan_code: int, down: bool) -> bytes:
    """QEMU's key event: what counts is the scan code (set 1, as in the `xt` table)."""
    return struct.pack(">BBHII", 255, 0, down, keysym, scan_code)


# Sound, QEMU's extension: its messages are of type 255 and kind 1, in both directions.

_SIGNED_16_BITS = 3
_END, _DATA = 0, 2  # between them, 1: it begins
_HEAD_SIZES = {0: 4, 1: 6, 2: 1, 3: 8}  # framebuffer update, colour map, bell, clipboard


def start_sound(*, rate_hz: int, channels: int) -> bytes:
    """Asks for what the guest plays and for nothing else, as signed 16 bits in the host's byte order."""
    form = struct.pack(">BBHBBI", 255, 1, 2, _SIGNED_16_BITS, channels, rate_hz)
    return set_encodings([SOUND]) + form + struct.pack(">BBH", 255, 1, 0)


class SoundMessages:
    """QEMU's stream on a connection that has sent `start_sound` and no request for pictures.

    Holds at most one message that is not yet whole (64 KiB); a clipboard's text is thrown away as it comes.
    """

    def __init__(self) -> None:
        self._pending = b""  # the beginning of a message
        self._rectangles_left = 0  # of a framebuffer update
        self._skip = 0  # bytes of no use that are still to come

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream, cut anywhere; returns pieces of sound, b"" where it ends.

        Raises:
            RfbError: A message that is unknown or too long, or a picture. The stream is of no use then.
        """
        data = self._pending + data
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            if self._skip:
                size = min(self._skip, len(data) - at)
                self._skip -= size
                at += size
                continue
            head = self._size(data, at)
            if head is None or at + head > len(data):
                break
            pieces += self._take(data[at : at + head])
            at += head
        self._pending = data[at:]
        return pieces

    def _size(self, data: bytes, at: int) -> int | None:
        """Bytes of the message at `at`, of what is skipped the head only; None while that cannot be told."""
        if self._rectangles_left:
            return 12
        if data[at] in _HEAD_SIZES:
            return _HEAD_SIZES[data[at]]
        if data[at] != 255:
            raise RfbError(f"The desktop's message type {data[at]} is unknown.")
        if len(data) - at < 4:
            return None
        kind, operation = struct.unpack_from(">BH", data, at + 1)
        if kind != 1 or operation > _DATA:
            raise RfbError(f"The desktop's QEMU message {kind}/{operation} is unknown.")
        if operation != _DATA:
            return 4
        if len(data) - at < 8:
            return None
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        if size > MAX_SOUND_BYTES:
            raise RfbError(f"A piece of sound has {size} bytes; at most {MAX_SOUND_BYTES} are read.")
        return 8 + size

    def _take(self, message: bytes) -> list[bytes]:
        """The sound in a message."""
        if self._rectangles_left:
            self._rectangles_left -= 1
            encoding = int.from_bytes(message[8:12], "big", signed=True)
            if encoding != SOUND:  # which has no data: QEMU says that it knows the extension
                raise RfbError(f"The desktop sent a picture (encoding {encoding}) that nobody asked for.")
            return []
        match message[0]:
            case 0:
                self._rectangles_left = int.from_bytes(message[2:4], "big")
            case 1:
                self._skip = 6 * int.from_bytes(message[4:6], "big")
            case 3:
                self._skip = abs(_text_length(message))
            case 255 if message[3] == _END:
                return [b""]
            case 255 if len(message) > 8:
                return [message[8:]]
        return []


def pointer_event(*, x: int, y: int, buttons: int) -> bytes:
    """The pointer, and which buttons are down: 1 left, 2 middle, 4 right, 8 wheel up, 16 wheel down."""
    return struct.pack(">BBHH", 5, buttons, x, y)


def update_request(*, incremental: bool, width: int, height: int) -> bytes:
    """Ask for the upper left part of the screen: at once, or (as QEMU takes it) for whatever changes next."""
    return struct.pack(">BBHHHH", 3, incremental, 0, 0, width, height)


# Handshakes. Each is a generator that yields (bytes to send, count of bytes to read next), is sent those
# bytes, and returns its result: straight to read, and still without I/O.

_T = TypeVar("_T")
Steps = Generator[tuple[bytes, int], bytes, _T]


class Handshake(Generic[_T]):
    """Runs the steps of a handshake over a stream that arrives in pieces cut anywhere."""

    def __init__(self, steps: Steps[_T]) -> None:
        self._steps = steps
        self._pending = b""
        self._result: list[_T] = []
        self.opening, self._wanted = next(steps)  # what to send before anything arrives

    @property
    def done(self) -> bool:
        return bool(self._result)

    @property
    def result(self) -> _T:
        return self._result[0]

    @property
    def rest(self) -> bytes:
        """What arrived after the handshake's last byte."""
        return self._pending

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and return what to send; raises RfbError where the other side errs."""
        self._pending += data
        answer = b""
        while not self.done and len(self._pending) >= self._wanted:
            piece, self._pending = self._pending[: self._wanted], self._pending[self._wanted :]
            try:
                send, self._wanted = self._steps.send(piece)
            except StopIteration as end:
                self._result.append(end.value)
            else:
                answer += send
        return answer


def greet_desktop() -> Steps[bytes]:
    """The handshake with QEMU; returns the 20 bytes of size and pixel format from its ServerInit.

    Always shared: a connection that is not throws out all others. No security: the socket lies in a
    directory that only the session's own account may enter.
    """
    version = yield b"", 12
    if version != VERSION:
        raise RfbError(f"The desktop's RFB version is {version!r}, not {VERSION!r}.")
    (count,) = yield VERSION, 1
    if not count:
        raise RfbError(f"The desktop refuses: {(yield from _reason())}.")
    offered = yield b"", count
    if _NO_SECURITY not in offered:
        raise RfbError(f"The desktop asks for a login (RFB security types {list(offered)}).")
    refused = yield bytes([_NO_SECURITY]), 4
    if any(refused):
        raise RfbError(f"The desktop refuses: {(yield from _reason())}.")
    head = yield b"\x01", 24
    name_size = int.from_bytes(head[20:], "big")
    if name_size > 4096:
        raise RfbError(f"The desktop's name has {name_size} bytes.")
    if name_size:
        yield b"", name_size
    return head[:20]


def _reason() -> Steps[str]:
    size = int.from_bytes((yield b"", 4), "big")
    text = (yield b"", min(size, 200)) if size else b"no reason given"
    return text.decode("utf-8", "replace").rstrip(".")


def greet_viewer() -> Steps[None]:
    """The handshake with a viewer up to its ClientInit; the ServerInit that follows is `server_init`.

    The viewer's wish to be alone (its shared flag) is not heard.
    """
    version = yield VERSION, 12
    if version != VERSION:
        raise RfbError(f"The viewer's RFB version is {version!r}; only {VERSION!r} is spoken.")
    choice = yield bytes([1, _NO_SECURITY]), 1
    if choice[0] != _NO_SECURITY:
        raise RfbError(f"The viewer chose RFB security type {choice[0]}, which was not offered.")
    yield bytes(4), 1


def server_init(head: bytes, name: str) -> bytes:
    """ServerInit with QEMU's size and pixel format (20 bytes) and our own desktop name."""
    text = "".join(char for char in name if char.isprintable())[:200].encode()
    return head + struct.pack(">I", len(text)) + text
