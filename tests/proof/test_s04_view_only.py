"""S4: who only looks on does nothing to the guest and to nobody else, whatever they send."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import relays
import rfb_streams
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs import Proof
from tiny_guest import GONE_EVENT, tiny_guest

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Relay
from qemuspawner.session.screen.visitors import CloseCode

pytestmark = pytest.mark.goal("S4")

_AT_ONCE = 8
_WATCHERS = ("bob", "carol", "dave")
_KEY_UP = rfb_streams.KEY[:1] + b"\0" + rfb_streams.KEY[2:]


def test_no_stream_does_what_its_role_forbids(proof: Proof) -> None:
    """In whatever pieces, only messages that are allowed come out, and of a viewer's none that acts."""
    count = proof.rounds(short=4000, full=10_000)

    @given(
        stream=rfb_streams.streams,
        cuts=st.lists(st.integers(0, 2000), max_size=20),
        role=rfb_streams.roles,
    )
    @settings(max_examples=count, deadline=None)
    def filter_stream(stream: bytes, cuts: list[int], role: frozenset[rfb.Kind]) -> None:
        for allowed in (rfb.VIEW, role):
            out, error = rfb_streams.feed_in_pieces(stream, cuts, allowed)

            types: set[int] = set().union(*(rfb_streams.TYPES[kind] for kind in allowed))
            whole = [message for message in rfb_streams.split(out) if message]
            assert {message[0] for message in whole} <= types
            if not allowed & {rfb.Kind.COPY_IN, rfb.Kind.COPY_OUT}:
                encodings = [rfb_streams.encodings_of(one) for one in whole if one[0] == 2]
                assert all(rfb_streams.EXTENDED_CLIPBOARD not in one for one in encodings)
            assert error == "" or error.endswith(".")

    filter_stream()
    proof.note(
        done=f"{count} random streams through the filter, cut anywhere, as a viewer and in another role",
        found="0 messages that act on the guest",
        limit="0",
    )


async def test_no_stream_of_a_viewer_reaches_a_real_guest(tmp_path: Path, proof: Proof) -> None:
    """QEMU's own trace has no key, pointer or size of theirs, and nobody loses their window by them."""
    streams = rfb_streams.draw(rfb_streams.streams, proof.rounds(short=60, full=2000))
    trace = tmp_path / "trace"
    with tiny_guest(tmp_path, trace=trace) as vnc:
        relay = Relay(
            session_id="test", vnc_socket=vnc, name="Painter", on_forward=lambda _viewer, _forward: None
        )
        served = relays.Served(relay)
        owner = await relays.open_bare(served, "/owner/alice")
        for name in _WATCHERS:
            await relays.open_bare(served, f"/view/{name}")
        ends = Counter(await _send_all(served, streams))
        await _wait_for(trace, GONE_EVENT, len(streams))
        by_viewers = _events(trace)

        owner.writer.write(relays.frame(2, rfb_streams.KEY + _KEY_UP))
        await _wait_for(trace, "input_event_key", 2)
        evicted = {"alice", *_WATCHERS} - {viewer.name for viewer in relay.present}
        await relay.close_all(CloseCode.ENDED, "over")
        served.server.stop()
    proof.note(
        done=f"{len(streams)} random streams to a real QEMU as a viewer, each asking to be alone, "
        f"{_AT_ONCE} at once, beside {1 + len(_WATCHERS)} windows that stay",
        found=f"{len(by_viewers)} events of input or size in QEMU's trace, {len(evicted)} others evicted",
        limit="0 and 0",
    )
    assert (by_viewers, evicted) == ([], set())
    assert ends[CloseCode.NORMAL], "some streams are valid"


async def _send_all(served: relays.Served, streams: list[bytes]) -> list[int]:
    """The code by which each viewer was closed."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def send(number: int, stream: bytes) -> int:
        async with room:
            bare = await relays.open_bare(served, f"/view/guest{number}")
            half = len(stream) // 2
            bare.writer.write(relays.frame(2, stream[:half]) + relays.frame(2, stream[half:]))
            bare.writer.write(relays.frame(8, int(CloseCode.NORMAL).to_bytes(2, "big")))
            try:
                return await bare.close_code()
            finally:
                bare.writer.close()

    return await asyncio.gather(*(send(number, stream) for number, stream in enumerate(streams)))


def _events(trace: Path) -> list[str]:
    """What somebody has done to the guest, as QEMU noted it."""
    return [line for line in trace.read_text().splitlines() if GONE_EVENT not in line]


async def _wait_for(trace: Path, event: str, count: int) -> None:
    async with asyncio.timeout(30):
        while trace.read_text().count(event) < count:
            await asyncio.sleep(0.05)
