"""What of a viewer's RFB reaches the desktop."""

import itertools
import struct

import pytest
from hypothesis import given, settings
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


def forwarded(data: bytes, allowed: frozenset[rfb.Kind] = rfb.CONTROL) -> bytes:
    return rfb.ViewerMessages(allowed).feed(data).data


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


@pytest.mark.parametrize("message", [SET_PIXEL_FORMAT, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT, EXTENDED_KEY])
def test_who_controls_sends_every_ordinary_message(message: bytes) -> None:
    """Unchanged, byte for byte."""
    assert forwarded(message) == message


def test_who_views_sends_only_what_asks_for_pictures() -> None:
    """Everything that acts on the guest is dropped, and what follows it is still understood."""
    stream = SET_PIXEL_FORMAT + KEY + POINTER + CUT_TEXT + EXTENDED_KEY + set_desktop_size(800, 600)
    stream += extended_clipboard(NOTIFY, b"x" * 40) + UPDATE_REQUEST

    assert forwarded(stream, rfb.VIEW) == SET_PIXEL_FORMAT + UPDATE_REQUEST


@pytest.mark.parametrize("kind", rfb.Kind)
def test_a_single_kind_can_be_taken_away(kind: rfb.Kind) -> None:
    """What is left is everything but that kind."""
    stream = UPDATE_REQUEST + KEY + CUT_TEXT + set_desktop_size(800, 600)

    types = {message[0] for message in split(forwarded(stream, rfb.CONTROL - {kind}))}

    lost = {
        rfb.Kind.DISPLAY: {3},
        rfb.Kind.INPUT: {4},
        rfb.Kind.COPY_IN: {6},
        rfb.Kind.COPY_OUT: set[int](),
        rfb.Kind.RESIZE: {251},
        rfb.Kind.POWER: set[int](),
    }
    assert types == {3, 4, 6, 251} - lost[kind]


def test_power_by_vnc_is_dropped_for_everybody() -> None:
    """It has a route of its own, with a confirmation and a name in the log."""
    assert forwarded(POWER_OFF + KEY) == KEY


def test_encodings_that_change_lengths_or_add_messages_are_not_negotiated() -> None:
    """Fence, continuous updates, extended mouse buttons, audio, XVP, desktop name, H.264."""
    wanted = [7, 16, 0, -224, -308, rfb.EXTENDED_KEY, -26, -250, EXTENDED_CLIPBOARD]
    refused = [-312, -313, -316, -259, -309, -307, 50, 12345, -1]

    cut = forwarded(rfb.set_encodings([*refused, *wanted]))

    assert encodings_of(cut) == wanted


def test_who_views_is_told_nothing_of_the_guests_clipboard() -> None:
    """QEMU announces it only to clients that list the encoding."""
    cut = forwarded(rfb.set_encodings([7, EXTENDED_CLIPBOARD]), rfb.VIEW)

    assert encodings_of(cut) == [7]


@pytest.mark.parametrize("size", [(0, 600, 1), (800, 0, 1), (9000, 600, 1), (800, 600, 2), (800, 600, 0)])
def test_an_impossible_size_is_dropped(size: tuple[int, int, int]) -> None:
    """One screen, at most 8192 on a side."""
    assert forwarded(set_desktop_size(*size) + KEY) == KEY


def test_a_long_text_passes_as_it_comes() -> None:
    """The relay holds none of it back."""
    messages = rfb.ViewerMessages(rfb.CONTROL)
    text = bytes(range(256)) * 1024
    head = struct.pack(">BxxxI", 6, len(text))

    pieces = [messages.feed(head + text[:1000]).data, messages.feed(text[1000:]).data]

    assert pieces == [head + text[:1000], text[1000:]]


@pytest.mark.parametrize(
    ("message", "by_person"),
    [
        (KEY, True),
        (POINTER, True),
        (EXTENDED_KEY, True),
        (CUT_TEXT, True),
        (extended_clipboard(NOTIFY), True),
        (extended_clipboard(REQUEST), False),
        (extended_clipboard(1 << 24 | REQUEST | NOTIFY, bytes(4)), False),  # what a page can do, at connect
        (UPDATE_REQUEST, False),
        (SET_PIXEL_FORMAT, False),
        (set_desktop_size(800, 600), False),
    ],
)
def test_only_what_a_person_does_counts_as_input(message: bytes, by_person: bool) -> None:
    """A tab that is merely open asks for pictures, and answers the guest's clipboard, for ever."""
    assert rfb.ViewerMessages(rfb.CONTROL).feed(message).by_person is by_person


