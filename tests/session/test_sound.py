"""The desktop's sound: what is read of QEMU's stream, and who gets it."""

import asyncio
import base64
import itertools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import hubs
import pytest
from fake_desktop import FakeDesktop
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import FRAME_BYTES, NEAR_TONE, RATE_HZ, loudest_hz
from tiny_guest import tiny_guest
from tornado import httpserver, web
from tornado.testing import bind_unused_port

from qemuspawner import scopes
from qemuspawner.session.screen import rfb
from qemuspawner.session.screen import sound as sound_module
from qemuspawner.session.screen.desktop import connect_desktop
from qemuspawner.session.screen.sound import Sound
from qemuspawner.session.screen.visitors import MAX_VISITORS, CloseCode, Visitor
from qemuspawner.session.screen.websocket import accept_websocket

# QEMU's stream

ACKNOWLEDGEMENT = struct.pack(">BxHHHHHi", 0, 1, 0, 0, 640, 480, -259)
BEGIN = struct.pack(">BBH", 255, 1, 1)
END = struct.pack(">BBH", 255, 1, 0)
BELL = b"\x02"
COLOUR_MAP = struct.pack(">BxHH", 1, 0, 2) + bytes(12)
CUT_TEXT = struct.pack(">BxxxI", 3, 5) + b"hello"
EXTENDED_CUT_TEXT = struct.pack(">Bxxxi", 3, -12) + bytes(12)
PICTURE = struct.pack(">BxHHHHHi", 0, 1, 0, 0, 1, 1, 0) + bytes(4)


def data(piece: bytes) -> bytes:
    return struct.pack(">BBHI", 255, 1, 2, len(piece)) + piece


def heard(stream: bytes, cuts: tuple[int, ...] = ()) -> tuple[list[bytes], str]:
    """The pieces of sound, and the error that ended it ("" for none)."""
    messages = rfb.SoundMessages()
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces: list[bytes] = []
    try:
        for start, end in itertools.pairwise(borders):
            pieces += messages.feed(stream[start:end])
            assert len(messages._pending) <= 8 + rfb.MAX_SOUND_BYTES
    except rfb.RfbError as error:
        return pieces, str(error)
    return pieces, ""


def test_sound_is_asked_for_and_nothing_else() -> None:
    """By QEMU's own words: encoding -259; signed 16 bits (3), two channels, 48 kHz; enable (0)."""
    assert rfb.start_sound(rate_hz=48000, channels=2) == (
        b"\x02\x00\x00\x01" + b"\xff\xff\xfe\xfd"
        b"\xff\x01\x00\x02\x03\x02\x00\x00\xbb\x80"
        b"\xff\x01\x00\x00"
    )  # fmt: skip


def test_sound_is_found_between_everything_else() -> None:
    stream = ACKNOWLEDGEMENT + BEGIN + BELL + data(b"abcd") + CUT_TEXT + COLOUR_MAP + data(b"efgh")

    assert heard(stream + EXTENDED_CUT_TEXT + END) == ([b"abcd", b"efgh", b""], "")


def test_a_piece_without_sound_is_not_taken_for_the_end() -> None:
    assert heard(data(b"") + data(b"abcd")) == ([b"abcd"], "")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x07", "The desktop's message type 7 is unknown."),
        (b"\xff\x00\x00\x00", "The desktop's QEMU message 0/0 is unknown."),
        (b"\xff\x01\x00\x03", "The desktop's QEMU message 1/3 is unknown."),
        (
            struct.pack(">BBHI", 255, 1, 2, 65537),
            "A piece of sound has 65537 bytes; at most 65536 are read.",
        ),
        (PICTURE, "The desktop sent a picture (encoding 0) that nobody asked for."),
    ],
)
def test_a_stream_that_errs_is_refused_with_a_reason(stream: bytes, reason: str) -> None:
    assert heard(data(b"abcd") + stream) == ([], reason)


