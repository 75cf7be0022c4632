"""What bench/relay.py measures with: a desktop that sends what it is told, the paths to it, and clients.

Run as `python relay_peers.py PATH SOCKET PORT`, this is one of the paths in a process of its own.
"""

import asyncio
import base64
import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tornado import httpserver, web

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.relay import Relay, Viewer
from qemuspawner.session.screen.websocket import accept_websocket

BLOCK = os.urandom(64 * 1024)
END = b"\xff\x00end of stream\x00\xff"
PONG = b"pong" * 4
PICTURE = BLOCK[: 20 * 1024]
_BUFFER_BYTES = 256 * 1024
_HEAD = struct.pack(">HH", 640, 480) + bytes(16)


# The far end.


class Source:
    """A VNC server for measuring: a key event asks for that many blocks, a pointer event for a pong,
    an update request for a small picture; copied texts are read and forgotten.
    """

    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        channel = UnixChannel(connection)
        with connection, contextlib.suppress(OSError, EOFError):
            channel.send(rfb.VERSION)
            channel.read(12)
            channel.send(b"\x01\x01")
            channel.read(1)
            channel.send(bytes(4))
            channel.read(1)
            channel.send(_HEAD + struct.pack(">I", 4) + b"QEMU")
            while True:
                match channel.read(1)[0]:
                    case 3:
                        channel.read(9)
                        channel.send(PICTURE)
                    case 4:
                        for _ in range(int.from_bytes(channel.read(7)[3:], "big")):
                            channel.send(BLOCK)
                        channel.send(END)
                    case 5:
                        channel.read(5)
                        channel.send(PONG)
                    case 6:
                        channel.skip(int.from_bytes(channel.read(7)[3:], "big"))


# Paths: each a process that listens on a TCP port and leads to a unix socket.


def copy_sockets(target: str, port: int) -> None:
    """The bare minimum: bytes from one socket to the other, a thread a direction."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with contextlib.suppress(OSError):
            while size := source.recv_into(buffer):
                sink.sendall(buffer[:size])
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            client, _ = listening.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            desktop = socket.socket(socket.AF_UNIX)
            desktop.connect(target)
            for pair in ((client, desktop), (desktop, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()


async def serve_relay(target: str, port: int) -> None:
    """Our relay as a session runs it, without the login before it."""
    keepalive_ms = int(os.environ.get("KEEPALIVE_MS", "0"))
    relay = Relay(
        session_id="bench",
        vnc_socket=Path(target),
        name="bench",
        on_forward=lambda _viewer, _forward: None,
        refresh_keepalive_ms=keepalive_ms,
    )

    numbers = itertools.count()

    class Handler(web.RequestHandler):
        async def get(self) -> None:
            # Each a person of their own: one person has two windows.
            viewer = Viewer(name=f"bench{next(numbers)}", allowed=rfb.CONTROL, is_owner=True)
            await relay.serve(await accept_websocket(self), viewer)

    httpserver.HTTPServer(web.Application([("/.*", Handler)])).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


def main() -> None:
    path, target, port = sys.argv[1:]
    if path == "copy":
        copy_sockets(target, int(port))
    elif path == "uvloop":
        import uvloop

        uvloop.run(serve_relay(target, int(port)))
    else:
        asyncio.run(serve_relay(target, int(port)))


class RunningPath:
    """A running path, and what its processes use."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, *, is_websocket: bool) -> None:
        self.process = process
        self.port = port
        self.is_websocket = is_websocket

    def connect(self) -> "Channel":
        connection = _connect(self.port)
        channel = WebSocketChannel(connection) if self.is_websocket else UnixChannel(connection)
        greet(channel)
        return channel

    def _processes(self) -> list[int]:
        """The process and its children: websockify forks one a client."""
        found = [self.process.pid]
        for entry in list(Path("/proc").iterdir()):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == self.process.pid:
                        found.append(int(entry.name))
        return found

    def cpu(self) -> dict[int, float]:
        """Seconds by process, by the scheduler's nanoseconds; the usual ticks are 10 ms."""
        spent = {}
        for pid in self._processes():
            with contextlib.suppress(OSError):
                threads = list(Path(f"/proc/{pid}/task").iterdir())
                spent_ns = sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)
                spent[pid] = spent_ns / 1e9
        return spent

    def cpu_s_since(self, before: dict[int, float]) -> float:
        """A process that has ended meanwhile served somebody else: it does not count."""
        return sum(spent - before.get(pid, 0) for pid, spent in self.cpu().items())

    def rss_mib(self) -> float:
        pages = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.contextmanager
def start_path(name: str, target: Path, *, keepalive_ms: int = 0) -> Iterator[RunningPath]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if name == "websockify":
        command = [sys.executable, "-m", "websockify", f"--unix-target={target}", f"127.0.0.1:{port}"]
    else:
        command = [sys.executable, __file__, name, str(target), str(port)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"KEEPALIVE_MS": str(keepalive_ms)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _connect(port).close()
        yield RunningPath(process, port, is_websocket=name != "copy")
    finally:
        process.terminate()
        process.wait()


def _connect(port: int) -> socket.socket:
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


# Clients.


class UnixChannel:
    """A stream of bytes over a socket, unix or TCP."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, size: int) -> bytes:
        while len(self._received) < size:
            self._received += self._receive()
        data, self._received = self._received[:size], self._received[size:]
        return data

    def skip(self, size: int) -> None:
        size -= len(self._received)
        self._received = self._received[len(self._received) + size :] if size < 0 else b""
        buffer = memoryview(bytearray(1024 * 1024))
        while size > 0:
            got = self.socket.recv_into(buffer[: min(size, len(buffer))])
            if not got:
                raise EOFError
            size -= got

    def read_to_end(self) -> int:
        """Read up to END and return the bytes that came; frames are not looked at."""
        buffer = memoryview(bytearray(1024 * 1024))
        total = 0
        tail = b""
        while not tail.endswith(END):
            size = self.socket.recv_into(buffer)
            if not size:
                raise EOFError
            total += size
            tail = (tail + bytes(buffer[max(0, size - len(END)) : size]))[-len(END) :]
        return total

    def _receive(self) -> bytes:
        data = self.socket.recv(1024 * 1024)
        if not data:
            raise EOFError
        return data

    def close(self) -> None:
        self.socket.close()


class WebSocketChannel(UnixChannel):
    """The same through a websocket."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Sec-WebSocket-Protocol: binary\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        self._frames = connection.makefile("rb", buffering=1024 * 1024)

    def send(self, data: bytes) -> None:
        # A mask of zeros leaves the payload as it is.
        size = len(data)
        length = bytes([0xFF]) + size.to_bytes(8, "big")
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 65536:
            length = bytes([0xFE]) + size.to_bytes(2, "big")
        super().send(b"\x82" + length + bytes(4) + data)

    def _receive(self) -> bytes:
        head = self._frames.read(2)
        if len(head) < 2:
            raise EOFError
        size = head[1] & 127
        if size == 126:
            size = int.from_bytes(self._frames.read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._frames.read(8), "big")
        return self._frames.read(size)


Channel = UnixChannel


def connect_unix(path: Path) -> Channel:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    channel = UnixChannel(connection)
    greet(channel)
    return channel


def greet(channel: Channel) -> None:
    channel.read(12)
    channel.send(rfb.VERSION)
    channel.read(2)
    channel.send(b"\x01")
    channel.read(4)
    channel.send(b"\x01")
    head = channel.read(24)
    channel.read(int.from_bytes(head[20:], "big"))


if __name__ == "__main__":
    main()