def test_what_a_viewer_may_not_send_does_not_count_as_input() -> None:
    """Otherwise a watcher would keep the session alive."""
    assert not rfb.ViewerMessages(rfb.VIEW).feed(KEY + POINTER).by_person


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x07", "Message type 7 is unknown."),
        (b"\xf8" + bytes(20), "Message type 248 is unknown."),
        (b"\xff\x01\x00\x00", "QEMU message 1 is unknown."),
        (b"\x02\x00\x01\x01", "SetEncodings lists 257 encodings; at most 256 are read."),
        (
            struct.pack(">BxxxI", 6, 256 * 1024 + 1),
            "A clipboard text has 262145 bytes; at most 262144 are read.",
        ),
        (
            struct.pack(">Bxxxi", 6, -(2**31)),
            "A clipboard text has 2147483648 bytes; at most 262144 are read.",
        ),
        (struct.pack(">Bxxxi", 6, -3), "An extended clipboard message is shorter than its flags."),
    ],
)
def test_a_malformed_message_is_refused_with_a_reason(stream: bytes, reason: str) -> None:
    """For viewers as for those who control."""
    for allowed in (rfb.VIEW, rfb.CONTROL):
        with pytest.raises(rfb.RfbError) as error:
            rfb.ViewerMessages(allowed).feed(KEY + stream)
        assert str(error.value) == reason


CAPS, PROVIDE, PEEK = 1 << 24, 1 << 28, 1 << 26


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (CUT_TEXT, rfb.Kind.COPY_IN),
        (extended_clipboard(NOTIFY), rfb.Kind.COPY_IN),
        (extended_clipboard(PROVIDE, b"packed"), rfb.Kind.COPY_IN),
        (extended_clipboard(REQUEST), rfb.Kind.COPY_OUT),
        (extended_clipboard(PEEK), rfb.Kind.COPY_OUT),
    ],
)
def test_each_direction_of_the_clipboard_can_be_closed(message: bytes, needed: rfb.Kind) -> None:
    """QEMU gives text only to who asks for it, so that asking is what can be forbidden."""
    assert forwarded(message, frozenset({needed})) == message
    assert forwarded(message, rfb.CONTROL - {needed}) == b""


def test_the_clipboards_abilities_are_told_where_either_direction_is_open() -> None:
    """A message that lists all actions is none of them."""
    message = extended_clipboard(CAPS | REQUEST | NOTIFY | PROVIDE, bytes(4))

    assert forwarded(message, frozenset({rfb.Kind.COPY_IN})) == message
    assert forwarded(message, frozenset({rfb.Kind.COPY_OUT})) == message
    assert forwarded(message, rfb.VIEW) == b""


def test_what_was_copied_is_told_without_its_text() -> None:
    """For the audit log: bytes in, and that text was asked for."""
    messages = rfb.ViewerMessages(rfb.CONTROL)

    taken = messages.feed(extended_clipboard(PROVIDE, b"packed") + CUT_TEXT)
    asked = messages.feed(extended_clipboard(REQUEST))

    assert (taken.copied_in, taken.copied_out) == (len(b"packed") + 5, False)
    assert (asked.copied_in, asked.copied_out) == (0, True)


def test_who_loses_the_keyboard_lets_go_of_every_key_and_button() -> None:
    """Of those that are down, by both kinds of key events."""
    messages = rfb.ViewerMessages(rfb.CONTROL)
    other = struct.pack(">BBxxI", 4, 1, 0x62)
    messages.feed(KEY + EXTENDED_KEY + other + struct.pack(">BBxxI", 4, 0, 0x62) + POINTER)

    said = messages.allow(rfb.VIEW)

    up = [KEY[:1] + b"\0" + KEY[2:], rfb.extended_key(keysym=0x61, scan_code=0x1E, down=False)]
    assert split(said) == [*up, struct.pack(">BBHH", 5, 0, 10, 20)]
    assert messages.allow(frozenset()) == b""


def test_nobody_holds_more_keys_than_a_keyboard_sends() -> None:
    """So that what is remembered is bounded, and all of it can be released."""
    messages = rfb.ViewerMessages(rfb.CONTROL)
    presses = b"".join(struct.pack(">BBxxI", 4, 1, key) for key in range(200))

    assert len(split(messages.feed(presses).data)) == rfb.MAX_HELD_KEYS
    assert len(split(messages.allow(rfb.VIEW))) == rfb.MAX_HELD_KEYS


