"""What a client of our own learns from QEMU's VNC server."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.updates import Changes, Rect, Updates

HEAD = struct.pack(">HHB", 640, 480, 32) + bytes(15)
SCREEN = Rect(x=0, y=0, width=640, height=480)

BELL = b"\x02"
CUT_TEXT = struct.pack(">BxxxI", 3, 5) + b"\x00\x01\x02\x03\x04"
COLOURS = struct.pack(">BxHH", 1, 0, 2) + bytes(12)
KEY_ACK = (0, 0, 640, 480, rfb.EXTENDED_KEY)


def raw(x: int, y: int, width: int, height: int) -> bytes:
    return struct.pack(">HHHHi", x, y, width, height, 0) + b"\x01" * (width * height * 4)


def update(*rects: bytes | tuple[int, ...]) -> bytes:
    written = [rect if isinstance(rect, bytes) else struct.pack(">HHHHi", *rect) for rect in rects]
    return struct.pack(">BxH", 0, len(rects)) + b"".join(written)


def rect(x: int, y: int, width: int, height: int) -> Rect:
    return Rect(x=x, y=y, width=width, height=height)


rects = st.tuples(st.integers(0, 600), st.integers(0, 400), st.integers(1, 20), st.integers(1, 20))
messages = st.one_of(
    st.sampled_from([BELL, CUT_TEXT, COLOURS, update(), update(KEY_ACK)]),
    st.lists(rects, min_size=1, max_size=3).map(lambda parts: update(*(raw(*part) for part in parts))),
)


@given(st.lists(messages, max_size=6), st.data())
def test_a_stream_means_the_same_however_it_is_cut(stream: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    cut = Updates(HEAD)

    seen = [one for piece in pieces for one in cut.feed(memoryview(piece))]

    assert seen == Updates(HEAD).feed(memoryview(whole))
    assert len(seen) == sum(message[0] == 0 and len(message) > 16 for message in stream)


def test_the_parts_of_an_update_come_together() -> None:
    stream = BELL + update(raw(1, 2, 3, 4), raw(5, 6, 7, 8)) + CUT_TEXT + update(raw(9, 9, 1, 1))

    seen = Updates(HEAD).feed(memoryview(stream))

    assert seen == [[rect(1, 2, 3, 4), rect(5, 6, 7, 8)], [rect(9, 9, 1, 1)]]


def test_size_and_kind_of_pointer_are_followed() -> None:
    updates = Updates(HEAD)
    assert (updates.screen, updates.absolute) == (SCREEN, None)

    seen = updates.feed(memoryview(update((0, 0, 800, 600, -223)) + update((1, 0, 800, 600, -257))))

    assert (updates.screen, updates.absolute) == (rect(0, 0, 800, 600), True)
    assert seen == [[updates.screen]]


@pytest.mark.parametrize("stream", [b"\x07", update((0, 0, 1, 1, 5))])
def test_what_was_not_asked_for_is_refused(stream: bytes) -> None:
    with pytest.raises(rfb.RfbError):
        Updates(HEAD).feed(memoryview(stream))


def test_what_blinks_in_one_place_stays_small() -> None:
    changes = Changes(SCREEN, least_px=1000)
    for _ in range(100):
        changes.note(rect(100, 100, 10, 20))

    assert not changes.any


def test_small_changes_here_and_there_are_a_large_one() -> None:
    changes = Changes(SCREEN, least_px=1000)
    changes.note(rect(0, 0, 1, 1))
    changes.note(rect(100, 100, 1, 1))

    assert changes.any


def test_only_the_region_counts() -> None:
    changes = Changes(rect(100, 100, 10, 10), least_px=1)
    changes.note(rect(0, 0, 100, 480))
    changes.note(rect(110, 100, 10, 10))
    assert not changes.any

    changes.note(rect(105, 0, 1, 480))
    assert changes.any
