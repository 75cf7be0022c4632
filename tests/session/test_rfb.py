"""What of a viewer's RFB reaches the desktop."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rfb_streams import (
    CUT_TEXT,
    EXTENDED_CLIPBOARD,
    EXTENDED_KEY,
    KEY,
    NOTIFY,
    POINTER,
    POWER_OFF,
    REQUEST,
    SET_PIXEL_FORMAT,
    UPDATE_REQUEST,
    encodings_of,
    extended_clipboard,
    feed_in_pieces,
    roles,
    set_desktop_size,
    split,
    streams,
    valid,
)

from qemuspawner.session.screen import rfb


def forwarded(data: bytes, allowed: frozenset[rfb.Kind] = rfb.CONTROL) -> bytes:
    return rfb.ViewerMessages(allowed).feed(data).data


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


# Random streams; tests/proof/test_s04_view_only.py has what each role may send.


def read_plainly(stream: bytes, allowed: frozenset[rfb.Kind]) -> bytes:
    """What may pass of a valid stream, byte by byte: no run of messages is ever longer than one."""
    messages = rfb.ViewerMessages(allowed)
    return b"".join(messages.feed(stream[at : at + 1]).data for at in range(len(stream)))


@given(stream=valid, cuts=st.lists(st.integers(0, 2000), max_size=20), allowed=roles)
@settings(max_examples=1500, deadline=None)
def test_messages_do_not_touch_each_other(
    stream: bytes, cuts: list[int], allowed: frozenset[rfb.Kind]
) -> None:
    """Runs of messages that pass are copied at once; what comes out is what each alone would give."""
    assert feed_in_pieces(stream, cuts, allowed) == (read_plainly(stream, allowed), "")


@given(stream=streams, cuts=st.lists(st.integers(0, 2000), max_size=20))
@settings(max_examples=1500, deadline=None)
def test_the_cuts_of_a_stream_change_nothing(stream: bytes, cuts: list[int]) -> None:
    """The same error for any chunking, and the same bytes where there is none."""
    whole, whole_error = feed_in_pieces(stream, [], rfb.CONTROL)
    out, error = feed_in_pieces(stream, cuts, rfb.CONTROL)

    assert error == whole_error
    assert error or out == whole


@given(stream=valid)
@settings(max_examples=500, deadline=None)
def test_avalid_stream_is_never_refused(stream: bytes) -> None:
    """And what comes out is a valid stream too."""
    out, error = feed_in_pieces(stream, [], rfb.CONTROL)

    assert error == ""
    assert b"".join(split(out)) == out


@given(
    pieces=st.lists(st.tuples(streams, st.sets(st.sampled_from(sorted(rfb.CONTROL, key=str)))), max_size=6)
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