def test_the_clipboard_comes_and_goes_with_the_role() -> None:
    """QEMU is told the viewer's encodings again, with or without it."""
    messages = rfb.ViewerMessages(rfb.VIEW)
    messages.feed(rfb.set_encodings([7, EXTENDED_CLIPBOARD]))

    given = messages.allow(rfb.CONTROL)
    taken = messages.allow(rfb.VIEW)

    assert encodings_of(given) == [7, EXTENDED_CLIPBOARD]
    assert encodings_of(taken) == [7]


def test_a_text_that_is_cut_off_leaves_the_stream_whole() -> None:
    """QEMU counts its bytes: the rest of it is filled up, and dropped when it comes."""
    messages = rfb.ViewerMessages(rfb.CONTROL)
    stream = messages.feed(CUT_TEXT[:10]).data

    stream += messages.allow(rfb.VIEW)
    stream += messages.feed(CUT_TEXT[10:] + UPDATE_REQUEST).data

    assert split(stream) == [CUT_TEXT[:10] + bytes(3), UPDATE_REQUEST]


# Random streams.

_messages = st.one_of(
    st.sampled_from([SET_PIXEL_FORMAT, UPDATE_REQUEST, KEY, POINTER, EXTENDED_KEY, POWER_OFF]),
    st.lists(st.integers(-400, 400), max_size=256).map(rfb.set_encodings),
    st.binary(max_size=300).map(lambda text: struct.pack(">BxxxI", 6, len(text)) + text),
    st.builds(extended_clipboard, st.integers(0, 2**31), st.binary(max_size=300)),
    st.builds(set_desktop_size, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255)),
)
_valid = st.lists(_messages, max_size=12).map(b"".join)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A valid stream with some bytes changed."""
    stream = bytearray(draw(_valid))
    for _ in range(draw(st.integers(0, 6))):
        if stream:
            stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


_streams = st.one_of(_valid, _mutated(), st.binary(max_size=400))


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


_TYPES = {
    rfb.Kind.DISPLAY: {0, 2, 3},
    rfb.Kind.INPUT: {4, 5, 255},
    rfb.Kind.COPY_IN: {6},
    rfb.Kind.COPY_OUT: {6},
    rfb.Kind.RESIZE: {251},
    rfb.Kind.POWER: {250},
}
_roles = st.one_of(
    st.sampled_from([rfb.VIEW, rfb.CONTROL]),
    st.frozensets(st.sampled_from([kind for kind in rfb.Kind if kind is not rfb.Kind.POWER])),
)


@given(stream=_streams, cuts=st.lists(st.integers(0, 2000), max_size=20), allowed=_roles)
@settings(max_examples=4500, deadline=None)
def test_no_stream_does_what_its_role_forbids(
    stream: bytes, cuts: list[int], allowed: frozenset[rfb.Kind]
) -> None:
    """Whatever a viewer sends, in whatever pieces, only messages of the allowed kinds come out."""
    out, error = feed_in_pieces(stream, cuts, allowed)

    types: set[int] = set().union(*(_TYPES[kind] for kind in allowed))
    whole = [message for message in split(out) if message]
    assert {message[0] for message in whole} <= types
    if not allowed & {rfb.Kind.COPY_IN, rfb.Kind.COPY_OUT}:
        assert all(EXTENDED_CLIPBOARD not in encodings_of(one) for one in whole if one[0] == 2)
    assert error == "" or error.endswith(".")


def read_plainly(stream: bytes, allowed: frozenset[rfb.Kind]) -> bytes:
    """What may pass of a valid stream, byte by byte: no run of messages is ever longer than one."""
    messages = rfb.ViewerMessages(allowed)
    return b"".join(messages.feed(stream[at : at + 1]).data for at in range(len(stream)))


@given(stream=_valid, cuts=st.lists(st.integers(0, 2000), max_size=20), allowed=_roles)
@settings(max_examples=1500, deadline=None)
def test_messages_do_not_touch_each_other(
    stream: bytes, cuts: list[int], allowed: frozenset[rfb.Kind]
) -> None:
    """Runs of messages that pass are copied at once; what comes out is what each alone would give."""
    assert feed_in_pieces(stream, cuts, allowed) == (read_plainly(stream, allowed), "")


@given(stream=_streams, cuts=st.lists(st.integers(0, 2000), max_size=20))
@settings(max_examples=1500, deadline=None)
def test_the_cuts_of_a_stream_change_nothing(stream: bytes, cuts: list[int]) -> None:
    """The same error for any chunking, and the same bytes where there is none."""
    whole, whole_error = feed_in_pieces(stream, [], rfb.CONTROL)
    out, error = feed_in_pieces(stream, cuts, rfb.CONTROL)

    assert error == whole_error
    assert error or out == whole


@given(stream=_valid)
@settings(max_examples=500, deadline=None)
def test_a_valid_stream_is_never_refused(stream: bytes) -> None:
    """And what comes out is a valid stream too."""
    out, error = feed_in_pieces(stream, [], rfb.CONTROL)

    assert error == ""
    assert b"".join(split(out)) == out


@given(
    pieces=st.lists(st.tuples(_streams, st.sets(st.sampled_from(sorted(rfb.CONTROL, key=str)))), max_size=6)
)
@settings(max_examples=1500, deadline=None)
def test_a_role_that_changes_in_the_middle_leaves_the_stream_whole(
    pieces: list[tuple[bytes, set[rfb.Kind]]],
) -> None:
    """What QEMU gets can be read message by message, and in the end nothing acts on the guest."""
    messages = rfb.ViewerMessages(rfb.CONTROL)
    out = b""
    try:
        for stream, kinds in pieces:
            out += messages.feed(stream).data
            out += messages.allow(frozenset(kinds))
        out += messages.allow(rfb.VIEW)
        split(out)
        after = messages.feed(KEY * 40 + POINTER * 40).data
    except rfb.RfbError:
        return
    assert {message[0] for message in split(after)} <= {0, 2, 3}


# Handshakes.

HEAD = struct.pack(">HH", 1280, 800) + bytes(16)


def test_the_handshake_with_qemu_is_shared_and_without_security() -> None:
    """QEMU's own name is read and forgotten; what follows is kept."""
    handshake = rfb.Handshake(rfb.greet_desktop())
    name = b"QEMU (alice)"
    said = b"".join(
        handshake.feed(bytes([byte]))
        for byte in rfb.VERSION + b"\x02\x02\x01" + bytes(4) + HEAD + struct.pack(">I", len(name)) + name
    )

    assert (handshake.opening, said, handshake.result) == (b"", rfb.VERSION + b"\x01\x01", HEAD)


