"""The relay between real websockets (websockify's client, or a bare socket) and a VNC server of ours."""

import asyncio
import ctypes
import gc
import os
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import pytest
from fake_desktop import HEAD, FakeDesktop
from guests import GREEN, RED
from relays import GREETING, Served, frame, open_bare, open_websocket
from tiny_guest import HEIGHT, WIDTH, tiny_guest
from websockify.websocket import WebSocket as Peer

from qemuspawner.session.screen import rfb, visitors
from qemuspawner.session.screen.desktop import connect_desktop
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.visitors import MAX_VISITORS, CloseCode

KEY = struct.pack(">BBxxI", 4, 1, 0x61)
UPDATE_REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 640, 480)


class Browser:
    """websockify's client in a thread: the independent peer."""

    def __init__(self, port: int, path: str) -> None:
        self.url = f"ws://127.0.0.1:{port}{path}"
        self.peer = Peer()
        self.received = b""

    async def open(self, *, shared: int = 0) -> bytes:
        """Connect and shake hands; returns the ServerInit's name."""
        await self.connect()
        assert await self.read(12) == rfb.VERSION
        await self.send(rfb.VERSION)
        assert await self.read(2) == b"\x01\x01"
        await self.send(b"\x01")
        assert await self.read(4) == bytes(4)
        await self.send(bytes([shared]))
        init = await self.read(24)
        return await self.read(int.from_bytes(init[20:], "big"))

    async def connect(self) -> None:
        await asyncio.to_thread(self.peer.connect, self.url, protocols=["binary", "qs.ticket.T"])
        # websockify leaves unread what came in one piece with the response.
        while frame := self.peer._decode_hybi(self.peer._recv_buffer):
            self.peer._recv_buffer = self.peer._recv_buffer[frame["length"] :]
            self.peer._recv_queue.append(frame)

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.peer.send, data)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(20):
            while len(self.received) < size:
                data = await asyncio.to_thread(self._receive)
                assert data is not None, f"closed: {self.peer.close_code} {self.peer.close_reason}"
                self.received += data
        data, self.received = self.received[:size], self.received[size:]
        return data

    async def closed(self) -> tuple[int, str]:
        """Wait until the server closes; returns its code and reason."""
        async with asyncio.timeout(20):
            while await asyncio.to_thread(self._receive) is not None:
                pass
        return self.peer.close_code, self.peer.close_reason

    def _receive(self) -> bytes | None:
        while True:
            try:
                data: bytes | None = self.peer.recv()
            except Exception as exc:  # its "want read" after a control frame
                if type(exc).__name__ != "WebSocketWantReadError":
                    raise
            else:
                return data


Serve = Callable[..., Served]


@pytest.fixture
async def serve(desktop: FakeDesktop) -> AsyncIterator[Serve]:
    """Starts relays; by default to the fake desktop."""
    async with AsyncExitStack() as stack:

        def start(
            vnc_socket: Path = desktop.path,
            *,
            on_forward: Callable[[Viewer, rfb.Forward], None] = lambda _viewer, _forward: None,
            refresh_keepalive_ms: int = 0,
            tls: ssl.SSLContext | None = None,
        ) -> Served:
            relay = Relay(
                session_id="test",
                vnc_socket=vnc_socket,
                name="Beamline <1>",
                on_forward=on_forward,
                refresh_keepalive_ms=refresh_keepalive_ms,
            )
            served = Served(relay, tls)
            stack.callback(served.server.stop)
            stack.push_async_callback(relay.close_all, CloseCode.ENDED, "over")
            return served

        yield start


async def open_browser(served: Served, path: str = "/owner/alice") -> Browser:
    browser = Browser(served.port, path)
    await browser.open()
    return browser


async def wait_for_viewers(served: Served, count: int) -> None:
    async with asyncio.timeout(10):
        while served.relay.viewers != count:
            await asyncio.sleep(0.01)


async def test_a_viewer_sees_our_name_and_cannot_be_alone(serve: Serve, desktop: FakeDesktop) -> None:
    """The shared flag that reaches QEMU is ours."""
    browser = Browser(serve().port, "/owner/alice")

    name = await browser.open(shared=0)

    assert (name, desktop.shared_flags, browser.peer.protocol) == (b"Beamline <1>", [1], "binary")


