"""Websocket frames, held against wsproto's reading of the same bytes."""

import itertools
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from qemuspawner.session.screen import frames
from qemuspawner.session.screen.frames import MAX_MESSAGE_BYTES, FrameReader, WebSocketError


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"") -> bytes:
    """A browser's frame."""
    mask = mask or os.urandom(4)
    head = bytes([opcode | (0x80 if fin else 0)])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack(">BH", 0xFE, len(payload))
    else:
        head += struct.pack(">BQ", 0xFF, len(payload))
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def read(stream: bytes, cuts: list[int] = []) -> tuple[bytes, int, bytes | None]:  # noqa: B006
    """The payload, the code that ended it (0: none, -1: the peer's farewell), and the newest ping."""
    reader = FrameReader()
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    payload = b""
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        piece = stream[start:end]
        try:
            payload += reader.feed(memoryview(piece) if number % 2 else piece)
        except WebSocketError as error:
            assert error.reason
            return payload, error.code, reader.ping
        assert len(reader._held) <= 131
        if reader.closed:
            return payload, -1, reader.ping
    return payload, 0, reader.ping


def read_with_wsproto(stream: bytes) -> tuple[bytes, int, bytes | None]:
    """The same by wsproto, byte by byte: what comes before an error is delivered."""
    connection = Connection(ConnectionType.SERVER)
    payload, ping, size = b"", None, 0
    for at in range(len(stream)):
        connection.receive_data(stream[at : at + 1])
        for event in connection.events():
            match event:
                case Ping():
                    ping = bytes(event.payload)
                case Pong():
                    pass
                case TextMessage():
                    return payload, 1003, ping
                case BytesMessage():
                    payload += bytes(event.data)
                    size = 0 if event.message_finished else size + len(event.data)
                case CloseConnection():
                    failed = connection.state.name == "OPEN"
                    return payload, int(event.code) if failed else -1, ping
    return payload, 0, ping