def test_a_long_clipboard_text_is_not_kept() -> None:
    """It passes as it comes."""
    messages = rfb.SoundMessages()
    pieces = messages.feed(struct.pack(">BxxxI", 3, 10 << 20))

    for _ in range(160):
        pieces += messages.feed(bytes(64 * 1024))
        assert messages._pending == b""

    assert messages.feed(data(b"abcd")) == [b"abcd"]


_messages = st.one_of(
    st.sampled_from([ACKNOWLEDGEMENT, BEGIN, END, BELL, COLOUR_MAP, CUT_TEXT, EXTENDED_CUT_TEXT, PICTURE]),
    st.binary(max_size=300).map(data),
)
_valid = st.lists(_messages.filter(lambda message: message != PICTURE), max_size=12).map(b"".join)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A stream with some bytes changed."""
    stream = bytearray(draw(st.lists(_messages, max_size=12).map(b"".join)))
    for _ in range(draw(st.integers(0, 6))):
        if stream:
            stream[draw(st.integers(0, len(stream) - 1))] = draw(st.integers(0, 255))
    return bytes(stream)


_streams = st.one_of(_valid, _mutated(), st.binary(max_size=400))


@given(stream=_streams, cuts=st.lists(st.integers(0, 2000), max_size=20).map(tuple))
@settings(max_examples=1500, deadline=None)
def test_the_cuts_of_a_stream_change_nothing(stream: bytes, cuts: tuple[int, ...]) -> None:
    """No error but RfbError, the same one for any chunking, and the same sound where there is none."""
    whole, whole_error = heard(stream)
    pieces, error = heard(stream, cuts)

    assert error == whole_error
    assert error or pieces == whole


@given(stream=_valid)
@settings(max_examples=300, deadline=None)
def test_a_valid_stream_is_never_refused(stream: bytes) -> None:
    assert heard(stream)[1] == ""


# Who listens


class Served:
    """The sound behind a Tornado server; the path says who comes: /ROLE/NAME."""

    def __init__(self, sound: Sound) -> None:
        self.sound = sound
        self.visitors: list[Visitor] = []
        visitors = self.visitors
        listening, self.port = bind_unused_port()

        class Handler(web.RequestHandler):
            async def get(self, role: str, name: str) -> None:
                listener = Visitor(name=name, is_owner=role == "owner")
                visitors.append(listener)
                await sound.serve(await accept_websocket(self), listener)

        self.server = httpserver.HTTPServer(web.Application([(r"/(\w+)/(\w+)", Handler)]))
        self.server.add_sockets([listening])


class Listener:
    """aiohttp's client: the independent peer."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket
        self.form: dict[str, object] = {}

    async def piece(self) -> bytes:
        async with asyncio.timeout(20):
            return bytes(await self.websocket.receive_bytes())

    async def hear(self, seconds: float) -> bytes:
        sound = b""
        while len(sound) < seconds * RATE_HZ * FRAME_BYTES:
            sound += await self.piece()
        return sound

    async def closed(self) -> tuple[int | None, str]:
        """Wait until the server closes; its code and reason."""
        async with asyncio.timeout(20):
            while True:
                message = await self.websocket.receive()
                if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                    return self.websocket.close_code, str(message.extra or "")