async def test_messages_pass_both_ways(serve: Serve, desktop: FakeDesktop) -> None:
    """Unchanged."""
    browser = await open_browser(serve())
    reader, writer = await desktop.connections.get()

    await browser.send(UPDATE_REQUEST + KEY)
    writer.write(b"picture" * 100_000)

    assert await reader.readexactly(18) == UPDATE_REQUEST + KEY
    assert await browser.read(700_000) == b"picture" * 100_000


async def test_a_watchers_key_does_not_pass(serve: Serve, desktop: FakeDesktop) -> None:
    """Nor does it count as input."""
    inputs: list[int] = []
    served = serve(on_forward=lambda viewer, forward: inputs.append((viewer.name, forward)))
    browser = await open_browser(served, "/view/bob")
    reader, _ = await desktop.connections.get()

    await browser.send(KEY + UPDATE_REQUEST)

    assert await reader.readexactly(10) == UPDATE_REQUEST
    assert inputs == []


async def test_only_input_is_reported(serve: Serve, desktop: FakeDesktop) -> None:
    """Pictures asked for do not keep a session alive."""
    inputs: list[str] = []
    served = serve(on_forward=lambda viewer, _forward: inputs.append(viewer.name))
    browser = await open_browser(served)
    reader, _ = await desktop.connections.get()

    await browser.send(UPDATE_REQUEST)
    await reader.readexactly(10)
    before = len(inputs)
    await browser.send(KEY)
    await reader.readexactly(8)

    assert (before, inputs) == (0, ["alice"])


async def test_a_malformed_message_closes_that_socket_alone(serve: Serve, desktop: FakeDesktop) -> None:
    """With a code and a reason; the other viewer stays."""
    served = serve()
    good = await open_browser(served)
    reader, _ = await desktop.connections.get()
    bad = await open_browser(served, "/control/bob")

    await bad.send(b"\x07")

    assert await bad.closed() == (4400, "Message type 7 is unknown.")
    await good.send(KEY)
    assert await reader.readexactly(8) == KEY


async def test_an_unreachable_desktop_closes_with_4503(serve: Serve, tmp_path: Path) -> None:
    """At once, not after a timeout."""
    browser = Browser(serve(tmp_path / "nothing").port, "/owner/alice")

    await browser.connect()

    assert (await browser.closed())[0] == 4503


async def test_who_comes_while_qemu_takes_nobody_waits(tmp_path: Path) -> None:
    """Its queue has room for one or two: who came in the same moment was told that the desktop is gone."""
    fake = FakeDesktop(tmp_path / "busy")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(fake.path))
    listener.listen(1)
    with ExitStack() as stack:
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(fake.path))
        connecting = asyncio.create_task(connect_desktop(fake.path))
        await asyncio.wait([connecting], timeout=0.1)

        async with await asyncio.start_unix_server(fake.greet, sock=listener):
            with await connecting as desktop:
                assert desktop.head == HEAD


async def test_a_desktop_that_ends_closes_with_4503(serve: Serve, desktop: FakeDesktop) -> None:
    """QEMU died or was quit."""
    browser = await open_browser(serve())
    _, writer = await desktop.connections.get()

    writer.close()

    assert await browser.closed() == (4503, "The desktop ended the connection.")


async def test_close_all_tells_every_viewer_why(serve: Serve) -> None:
    """And returns when nobody is left."""
    served = serve()
    browsers = [await open_browser(served), await open_browser(served, "/view/bob")]

    await served.relay.close_all(CloseCode.ENDED, "The session's time is over.")

    assert served.relay.viewers == 0
    for browser in browsers:
        assert await browser.closed() == (4001, "The session's time is over.")


async def test_a_dismissed_viewer_leaves_the_others(serve: Serve) -> None:
    """Access was withdrawn from one."""
    served = serve()
    owner = await open_browser(served)
    guest = await open_browser(served, "/control/bob")

    served.relay.present[1].dismiss(CloseCode.WITHDRAWN, "Access was withdrawn.")

    assert await guest.closed() == (4403, "Access was withdrawn.")
    await wait_for_viewers(served, 1)
    assert (served.relay.present[0].name, owner.peer.close_code) == ("alice", None)