def test_what_follows_a_handshake_is_kept() -> None:
    """The first message may come in the same piece."""
    handshake = rfb.Handshake(rfb.greet_viewer())

    handshake.feed(rfb.VERSION + b"\x01\x00" + KEY)

    assert handshake.rest == KEY


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400", "The desktop's RFB version is b'HTTP/1.1 400', not b'RFB 003.008\\n'."),
        (rfb.VERSION + b"\x00\x00\x00\x00\x04full", "The desktop refuses: full."),
        (rfb.VERSION + b"\x01\x02", "The desktop asks for a login (RFB security types [2])."),
        (
            rfb.VERSION + b"\x01\x01\x00\x00\x00\x01\x00\x00\x00\x00",
            "The desktop refuses: no reason given.",
        ),
        (
            rfb.VERSION + b"\x01\x01" + bytes(4) + HEAD + b"\xff\xff\xff\xff",
            "The desktop's name has 4294967295 bytes.",
        ),
    ],
)
def test_a_desktop_that_errs_is_refused(said: bytes, reason: str) -> None:
    """With a sentence for the log."""
    with pytest.raises(rfb.RfbError) as error:
        rfb.Handshake(rfb.greet_desktop()).feed(said)
    assert str(error.value) == reason


@pytest.mark.parametrize("said", [b"RFB 003.003\n", b"GET / HTTP/1", rfb.VERSION + b"\x02"])
def test_a_viewer_that_errs_is_refused(said: bytes) -> None:
    """Only 3.8 without security is spoken."""
    with pytest.raises(rfb.RfbError):
        rfb.Handshake(rfb.greet_viewer()).feed(said)


@given(said=st.binary(max_size=100), cut=st.integers(0, 100))
@settings(max_examples=500, deadline=None)
def test_random_greetings_raise_nothing_else(said: bytes, cut: int) -> None:
    """Neither side's handshake fails in another way than RfbError."""
    for steps in (rfb.greet_viewer(), rfb.greet_desktop()):
        handshake = rfb.Handshake(steps)
        try:
            handshake.feed(said[:cut])
            handshake.feed(said[cut:])
        except rfb.RfbError:
            pass


def test_the_desktops_name_is_ours() -> None:
    """Printable, and not longer than a title."""
    message = rfb.server_init(HEAD, "Ana\x00lysis\n<b>\x1b" + "x" * 300)

    assert message[24:] == b"Analysis<b>" + b"x" * 189
