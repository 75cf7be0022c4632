"""What viewers send: messages of RFB as its descriptions have them, streams of them, and whatever else."""

import itertools
import struct

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from qemuspawner.session.screen import rfb

SET_PIXEL_FORMAT = bytes(4) + struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
UPDATE_REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 640, 480)
KEY = struct.pack(">BBxxI", 4, 1, 0x61)
POINTER = struct.pack(">BBHH", 5, 1, 10, 20)
CUT_TEXT = struct.pack(">BxxxI", 6, 5) + b"hello"
EXTENDED_KEY = rfb.extended_key(keysym=0x61, scan_code=0x1E, down=True)
POWER_OFF = bytes([250, 0, 1, 2])
EXTENDED_CLIPBOARD = struct.unpack(">i", b"\xc0\xa1\xe5\xce")[0]

NOTIFY, REQUEST = 1 << 27, 1 << 25


def set_desktop_size(width: int, height: int, screens: int = 1) -> bytes:
    return struct.pack(">BxHHBx", 251, width, height, screens) + bytes(16 * screens)


def extended_clipboard(flags: int, data: bytes = b"") -> bytes:
    return struct.pack(">BxxxiI", 6, -(4 + len(data)), flags | 1) + data


def encodings_of(message: bytes) -> list[int]:
    (count,) = struct.unpack_from(">H", message, 2)
    return list(struct.unpack_from(f">{count}i", message, 4))


def split(stream: bytes) -> list[bytes]:
    """A stream of whole messages as a list, by an independent reading of the lengths."""
    messages, at = [], 0
    while at < len(stream):
        match stream[at]:
            case 0:
                size = 20
            case 2:
                size = 4 + 4 * struct.unpack_from(">H", stream, at + 2)[0]
            case 3:
                size = 10
            case 4:
                size = 8
            case 5:
                size = 6
            case 6:
                size = 8 + abs(struct.unpack_from(">i", stream, at + 4)[0])
            case 251:
                size = 8 + 16 * stream[at + 6]
            case 255:
                size = 12
            case other:
                raise AssertionError(f"message type {other} was forwarded")
        messages.append(stream[at : at + size])
        at += size
    return messages  # fmt: skip


# Random streams.

messages = st.one_of(
    st.sampled_from([SET_PIXEL_FORMAT, UPDATE_REQUEST, KEY, POINTER, EXTENDED_KEY, POWER_OFF]),
    st.lists(st.integers(-400, 400), max_size=256).map(rfb.set_encodings),
    st.binary(max_size=300).map(lambda text: struct.pack(">BxxxI", 6, len(text)) + text),
    st.builds(extended_clipboard, st.integers(0, 2**31), st.binary(max_size=300)),
    st.builds(set_desktop_size, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255)),
)
valid = st.lists(messages, max_size=12).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid stream with some bytes changed."""
    stream = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 6))):
        if stream:
            stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


streams = st.one_of(valid, mutated(), st.binary(max_size=400))


def feed_in_pieces(stream: bytes, cuts: list[int], allowed: frozenset[rfb.Kind]) -> tuple[bytes, str]:
    """What was forwarded, and the error that ended it ("" for none)."""
    messages = rfb.ViewerMessages(allowed)
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out = b""
    try:
        for start, end in itertools.pairwise(borders):
            out += messages.feed(stream[start:end]).data
            assert len(messages._pending) <= 8 + 16 * 255
    except rfb.RfbError as error:
        return out, str(error)
    return out, ""


# The types of messages that are of a kind.
TYPES = {
    rfb.Kind.DISPLAY: {0, 2, 3},
    rfb.Kind.INPUT: {4, 5, 255},
    rfb.Kind.COPY_IN: {6},
    rfb.Kind.COPY_OUT: {6},
    rfb.Kind.RESIZE: {251},
    rfb.Kind.POWER: {250},
}
roles = st.one_of(
    st.sampled_from([rfb.VIEW, rfb.CONTROL]),
    st.frozensets(st.sampled_from([kind for kind in rfb.Kind if kind is not rfb.Kind.POWER])),
)


def draw(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """So many different ones, for what cannot be a function of each."""
    drawn = []

    @given(strategy)
    @settings(
        max_examples=count, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def keep(value: bytes) -> None:
        drawn.append(value)

    keep()
    return drawn