async def test_who_loses_control_holds_no_key_down(serve: Serve, desktop: FakeDesktop) -> None:
    """The key that is down is released for them, at once, and what they send from then on is dropped."""
    served = serve()
    browser = await open_browser(served, "/control/bob")
    reader, _ = await desktop.connections.get()
    await browser.send(KEY)
    assert await reader.readexactly(8) == KEY

    served.relay.present[0].allow(rfb.VIEW)

    assert await reader.readexactly(8) == struct.pack(">BBxxI", 4, 0, 0x61)
    await browser.send(KEY + UPDATE_REQUEST)
    assert await reader.readexactly(10) == UPDATE_REQUEST


async def test_who_gets_control_can_type_at_once(serve: Serve, desktop: FakeDesktop) -> None:
    """On the same connection."""
    served = serve()
    browser = await open_browser(served, "/view/bob")
    reader, _ = await desktop.connections.get()

    served.relay.present[0].allow(rfb.CONTROL)
    # The change is carried out by a task of the relay's.
    await browser.send(UPDATE_REQUEST)
    assert await reader.readexactly(10) == UPDATE_REQUEST
    await browser.send(KEY)

    assert await reader.readexactly(8) == KEY


async def test_who_leaves_holds_no_key_down(serve: Serve, desktop: FakeDesktop) -> None:
    """A window that is closed with a key held."""
    browser = await open_browser(serve())
    reader, _ = await desktop.connections.get()
    await browser.send(KEY)
    await reader.readexactly(8)

    await asyncio.to_thread(browser.peer.close)

    assert await reader.readexactly(8) == struct.pack(">BBxxI", 4, 0, 0x61)


async def test_a_third_window_replaces_the_oldest(serve: Serve) -> None:
    """Two a person."""
    served = serve()
    windows = [await open_browser(served) for _ in range(3)]

    assert (await windows[0].closed())[0] == 4409
    await wait_for_viewers(served, 2)


async def test_the_owner_gets_into_a_full_desktop(serve: Serve) -> None:
    """A further guest does not."""
    served = serve()
    guests = [await open_browser(served, f"/view/guest{number}") for number in range(MAX_VISITORS)]
    late = Browser(served.port, "/control/late")
    await late.connect()

    refusal = await late.closed()
    owner = await open_browser(served, "/owner/alice")

    assert refusal == (4429, f"{MAX_VISITORS} viewers look at this desktop already.")
    assert (await guests[0].closed())[0] == 4429
    await wait_for_viewers(served, MAX_VISITORS)
    assert owner.peer.close_code is None


async def test_a_browser_that_leaves_frees_the_desktop(serve: Serve, desktop: FakeDesktop) -> None:
    """QEMU's connection is closed with it."""
    served = serve()
    browser = await open_browser(served)
    reader, _ = await desktop.connections.get()

    await asyncio.to_thread(browser.peer.close)

    assert await reader.read() == b""
    await wait_for_viewers(served, 0)


# Bare frames: what websockify's client does not send.


async def test_a_fragmented_message_is_one_stream(serve: Serve, desktop: FakeDesktop) -> None:
    """Cut anywhere, with a ping between the pieces that is answered."""
    bare = await open_bare(serve())
    reader, _ = await desktop.connections.get()

    bare.writer.write(frame(2, KEY[:3], fin=False) + frame(9, b"hi") + frame(0, KEY[3:] + UPDATE_REQUEST[:1]))
    bare.writer.write(frame(2, UPDATE_REQUEST[1:]))

    assert await reader.readexactly(18) == KEY + UPDATE_REQUEST
    assert await bare.frame() == (10, b"hi")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(1, b"text"), 1003),
        (frame(2, KEY, masked=False), 1002),
        (frame(0, KEY), 1002),  # a continuation of nothing
        (frame(3, KEY), 1002),  # an opcode that does not exist
        (bytes([0xC2, 0x80, 0, 0, 0, 0]), 1002),  # compressed, which was not negotiated
        (frame(9, b"x" * 126), 1002),  # a control frame that is too long
        (frame(8, struct.pack(">H", 1000)), 1000),
    ],
    ids=["text", "unmasked", "continuation", "opcode", "compressed", "long control", "close"],
)
async def test_a_broken_websocket_is_closed_with_its_code(serve: Serve, data: bytes, code: int) -> None:
    """And nothing is left behind."""
    served = serve()
    bare = await open_bare(served)

    bare.writer.write(data)

    assert await bare.close_code() == code
    bare.writer.close()
    await wait_for_viewers(served, 0)


