"""What tests start in place of QEMU; fake_qemu.py says what it does. It needs nothing but Python."""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VERSION = "QEMU emulator version 7.2.0 (fake)"
ORDERS = Path(sys.argv[0]).parent.parent / "lib" / "orders"  # the walls let it read what lies there
NOTES = "notes"
GREEN, RED = (0, 168, 0), (168, 0, 0)
WAKING = {signal.SIGUSR1, signal.SIGTERM}

Address = tuple[int, int]


def set_seccomp() -> None:
    """A filter as -sandbox has one: no other program, no other account, nobody else's memory. x86-64."""
    denied = (57, 58, 59, 322, 101, 105, 106, 113, 114, 117, 119)  # fork to execveat, ptrace, set*id
    code = [struct.pack("=HBBI", 0x20, 0, 0, 0)]  # load the call's number
    for at, number in enumerate(denied):
        code.append(struct.pack("=HBBI", 0x15, len(denied) - at, 0, number))  # equal: go to the last
    code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # allowed
    code.append(struct.pack("=HBBI", 0x06, 0, 0, 0x80000000))  # the process is killed
    instructions = ctypes.create_string_buffer(b"".join(code))
    program = struct.pack("HL", len(code), ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.create_string_buffer(program), 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp")


def open_disk(path: str, *, read_only: bool) -> int:
    """Open an image and lock it as QEMU does: qemu-img refuses one that is written to.

    Source: QEMU's block/file-posix.c, raw_apply_lock_bytes: 100 and on is what we do, 200 and on what others
    must not; bit 0 reads, 1 writes, 3 resizes.
    """
    descriptor = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    for byte in (100,) if read_only else (100, 101, 103, 201, 203):
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(descriptor, 37, lock)  # F_OFD_SETLK
    return descriptor


def find_files(node: dict[str, Any], *, read_only: bool = False) -> Iterator[tuple[str, bool]]:
    """The files of a -blockdev with everything under it, and whether each is only read."""
    read_only = read_only or bool(node.get("read-only"))
    if "filename" in node:
        yield str(node["filename"]), read_only
    if isinstance(node.get("file"), dict):
        yield from find_files(node["file"], read_only=read_only)
    if isinstance(node.get("backing"), dict):
        yield from find_files(node["backing"], read_only=True)


def listen(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    return server


class FakeQemu:
    """A machine that paints its screen, and the orders that it was given."""

    def __init__(self) -> None:
        self.orders: dict[str, str] = {}
        self.state = "prelaunch"
        self.size: Address = (320, 200)
        self.colour = GREEN
        self.viewers: list[Viewer] = []
        self._down: set[int] = set()
        self._is_silent = False
        self._executed = 0
        self._given: list[int] = []  # descriptors that came with a message
        self._named: dict[str, int] = {}
        self._client: socket.socket | None = None
        self._lock = threading.RLock()
        self._notes = os.open(NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    # Orders

    def read_orders(self) -> None:
        """Those for all, and over them those for this session, whose folder holds the one we are in."""
        orders: dict[str, str] = {}
        for name in ("all", Path.cwd().parent.name):
            if (path := ORDERS / name).exists():
                orders |= json.loads(path.read_text())
        self.orders = orders

    def heed(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self.read_orders()
            self.reach("now")
        elif self.reach("SIGTERM") != "ignore":
            self.quit("host-signal")

    def reach(self, *steps: str) -> str:
        """Do what was ordered for one of these steps, which are one moment; the fault, or ""."""
        fault = next((self.orders[step] for step in steps if step in self.orders), "")
        match fault:
            case "die":
                os.write(2, b"fake QEMU: dies as it was told\n")
                os._exit(1)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "silent" if not {"agent", "rfb"}.intersection(steps):
                self._is_silent = True
            case "flood":
                threading.Thread(target=self._flood, daemon=True).start()
            case "panic":
                self.state = "guest-panicked"
                self.tell("GUEST_PANICKED", action="pause")
        return fault

    def _flood(self) -> None:
        while True:
            self.tell("RTC_CHANGE", offset=1)

    def note(self, *what: object) -> None:
        os.write(self._notes, json.dumps(what).encode() + b"\n")

    # QMP

    def serve_qmp(self, server: socket.socket) -> None:
        """One client after the other, as QEMU does."""
        while True:
            client, _ = server.accept()
            with client:
                version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}
                greeting = {"QMP": {"version": version, "capabilities": []}}
                self._say(client, greeting, self.reach("greeting"))
                with self._lock:
                    self._client = client
                for command in self._receive(client):
                    self._answer(client, command)
                with self._lock:
                    self._client = None

    def _receive(self, client: socket.socket) -> Iterator[dict[str, Any]]:
        waiting = ""
        while True:
            data, descriptors, _, _ = socket.recv_fds(client, 1 << 16, 4)
            self._given += descriptors
            if not data:
                return
            # Nothing is between two commands but what is sent with a descriptor.
            waiting = (waiting + data.decode()).lstrip()
            with contextlib.suppress(ValueError):
                while waiting:
                    command, end = json.JSONDecoder().raw_decode(waiting)
                    waiting = waiting[end:].lstrip()
                    yield command

    def _answer(self, client: socket.socket, message: dict[str, Any]) -> None:
        command, arguments = message["execute"], message.get("arguments", {})
        self._executed += 1
        self.note("qmp", command)
        fault = self.reach(command, str(self._executed))
        if fault == "ignore":
            return
        answer = {"id": message["id"]} if "id" in message else {}
        if fault == "refuse":
            answer["error"] = {"class": "GenericError", "desc": "as told"}
        else:
            answer["return"] = self._execute(command, arguments)
        self._say(client, answer, fault)
        if command == "quit" and fault != "refuse":
            self.quit("host-qmp-quit")

    def _say(self, client: socket.socket, message: dict[str, object], fault: str) -> None:
        if fault == "half":
            client.sendall(json.dumps(message).encode()[:-5])
            self._is_silent = True
        self._send(client, message)

    def _execute(self, command: str, arguments: dict[str, Any]) -> object:
        match command:
            case "cont":
                self._change("running", "RESUME")
            case "stop":
                self._change("paused", "STOP")
            case "system_reset":
                if self.state == "guest-panicked":
                    self.state = "paused"
                self.tell("RESET", guest=False, reason="host-qmp-system-reset")
                self.paint(GREEN)
            case "system_powerdown":
                self.tell("POWERDOWN")
            case "send-key":
                self.press(0)
            case "query-status":
                return {"status": self.state, "running": self.state == "running", "singlestep": False}
            case "query-cpus-fast":
                return [{"thread-id": os.getpid(), "cpu-index": 0, "qom-path": "/", "target": "x86_64"}]
            case "query-blockstats" | "query-block" | "qom-list":
                return []
            case "ringbuf-read" | "human-monitor-command":
                return ""
            case "screendump":
                Path(arguments["filename"]).write_bytes(self._picture())
            case "getfd":
                self._named[arguments["fdname"]] = self._given.pop()
            case "migrate":
                os.write(self._named.pop(arguments["uri"].partition(":")[2]), b"a saved fake\n" * 100)
                self.state = "postmigrate"
            case "migrate-incoming":
                self.state = "paused"
            case "query-migrate":
                return {"status": "completed"}
        return {}

    def _change(self, state: str, event: str) -> None:
        self.state = state
        self.tell(event)

    def tell(self, event: str, **data: object) -> None:
        """An event, where somebody listens."""
        with self._lock:
            if self._client is not None:
                moment = {"seconds": 0, "microseconds": 0}
                self._send(self._client, {"event": event, "data": data, "timestamp": moment})

    def _send(self, client: socket.socket, message: dict[str, object]) -> None:
        with self._lock:
            if not self._is_silent:
                try:
                    client.sendall(json.dumps(message).encode() + b"\r\n")
                except OSError:
                    self._client = None

    def quit(self, reason: str) -> None:
        self.tell("SHUTDOWN", guest=False, reason=reason)
        os._exit(0)

    # The guest's agent

    def serve_agent(self, server: socket.socket) -> None:
        """It answers, and does nothing of what it is asked for."""
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                for line in connection.makefile("rb"):
                    request = json.loads(line.strip(b"\xff\n"))
                    self.note("agent", request["execute"])
                    if self.reach("agent") == "silent" or self.state != "running":
                        continue
                    connection.sendall(json.dumps(self._answer_as_agent(request)).encode() + b"\n")

    def _answer_as_agent(self, request: dict[str, Any]) -> dict[str, object]:
        match request["execute"]:
            case "guest-sync-delimited":
                return {"return": request["arguments"]["id"]}
            case "guest-ping":
                return {"return": {}}
        return {"error": {"class": "CommandNotFound", "desc": "a fake agent does nothing"}}

    # The screen and what people do to it

    def paint(self, colour: tuple[int, int, int]) -> None:
        self.colour = colour
        for viewer in list(self.viewers):
            viewer.draw()

    def press(self, key: int) -> None:
        self.paint(RED if self.colour == GREEN else GREEN)

    def note_key(self, key: int, *, down: bool) -> None:
        """As QEMU does, without the release of a key that was never pressed."""
        if not down and key not in self._down:
            return
        (self._down.add if down else self._down.discard)(key)
        self.note("key", key, down)
        if down:
            self.press(key)

    def serve_viewers(self, server: socket.socket) -> None:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=Viewer(self, connection).serve, daemon=True).start()

    def _picture(self) -> bytes:
        width, height = self.size
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        lines = (b"\0" + bytes(self.colour) * width) * height
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )


class Viewer:
    """One client of the VNC server. Source: RFC 6143, and rfbproto.rst for QEMU's own messages."""

    def __init__(self, qemu: FakeQemu, connection: socket.socket) -> None:
        self._qemu = qemu
        self._connection = connection
        self._count = 0  # of its bytes
        self._encodings: tuple[int, ...] = ()
        # Bits a pixel, big endian, the most of each colour, and where it begins.
        self._format = (32, 0, (255, 255, 255), (16, 8, 0))
        self._waits = False
        self._seen: object = None
        self._lock = threading.Lock()
        self._messages: dict[int, Callable[[], None]] = {
            0: self._set_format, 2: self._set_encodings, 3: self._ask, 4: self._key, 5: self._pointer,
            6: self._cut, 251: self._set_size, 255: self._qemu_message,
        }  # fmt: skip

    def serve(self) -> None:
        qemu, take = self._qemu, self._take
        try:
            match qemu.reach("rfb"):
                case "garbage":
                    self._send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(range(256)))
                case "half":
                    self._send(b"RFB 00")
                case "silent" | "ignore":
                    pass
                case _:
                    self._send(b"RFB 003.008\n")
            take(12)
            self._send(b"\x01\x01")
            take(1)
            self._send(bytes(4))
            take(1)
            layout = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
            self._send(struct.pack(">HH", *qemu.size) + layout + struct.pack(">I", 4) + b"FAKE")
            qemu.viewers.append(self)
            while True:
                (kind,) = take(1)
                if kind not in self._messages:
                    qemu.note("unknown", kind)
                    return
                self._messages[kind]()
        except (EOFError, OSError):
            pass
        finally:
            if self in qemu.viewers:
                qemu.viewers.remove(self)
            self._connection.close()
            qemu.note("bytes", self._count)

    def _take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._connection.recv(min(size - len(data), 1 << 16))
            if not piece:
                raise EOFError
            self._count += len(piece)
            data += piece
        return data

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._connection.sendall(data)

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _set_format(self) -> None:
        bits, _, big, _, *colours = self._unpack(">xxxBBBBHHHBBBxxx")
        self._format = (bits, big, tuple(colours[:3]), tuple(colours[3:]))

    def _set_encodings(self) -> None:
        (count,) = self._unpack(">xH")
        self._encodings = self._unpack(f">{count}i")

    def _ask(self) -> None:
        (incremental,) = self._unpack(">B8x")
        self._waits = True
        if not incremental:
            self._seen = None
        self.draw()

    def draw(self) -> None:
        """Send the screen where it was asked for and is another one."""
        now = (self._qemu.size, self._qemu.colour)
        if not self._waits or self._seen == now:
            return
        self._waits, self._seen = False, now
        (width, height), colour = now
        bits, big, most, shift = self._format
        value = sum(colour[i] * most[i] // 255 << shift[i] for i in range(3))
        pixel = value.to_bytes(bits // 8, "big" if big else "little")
        try:
            self._send(struct.pack(">BxHHHHHi", 0, 1, 0, 0, width, height, 0) + pixel * (width * height))
        except OSError:
            self._connection.close()

    def _key(self) -> None:
        down, key = self._unpack(">BxxI")
        self._qemu.note_key(key, down=bool(down))

    def _pointer(self) -> None:
        mask, x, y = self._unpack(">BHH")
        self._qemu.note("pointer", x, y, mask)

    def _cut(self) -> None:
        (size,) = self._unpack(">xxxi")
        self._take(abs(size))
        self._qemu.note("cut", size)

    def _set_size(self) -> None:
        width, height, screens = self._unpack(">xHHBx")
        self._take(16 * screens)
        self._qemu.size = (width, height)
        self._qemu.note("size", width, height)
        for viewer in list(self._qemu.viewers):
            viewer.tell_size()

    def tell_size(self) -> None:
        if -308 in self._encodings:
            width, height = self._qemu.size
            screen = struct.pack(">BxxxIHHHHI", 1, 0, 0, 0, width, height, 0)
            self._send(struct.pack(">BxHHHHHi", 0, 1, 0, 0, width, height, -308) + screen)
        self._seen = None

    def _qemu_message(self) -> None:
        (kind,) = self._unpack(">B")
        if kind == 0:
            down, key, _ = self._unpack(">HII")
            self._qemu.note_key(key, down=bool(down))
        elif kind == 1:
            (operation,) = self._unpack(">H")
            if operation == 2:
                self._unpack(">BBI")
        else:
            self._qemu.note("unknown", 255, kind)
            raise EOFError


def main() -> None:
    words = sys.argv[1:]
    if "--version" in words:
        print(VERSION)
        return
    options: dict[str, list[str]] = {}
    for option, value in zip(words, [*words[1:], ""], strict=True):
        options.setdefault(option, []).append(value)
    qemu = FakeQemu()
    for number in WAKING:
        signal.signal(number, qemu.heed)
    qemu.read_orders()
    if "-incoming" in options:
        qemu.state = "inmigrate"
    for node in options.get("-blockdev", []):
        for path, read_only in find_files(json.loads(node)):
            open_disk(path, read_only=read_only)
    qemu.reach("start")
    _, qmp_path, *_ = options["-qmp"][0].replace(",", ":").split(":")
    _, vnc_path, *_ = options["-vnc"][0].replace(",", ":").split(":")
    qmp = listen(qmp_path)
    qemu.reach("sockets")
    vnc = listen(vnc_path)
    servers = {qemu.serve_qmp: qmp, qemu.serve_viewers: vnc}
    for value in options.get("-chardev", []):
        for word in value.split(","):
            if word.startswith("path="):
                servers[qemu.serve_agent] = listen(word.removeprefix("path="))
    if qemu.reach("sandbox") != "ignore" and "-sandbox" in options:
        set_seccomp()
    # Our signals are for this thread, which can do nothing else than wait for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    for serve, server in servers.items():
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKING)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