class House:
    """A served sound, and everybody who listens to it."""

    def __init__(self, served: Served, http: aiohttp.ClientSession) -> None:
        self.sound = served.sound
        self.visitors = served.visitors
        self.port = served.port
        self._http = http

    async def listen(self, path: str = "/owner/alice") -> Listener:
        url = f"ws://127.0.0.1:{self.port}{path}"
        listener = Listener(await self._http.ws_connect(url, protocols=["binary"]))
        first = await listener.websocket.receive()
        if first.type is aiohttp.WSMsgType.BINARY:
            listener.form = json.loads(first.data)
        return listener

    async def wait_for_listeners(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.sound.listeners != count:
                await asyncio.sleep(0.01)


Serve = Callable[[Path], House]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        def start(vnc_socket: Path) -> House:
            served = Served(Sound(session_id="test", vnc_socket=vnc_socket))
            stack.callback(served.server.stop)
            stack.push_async_callback(served.sound.close_all, CloseCode.ENDED, "over")
            return House(served, http)

        yield start


@pytest.fixture
def house(serve: Serve, desktop: FakeDesktop) -> House:
    """With the fake desktop."""
    return serve(desktop.path)


ASKED = rfb.start_sound(rate_hz=RATE_HZ, channels=2)


async def connection(desktop: FakeDesktop) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The session's, once it has asked for sound."""
    reader, writer = await desktop.connections.get()
    assert await reader.readexactly(len(ASKED)) == ASKED
    writer.write(ACKNOWLEDGEMENT + BEGIN)
    return reader, writer


async def test_a_real_guest_is_heard(serve: Serve, tmp_path: Path) -> None:
    """The tone of its sound card, from QEMU, in the form that the first message says."""
    with tiny_guest(tmp_path, sound=True) as vnc:
        listener = await serve(vnc).listen("/view/bob")

        sound = await listener.hear(1.5)

        assert listener.form == {"format": "s16le", "channels": 2, "rate_hz": RATE_HZ}
        assert loudest_hz(sound) == NEAR_TONE


async def test_an_empty_message_says_that_the_guest_has_stopped_playing(serve: Serve, tmp_path: Path) -> None:
    """Each key stops the tone of the real guest, or starts it."""
    key = struct.pack(">BBxxI", 4, 1, 0x61) + struct.pack(">BBxxI", 4, 0, 0x61)
    with tiny_guest(tmp_path, sound=True) as vnc:
        listener = await serve(vnc).listen()
        await listener.hear(0.5)
        with await connect_desktop(vnc) as keyboard:
            await keyboard.send(key)
            while await listener.piece():
                pass
            await keyboard.send(key)

            assert loudest_hz(await listener.hear(1.2)) == NEAR_TONE


async def test_one_connection_serves_all_listeners(house: House, desktop: FakeDesktop) -> None:
    """On which nothing but sound is asked for."""
    listeners = [await house.listen(), await house.listen("/view/bob")]
    reader, writer = await connection(desktop)

    writer.write(data(b"abcd"))

    assert [await listener.piece() for listener in listeners] == [b"abcd", b"abcd"]
    assert desktop.connections.empty()
    for listener in listeners:
        await listener.websocket.close()
    assert await reader.read() == b""


async def test_the_connection_ends_with_the_last_listener_and_comes_with_the_next(
    house: House, desktop: FakeDesktop
) -> None:
    """Where nobody listens QEMU mixes no sound."""
    first = await house.listen()
    second = await house.listen("/view/bob")
    reader, writer = await connection(desktop)
    await first.websocket.close()
    await house.wait_for_listeners(1)
    writer.write(data(b"abcd"))
    assert await second.piece() == b"abcd"

    await second.websocket.close()
    assert await reader.read() == b""
    third = await house.listen()
    _, writer = await connection(desktop)
    writer.write(data(b"efgh"))

    assert await third.piece() == b"efgh"


async def stall(house: House) -> socket.socket:
    """A listener who takes nothing."""
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(("127.0.0.1", house.port))
    key = base64.b64encode(os.urandom(16)).decode()
    stalled.sendall(
        f"GET /view/bob HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Protocol: binary\r\n\r\n".encode()
    )
    await house.wait_for_listeners(1)
    return stalled


async def test_a_stalled_listener_loses_sound_and_holds_nobody_up(house: House, desktop: FakeDesktop) -> None:
    """What waits for it is a quarter of a second; the other one gets all of two minutes."""
    stalled = await stall(house)
    _, writer = await connection(desktop)
    listener = await house.listen()
    piece = os.urandom(RATE_HZ * FRAME_BYTES // 100)

    for _ in range(12_000):
        writer.write(data(piece))
        await writer.drain()
        assert await listener.piece() == piece
    kept = [link._backlog_bytes for link in house.sound._links]

    assert max(kept) <= RATE_HZ * FRAME_BYTES // 4
    async with asyncio.timeout(10):
        await house.sound.close_all(CloseCode.ENDED, "over")
    stalled.close()


async def test_empty_pieces_are_not_collected_either(house: House, desktop: FakeDesktop) -> None:
    """From a QEMU gone wrong."""
    stalled = await stall(house)
    _, writer = await connection(desktop)
    writer.write(data(bytes(65536)) * 200)
    writer.write((BEGIN + END) * 100_000)
    await writer.drain()

    listener = await house.listen()
    writer.write(data(b"abcd"))
    while await listener.piece() != b"abcd":
        pass

    assert max(len(link._backlog) for link in house.sound._links) <= 100
    stalled.close()


async def test_a_desktop_that_sends_a_picture_is_left(house: House, desktop: FakeDesktop) -> None:
    """As one that does not answer: it is no fault of the listeners."""
    listener = await house.listen()
    reader, writer = await connection(desktop)

    writer.write(PICTURE)

    reason = "The desktop sent a picture (encoding 0) that nobody asked for."
    assert await listener.closed() == (4503, reason)
    assert await reader.read() == b""


async def test_a_desktop_that_ends_closes_with_4503(house: House, desktop: FakeDesktop) -> None:
    listener = await house.listen()
    _, writer = await connection(desktop)

    writer.close()

    assert await listener.closed() == (4503, "The desktop ended the connection.")


async def test_who_has_something_to_say_is_sent_away(house: House) -> None:
    """No microphone, no messages."""
    listener = await house.listen()

    await listener.websocket.send_bytes(b"hello")

    assert await listener.closed() == (4400, "Who listens has nothing to send.")


async def test_a_silent_listener_is_dropped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here after a fifth of a second instead of a minute."""
    monkeypatch.setattr("qemuspawner.session.screen.visitors._PING_EVERY_S", 0.05)
    monkeypatch.setattr("qemuspawner.session.screen.visitors._DEAD_AFTER_S", 0.2)

    stalled = await stall(house)

    await house.wait_for_listeners(0)
    stalled.close()


async def test_who_is_sent_away_leaves_the_others(house: House, desktop: FakeDesktop) -> None:
    """A role was changed."""
    owner, guest = await house.listen(), await house.listen("/view/bob")

    house.visitors[1].dismiss(CloseCode.WITHDRAWN, "Your access was withdrawn.")

    assert await guest.closed() == (4403, "Your access was withdrawn.")
    _, writer = await connection(desktop)
    writer.write(data(b"abcd"))
    assert await owner.piece() == b"abcd"


async def test_a_third_window_replaces_the_oldest(house: House) -> None:
    windows = [await house.listen() for _ in range(3)]

    assert (await windows[0].closed())[0] == 4409
    await house.wait_for_listeners(2)


async def test_the_owner_gets_in_where_all_places_are_taken(house: House) -> None:
    """A further guest does not."""
    guests = [await house.listen(f"/view/guest{number}") for number in range(MAX_VISITORS)]
    late = await house.listen("/view/late")
    owner = await house.listen()

    assert late.websocket.close_code == 4429
    assert (await guests[0].closed())[0] == 4429
    await house.wait_for_listeners(MAX_VISITORS)
    assert owner.form


async def test_the_site_says_who_hears(
    start_hub: Callable[..., Any], machines_dir: Path, state_dir: Path
) -> None:
    """Here nobody, not even the owner: neither by the websocket, nor by a button on the page."""
    hubs.add_machine(machines_dir, state_dir, "loud")
    toml = machines_dir / "loud/machine.toml"
    toml.write_text(toml.read_text().replace("[image]", "sound = true\n[image]"))
    known = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    hub = await start_hub(jupyterhub=known, sound="nobody")
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "loud"})
    desktop = await hub.wait_until_ready("alice")

    answer = await alice.request("GET", desktop / "sound")
    page = await alice.request("GET", desktop)

    assert answer.status == 403
    assert json.loads(answer.text)["message"] == "Sound is switched off at this site."
    assert 'id="screen"' in page.text
    assert 'id="sound"' not in page.text


async def test_a_task_that_fails_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left listening to a connection that is not there."""
    monkeypatch.setattr(sound_module, "connect_desktop", None)

    listener = await house.listen()

    assert (await listener.closed())[0] == 1011