async def test_who_leaves_in_the_moment_of_the_greeting_is_gone(serve: Serve) -> None:
    """A greeting and a goodbye in one piece: nothing follows that would tell."""
    served = serve()
    bare = await open_websocket(served.port, "/owner/alice")

    bare.writer.write(frame(2, GREETING) + frame(8, struct.pack(">H", 1000)))

    assert await bare.close_code() == 1000
    await wait_for_viewers(served, 0)


async def test_a_message_without_end_is_refused(serve: Serve, desktop: FakeDesktop) -> None:
    """256 KiB, in however many fragments."""
    bare = await open_bare(serve())
    await desktop.connections.get()

    with suppress(ConnectionError):
        for number in range(10):
            bare.writer.write(frame(0 if number else 2, KEY * 4096, fin=False))
            await bare.writer.drain()

    assert await bare.close_code() == 1009


async def test_a_silent_viewer_is_pinged_and_dropped(
    serve: Serve, desktop: FakeDesktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here after a fifth of a second instead of a minute."""
    monkeypatch.setattr(visitors, "_PING_EVERY_S", 0.05)
    monkeypatch.setattr(visitors, "_DEAD_AFTER_S", 0.2)
    served = serve()
    bare = await open_bare(served)

    opcode, _ = await bare.frame()
    code = await bare.close_code()

    assert (opcode, code) == (9, 1000)


def memory_kib() -> int:
    """What this process holds in memory now; `ru_maxrss` would be the most that any test ever held."""
    # What was given up and not given back, by earlier tests too, is not what is asked for.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def test_a_stalled_viewer_stops_the_desktop_and_costs_nothing(
    serve: Serve, desktop: FakeDesktop
) -> None:
    """The desktop's socket blocks; the relay's memory stays; and it can still be sent away."""
    served = serve()
    bare = await open_bare(served, receive_buffer=4096)
    _, writer = await desktop.connections.get()
    writer.transport.set_write_buffer_limits(0)
    before_kib = memory_kib()
    piece = bytes(1024 * 1024)
    sent = 0

    with suppress(TimeoutError):
        while sent < 100:
            writer.write(piece)
            async with asyncio.timeout(0.5):
                await writer.drain()
            sent += 1
    grown_kib = memory_kib() - before_kib
    async with asyncio.timeout(10):
        await served.relay.close_all(CloseCode.ENDED, "over")

    assert sent < 30, "the kernel's socket buffers hold a few MiB at most"
    assert grown_kib < 8 * 1024
    assert served.relay.viewers == 0
    bare.writer.close()


async def test_a_stalled_viewer_slows_nobody(serve: Serve, desktop: FakeDesktop) -> None:
    """Nor does it collect answers to its pings."""
    served = serve()
    stalled = await open_bare(served, receive_buffer=4096)
    _, writer = await desktop.connections.get()
    other = await open_browser(served, "/control/bob")
    reader, writer_of_other = await desktop.connections.get()
    before_kib = memory_kib()
    writer.write(bytes(16 * 1024 * 1024))
    for _ in range(400):
        stalled.writer.write(frame(9, bytes(125)) * 300)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await stalled.writer.drain()

    await other.send(KEY)
    writer_of_other.write(b"picture")

    assert await reader.readexactly(8) == KEY
    assert await other.read(7) == b"picture"
    # The desktop and the stalled viewer are in this process too, with what the relay has not taken from them.
    theirs = sum(one.transport.get_write_buffer_size() for one in (writer, stalled.writer))
    assert memory_kib() - before_kib - theirs // 1024 < 10 * 1024
    stalled.writer.close()


async def test_a_slow_viewer_gets_whole_frames_before_the_close(serve: Serve, desktop: FakeDesktop) -> None:
    """A close in the middle of a picture does not cut a frame."""
    served = serve()
    bare = await open_bare(served, receive_buffer=4096)
    _, writer = await desktop.connections.get()
    writer.write(bytes(8 * 1024 * 1024))
    await asyncio.sleep(0.2)

    closing = asyncio.create_task(served.relay.close_all(CloseCode.ENDED, "over"))

    assert await bare.close_code() == 4001
    await closing


async def test_a_desktop_that_reads_slowly_stops_the_viewer(serve: Serve, desktop: FakeDesktop) -> None:
    """What a viewer uploads is not collected in the relay."""
    bare = await open_bare(serve())
    await desktop.connections.get()
    text = struct.pack(">BxxxI", 6, 200_000) + bytes(200_000)
    one = frame(2, text)
    sent = 0

    with suppress(TimeoutError):
        while sent < 200:
            bare.writer.write(one)
            async with asyncio.timeout(0.5):
                await bare.writer.drain()
            sent += 1

    assert sent < 100


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that trusts it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


async def test_tls_between_proxy_and_session_works_the_same(
    serve: Serve, desktop: FakeDesktop, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """JupyterHub's internal_ssl: large pieces, keys, and the farewell."""
    served = serve(tls=tls[0])
    bare = await open_bare(served, tls=tls[1])
    reader, writer = await desktop.connections.get()
    picture = os.urandom(700_000)

    bare.writer.write(frame(2, KEY))
    writer.write(picture)
    key = await reader.readexactly(8)
    shown = b""
    while len(shown) < len(picture):
        shown += (await bare.frame())[1]
    closing = asyncio.create_task(served.relay.close_all(CloseCode.ENDED, "over"))

    assert (key, shown == picture, await bare.close_code()) == (KEY, True, 4001)
    bare.writer.write(frame(8, struct.pack(">H", 4001)))
    await closing


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upgrade": "websocket"}, 426),
        ({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "8"}, 426),
        (
            {
                "Upgrade": "websocket",
                "Connection": "keep-alive, Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "x",
            },
            400,
        ),
        (
            {
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "a" * 24,
                "Sec-WebSocket-Protocol": "qs.ticket.binary",
            },
            400,
        ),
    ],
)
async def test_what_is_no_handshake_is_refused(serve: Serve, headers: dict[str, str], status: int) -> None:
    """In HTTP, before anything is taken over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", serve().port)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    writer.write(f"GET /owner/alice HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())

    assert (await reader.readline()).split()[1] == str(status).encode()
    writer.close()


async def test_the_screen_is_kept_fresh_while_somebody_looks(serve: Serve, desktop: FakeDesktop) -> None:
    """A second connection sends key-ups of F24, and ends with the last viewer."""
    browser = await open_browser(serve(refresh_keepalive_ms=5))
    streams = [await desktop.connections.get() for _ in range(2)]
    expected = rfb.set_encodings([-258]) + rfb.extended_key(keysym=0xFFD5, scan_code=0x76, down=False)
    pending = [asyncio.create_task(reader.readexactly(len(expected))) for reader, _ in streams]

    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(browser.peer.close)
    keeper = streams[pending.index(next(iter(done)))][0]
    async with asyncio.timeout(5):
        await keeper.read()

    assert next(iter(done)).result() == expected
    for task in pending:
        task.cancel()


async def test_a_real_qemu_answers_a_key_with_a_picture(serve: Serve, tmp_path: Path) -> None:
    """Through websocket, filter and VNC: the tiny guest paints the next colour."""
    with tiny_guest(tmp_path) as vnc:
        served = serve(vnc, refresh_keepalive_ms=15)
        browser = await open_browser(served)
        await browser.send(rfb.set_encodings([0, -223, -312]))
        colours: list[tuple[int, ...]] = []
        async with asyncio.timeout(20):
            while not {GREEN, RED} <= set(colours):
                await browser.send(struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT))
                head = await browser.read(4)
                for _ in range(int.from_bytes(head[2:], "big")):
                    *_, width, height, encoding = struct.unpack(">HHHHi", await browser.read(12))
                    if encoding == 0:
                        blue, green, red = (await browser.read(width * height * 4))[:3]
                        colours.append((red, green, blue))
                await browser.send(KEY + KEY[:1] + b"\x00" + KEY[2:])

        assert {GREEN, RED} <= set(colours)