_masks = st.binary(min_size=4, max_size=4)
_frames = st.one_of(
    st.builds(frame, st.just(2), st.binary(max_size=200), mask=_masks),
    st.builds(frame, st.just(2), st.binary(max_size=20), fin=st.just(False), mask=_masks),
    st.builds(frame, st.just(0), st.binary(max_size=20), fin=st.booleans(), mask=_masks),
    st.builds(frame, st.sampled_from([9, 10]), st.binary(max_size=125), mask=_masks),
)
_farewells = st.one_of(
    st.just(b""),
    st.builds(
        lambda code, reason: frame(8, struct.pack(">H", code) + reason.encode()),
        st.integers(0, 5000),
        st.text(max_size=20),
    ),
    st.builds(frame, st.just(8), st.binary(max_size=4), mask=_masks),
)
_streams = st.builds(lambda parts, end: b"".join(parts) + end, st.lists(_frames, max_size=6), _farewells)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A stream of frames with some bytes changed."""
    stream = bytearray(draw(_streams))
    for _ in range(draw(st.integers(0, 4))):
        if stream:
            stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


_cuts = st.lists(st.integers(0, 800), max_size=12)


@given(stream=st.one_of(_streams, _mutated(), st.binary(max_size=60)), cuts=_cuts)
@settings(max_examples=2000, deadline=None)
def test_any_stream_is_read_as_wsproto_reads_it(stream: bytes, cuts: list[int]) -> None:
    """In whatever pieces: the same payload, the same end. Text and long messages we refuse, it does not."""
    payload, code, ping = read(stream, cuts)
    expected, expected_code, expected_ping = read_with_wsproto(stream)
    if code != expected_code and 0 in (code, expected_code):
        # One of the two wants to see more of a frame before it finds fault with it.
        payload, code, ping = read(stream + bytes(150), cuts)
        expected, expected_code, expected_ping = read_with_wsproto(stream + bytes(150))

    if 1003 in (code, expected_code) or code == 1009:
        assert expected.startswith(payload)
        return
    assert code == expected_code
    # With an error what came in the same piece before it is of no use any more.
    assert expected.startswith(payload)
    assert code > 0 or (payload, ping) == (expected, expected_ping)


@given(payload=st.binary(max_size=70_000), cuts=_cuts)
@settings(max_examples=200, deadline=None)
def test_a_long_message_passes_as_it_comes(payload: bytes, cuts: list[int]) -> None:
    """Unmasked right at any cut."""
    assert read(frame(2, payload), cuts) == (payload, 0, None)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"\x82\x05hello", 1002),  # no mask
        (b"\xc2\x85", 1002),  # compressed, which was not negotiated
        (b"\x82\xfe\x00\x7d" + bytes(4), 1002),  # a length of 125 in two bytes
        (b"\x82\xff" + (65535).to_bytes(8, "big") + bytes(4), 1002),
        (b"\x82\xff" + (2**63).to_bytes(8, "big") + bytes(4), 1009),
        (b"\x89\xfe\x00\x7e" + bytes(4), 1002),  # a long control frame
        (frame(9, fin=False), 1002),
        (frame(0, b"x"), 1002),
        (frame(2, b"x", fin=False) + frame(2, b"y"), 1002),
        (frame(3), 1002),
        (frame(11), 1002),
        (frame(1, b"x"), 1003),
        (frame(8, b"x"), 1002),
        (frame(8, struct.pack(">H", 999)), 1002),
        (frame(8, struct.pack(">H", 1005)), 1002),
        (frame(8, struct.pack(">H", 1000) + b"\xff"), 1007),
        (frame(2, bytes(MAX_MESSAGE_BYTES + 1)), 1009),
        (frame(2, bytes(MAX_MESSAGE_BYTES), fin=False) + frame(0, b"x"), 1009),
    ],
    # Masks are random, and the processes that run the tests have to give each the same name.
    ids=[
        "no mask",
        "compressed",
        "125 in two bytes",
        "65535 in eight",
        "no length",
        "long control",
        "control in parts",
        "continuation",
        "begun twice",
        "opcode 3",
        "opcode 11",
        "text",
        "half a code",
        "code 999",
        "code 1005",
        "no text",
        "too long",
        "too long in parts",
    ],
)
def test_what_is_no_frame_of_ours_is_refused(stream: bytes, code: int) -> None:
    """In one piece as byte by byte where it is short."""
    assert read(stream)[1] == code
    if len(stream) < 100:
        assert read(stream, list(range(len(stream))))[1] == code


def test_nothing_is_read_after_a_farewell() -> None:
    """Whatever it is."""
    reader = FrameReader()

    assert reader.feed(frame(2, b"a") + frame(8) + frame(2, b"b")) == b"a"
    assert reader.feed(frame(1, b"c")) == b""
    assert reader.closed


@given(code=st.sampled_from([1000, 4001, 4429]), reason=st.text(max_size=300), size=st.integers(0, 70_000))
@settings(max_examples=200, deadline=None)
def test_what_we_send_is_understood(code: int, reason: str, size: int) -> None:
    """A message, a pong, a ping and a farewell, by wsproto as a browser."""
    browser = Connection(ConnectionType.CLIENT)
    sent = (
        frames.header(size) + bytes(size) + frames.ping() + frames.pong(b"hi") + frames.farewell(code, reason)
    )

    browser.receive_data(sent)
    events = list(browser.events())

    message = b"".join(bytes(event.data) for event in events if isinstance(event, BytesMessage))
    assert len(message) == size
    assert [type(event) for event in events[-3:]] == [Ping, Pong, CloseConnection]
    assert events[-1].code == code
    said = events[-1].reason or ""
    assert said == reason or (said.endswith("…") and reason.startswith(said.removesuffix("…")))


def test_a_reason_that_is_too_long_ends_after_a_whole_word() -> None:
    """Translations are longer than what they translate."""
    said = frames.cut_reason("Der Desktop wurde heruntergefahren. " * 5)

    assert said.endswith(("Der…", "Desktop…", "wurde…", "heruntergefahren.…"))
    assert 100 < len(said.encode()) <= 123
    assert frames.cut_reason("Er ist weg.") == "Er ist weg."
