"""QEMU as a running process: start it, speak QMP, stop it by steps."""

import asyncio
import base64
import contextlib
import logging
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qemu.qmp import EventListener, QMPClient, QMPError

from qemuspawner.errors import VmError
from qemuspawner.paths import AGENT_SOCKET, QMP_SOCKET, VNC_SOCKET, SessionPaths
from qemuspawner.qemu.command import CLIPBOARD_CHARDEV, NETWORK, REPORT_BYTES, REPORT_CHARDEV, overlay_node
from qemuspawner.qemu.network import NO_NETWORK
from qemuspawner.qemu.vm import Disk, node_name
from qemuspawner.texts import Text

# An answer takes milliseconds; a QEMU that is silent for so long hangs.
_PIECE_BYTES = 48 << 10
_QMP_TIMEOUT_S = 5
# Until it answers again nobody waits as long for it, or a stop, which asks for several things, took minutes.
_SILENT_TIMEOUT_S = 1
# While QEMU reads or writes gigabytes it answers nobody; after that its disk hangs.
_MIGRATION_TIMEOUT_S = 300
_MIGRATION_POLL_S = 0.005
_QUIT_TIMEOUT_S = 3
_WALLS_END_S = 2
# All of the guest's memory is brought in and locked for a GPU: gigabytes take seconds.
_PLUG_TIMEOUT_S = 120
_MAX_PICTURE_BYTES = 64 << 20

# QEMU's word for a VM whose guest's system said that it has crashed, and which is paused for that.
_CRASHED = "guest-panicked"

# A guest can make QEMU complain without end (unknown keys, device errors).
_MAX_LOG_LINES = 200

Log = logging.LoggerAdapter[logging.Logger]


class QemuProcess:
    """One QEMU, with everything that was put around it."""

    def __init__(self, process: subprocess.Popen[bytes], paths: SessionPaths, *, log: Log) -> None:
        self._process = process
        self._paths = paths
        self._log = log
        self._qmp = QMPClient("qemuspawner")
        # Its own queue of events has no end and no reader: each viewer who comes or goes is three of them.
        self._qmp.events.event_filter = lambda _event: False
        self._qmp_socket: socket.socket | None = None
        self._limits_files = False
        self._is_frozen = False
        self._is_silent = False
        self._exited = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._picture_lock = asyncio.Lock()
        self.last_words = ""  # the newest line QEMU wrote to its standard error
        self.pid = 0  # QEMU's own, once QMP answers; `process` may be the outermost wall

    async def connect(self, *, timeout_s: float) -> None:
        """Wait until QMP answers, and take QEMU's sockets out of its reach.

        Raises:
            VmError: QEMU ended, or said nothing within `timeout_s` seconds.
        """
        self._tasks = [asyncio.create_task(self._read_log()), asyncio.create_task(self._wait_for_exit())]
        qmp_socket = self._paths.vm / QMP_SOCKET
        try:
            async with asyncio.timeout(timeout_s):
                while self._qmp_socket is None:
                    await self._check_alive()
                    # bind() makes the file before listen() accepts: a refused connection means "not yet".
                    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                        self._qmp_socket = connect_socket(qmp_socket)
                        break
                    await asyncio.sleep(0.01)
                self.pid = find_listener(self._qmp_socket)
                await self._qmp.connect(self._qmp_socket)
                # QEMU greets when all its sockets are there.
                self._take_sockets()
        except (TimeoutError, QMPError, OSError) as exc:
            if not isinstance(exc, TimeoutError):
                # It closed the connection, and most likely ends: the walls around it do so a moment later.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_WALLS_END_S):
                        await self._exited.wait()
            await self._check_alive()
            raise VmError(Text("QEMU did not answer within {timeout_s} s.", timeout_s=timeout_s)) from exc

    def _take_sockets(self) -> None:
        """Move QEMU's sockets out of the directory that it may write to.

        A guest that broke out could else put a link in a socket's place, and we would follow it.
        """
        for name in (VNC_SOCKET, QMP_SOCKET, AGENT_SOCKET):
            made = self._paths.vm / name
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(made.lstat().st_mode):
                    made.rename(self._paths.root / name)

    async def _check_alive(self) -> None:
        if self._process.poll() is not None:
            # Its last words may still be on their way.
            await asyncio.wait(self._tasks, timeout=1)
            self._log.error("QEMU ended with code %s: %s", self._process.returncode, self.last_words)
            if self._process.returncode == NO_NETWORK:
                raise VmError(
                    Text("The machine's network could not be built on this host."),
                    hint=Text("The administrator finds the reason with `qemuspawner doctor`."),
                )
            raise VmError(
                Text("QEMU could not start the machine."),
                hint=Text("The administrator finds QEMU's own words in the hub's log."),
            )

    async def execute(self, command: str, **arguments: object) -> object:
        """Run a QMP command and return its answer.

        Raises:
            VmError: QEMU refused, ended, or was silent for 5 s; for 1 s where it has been so before.
        """
        timeout_s = _SILENT_TIMEOUT_S if self._is_silent else _QMP_TIMEOUT_S
        return await self._execute(command, arguments, timeout_s=timeout_s)

    async def _execute(self, command: str, arguments: Mapping[str, object], *, timeout_s: float) -> object:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._qmp.execute(command, dict(arguments) or None)
            self._is_silent = False
            return answer
        except TimeoutError as exc:
            self._is_silent = True
            raise VmError(
                Text(
                    "QEMU did not answer '{command}' within {timeout_s} s.",
                    command=command,
                    timeout_s=timeout_s,
                )
            ) from exc
        except QMPError as exc:
            raise VmError(Text("QEMU refused '{command}': {exc}", command=command, exc=exc)) from exc

    async def plug(self, device: Mapping[str, object]) -> None:
        """Plug a device of the host in. Raises VmError where QEMU refuses it, or ends over it."""
        await self._execute("device_add", device, timeout_s=_PLUG_TIMEOUT_S)

    async def restore(self, state: int, *, mapped: bool) -> None:
        """Read what `save` wrote from the inherited descriptor `state`; the VM is left paused.

        `mapped`: the memory is there already, as a file that was saved with it.

        Raises:
            VmError: QEMU does not accept it; it ends or has to be ended.
        """
        await self._prepare_migration(mapped=mapped)
        await self._execute("migrate-incoming", {"uri": f"fd:{state}"}, timeout_s=_MIGRATION_TIMEOUT_S)
        await self._wait_for_migration()
        # It was saved from a paused VM, and so is paused when it has settled.
        await self._wait_while("inmigrate")

    async def save(self, path: Path, *, mapped: bool) -> None:
        """Write the paused VM to `path`, without its memory where that is `mapped` from a shared file.

        Raises:
            VmError: The VM cannot be saved as it is, or the disk is full. It can go on.
        """
        await self._prepare_migration(mapped=mapped)
        bandwidth: dict[str, object] = {"max-bandwidth": 1 << 40}
        await self.execute("migrate-set-parameters", **bandwidth)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await self.give_descriptor("saved", descriptor)
            with self._lifted_file_limit():
                await self._execute("migrate", {"uri": "fd:saved"}, timeout_s=_MIGRATION_TIMEOUT_S)
                await self._wait_for_migration()
        finally:
            os.close(descriptor)
        # Before that it refuses to go on.
        await self._wait_while("finish-migrate")

    def limit_files(self, mib: int) -> None:
        """Let no file become larger than so much; raises VmError where QEMU has ended.

        A guest's write beyond it pauses the VM, as a full disk does. QEMU's own bound, from its start, stays.
        """
        try:
            _, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
            wanted = mib << 20
            now = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (now, most))
            self._limits_files = True
        except OSError as exc:
            raise VmError(Text("QEMU's files cannot be limited: {strerror}.", strerror=exc.strerror)) from exc

    @contextlib.contextmanager
    def _lifted_file_limit(self) -> Iterator[None]:
        """Up to the bound it was started with: what is saved holds the memory, and the guest is paused."""
        if not self._limits_files:
            # It may be another account's, whose bounds even root may not be allowed to look at.
            yield
            return
        try:
            now, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (most, most))
        except ProcessLookupError as exc:
            raise VmError(Text("QEMU has ended.")) from exc
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (now, most))

    async def give_descriptor(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of our descriptor under a name. Raises VmError where it does not take it."""
        # QMPClient's own way knows asyncio's sockets only, not uvloop's.
        assert self._qmp_socket is not None
        try:
            socket.send_fds(self._qmp_socket, [b" "], [descriptor])
        except OSError as exc:
            raise VmError(Text("QEMU does not take a file: {exc}.", exc=exc)) from exc
        await self.execute("getfd", fdname=name)

    async def _prepare_migration(self, *, mapped: bool) -> None:
        capability = {"capability": "x-ignore-shared", "state": mapped}
        await self.execute("migrate-set-capabilities", capabilities=[capability])

    async def _wait_for_migration(self) -> None:
        try:
            async with asyncio.timeout(_MIGRATION_TIMEOUT_S):
                while True:
                    answer = await self._execute("query-migrate", {}, timeout_s=_MIGRATION_TIMEOUT_S)
                    status = answer.get("status") if isinstance(answer, dict) else None
                    if status == "completed":
                        return
                    if status in ("failed", "cancelled"):
                        assert isinstance(answer, dict)
                        raise VmError(
                            Text(
                                "QEMU cannot save or restore: {words}.",
                                words=answer.get("error-desc", status),
                            )
                        )
                    await asyncio.sleep(_MIGRATION_POLL_S)
        except TimeoutError as exc:
            with contextlib.suppress(VmError):
                await self.execute("migrate_cancel")
            raise VmError(
                Text(
                    "QEMU did not save within {migration_timeout_s} s.",
                    migration_timeout_s=_MIGRATION_TIMEOUT_S,
                )
            ) from exc

    async def _wait_while(self, state: str) -> None:
        for _ in range(int(_QMP_TIMEOUT_S / _MIGRATION_POLL_S)):
            if await self.run_state() != state:
                return
            await asyncio.sleep(_MIGRATION_POLL_S)
        raise VmError(Text("QEMU does not leave the state '{state}'.", state=state))

    async def run_state(self) -> object:
        """QEMU's own word for what the VM does, such as "running", "paused" or "io-error"."""
        answer = await self.execute("query-status")
        return answer.get("status") if isinstance(answer, dict) else None

    async def reset(self) -> None:
        """Press the reset button; a guest that has crashed runs again after it. Raises VmError."""
        state = await self.run_state()
        await self.execute("system_reset")
        if state == _CRASHED:
            # Answered before it is done; until then QEMU refuses to go on.
            await self._wait_while(_CRASHED)
            await self.execute("cont")

    async def freeze_disk(self, disk: Disk, path: Path) -> None:
        """Write to the new, empty overlay at `path` from now on; what was written so far is frozen.

        Raises:
            VmError: QEMU refused; it goes on writing where it did.
        """
        node = node_name(disk.id, len(disk.layers) + 1)
        await self.execute("blockdev-add", **overlay_node(node, path))
        try:
            # It waits for what is being written, on a busy disk for long.
            await self._execute(
                "blockdev-snapshot", {"node": disk.node, "overlay": node}, timeout_s=_MIGRATION_TIMEOUT_S
            )
        except VmError:
            # Unsure whether it happened: QEMU knows.
            if await self._written_node(disk) == node:
                return
            with contextlib.suppress(VmError):
                await self.execute("blockdev-del", **{"node-name": node})
            raise

    async def _written_node(self, disk: Disk) -> object:
        """The node that the disk's device writes to."""
        answer = await self.execute("query-block")
        for block in answer if isinstance(answer, list) else []:
            if f"{disk.id}-device" in str(block.get("qdev")):
                return (block.get("inserted") or {}).get("node-name")
        return None

    async def connect_clipboard(self, *, connected: bool) -> None:
        """Connect the guest's clipboard agent with VNC's clients, or with nobody."""
        # Else QEMU sends the pointer there too, past the tablet, and the guest's agent has none.
        data = {"clipboard": True, "mouse": False} if connected else {}
        backend = {"type": "qemu-vdagent" if connected else "null", "data": data}
        await self.execute("chardev-change", id=CLIPBOARD_CHARDEV, backend=backend)

    async def read_report(self) -> bytes:
        """What the guest has written on its channel for reports since the last time; the end of much."""
        told = b""
        while len(told) < REPORT_BYTES:
            # QMP's answers must not be too long.
            piece = await self.execute(
                "ringbuf-read", device=REPORT_CHARDEV, size=_PIECE_BYTES, format="base64"
            )
            if not piece:
                break
            told += base64.b64decode(str(piece))
        return told

    async def forward_port(self, *, inner: int, port: int) -> None:
        """Let the guest's TCP port `port` be reached at port `inner` of the loopback in QEMU's namespace.

        Only so inwards: the guest's own network leads as little further as before.

        Raises:
            VmError: It cannot be.
        """
        command = f"hostfwd_add {NETWORK} tcp:127.0.0.1:{inner}-:{port}"
        # QMP has no command of its own for it; the answer is what the monitor prints, nothing on success.
        answer = await self.execute("human-monitor-command", **{"command-line": command})
        if answer:
            raise VmError(
                Text(
                    "QEMU does not forward the machine's port {port}: {words}.",
                    port=port,
                    words=str(answer).strip(),
                )
            )

    async def screenshot(self) -> bytes:
        """The screen as a PNG.

        Raises:
            VmError: There is none, or it could not be written.
        """
        async with self._picture_lock:
            path = self._paths.vm / "screen.png"
            try:
                path.unlink(missing_ok=True)
                await self.execute("screendump", filename=str(path), format="png")
                return await asyncio.to_thread(_read_picture, path)
            except OSError as exc:
                raise VmError(
                    Text("The screen could not be saved."), hint=Text("Is the host's disk full?")
                ) from exc
            finally:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[EventListener]:
        """Listen to the QMP events of these names from now on."""
        with self._qmp.listener(names) as listener:
            yield listener

    async def wait(self) -> int:
        """Wait for QEMU's end; its exit code."""
        await self._exited.wait()
        return self._process.returncode or 0

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def freeze(self) -> None:
        """Have it stand still, whatever it is doing; from any thread. It can still be killed."""
        self._is_frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._is_frozen = False
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self) -> None:
        """End QEMU now: `quit`, then SIGKILL. A guest that should shut down was asked before."""
        if self.running and not self._is_frozen:
            with contextlib.suppress(VmError):
                await self.execute("quit")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIT_TIMEOUT_S):
                    await self._exited.wait()
        if self.running:
            if not self._is_frozen:
                self._log.warning("QEMU did not quit; it is killed.")
            await self._kill()
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._qmp.disconnect()
        if self._qmp_socket is not None:
            self._qmp_socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _kill(self) -> None:
        """End QEMU itself, and its walls with it: whoever is told may have its disk.

        The outermost wall is gone before QEMU where it is killed.
        """
        if self.pid:
            self._signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WALLS_END_S):
                    await self._exited.wait()
        if self.running:
            self._process.kill()
            await self._exited.wait()

    async def _wait_for_exit(self) -> None:
        """A pidfd becomes readable when the process ends."""
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(self._process.pid)
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self._process.wait()
        self._exited.set()

    async def _read_log(self) -> None:
        if self._process.stderr is None:
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 16)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stderr)
        count = 0
        while chunk := await reader.read(1 << 14):
            for line in chunk.decode(errors="replace").splitlines():
                if text := line.strip()[:500]:
                    self.last_words = text
                    count += 1
                    if count < _MAX_LOG_LINES:
                        self._log.info("qemu: %s", text)
                    elif count == _MAX_LOG_LINES:
                        self._log.warning(
                            "qemu: says more than %s lines; the rest is dropped.", _MAX_LOG_LINES
                        )


def start_qemu(
    command: Sequence[str], *, work_dir: Path, inherited: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start QEMU, walls and `inherited` descriptors included; must be called from the main thread.

    Raises:
        VmError: The program could not be started.
    """
    try:
        return subprocess.Popen(
            list(command),
            cwd=work_dir,
            # Nothing of ours, such as the server's token.
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            # The terminal's Ctrl-C is for the hub.
            start_new_session=True,
        )
    except OSError as exc:
        raise VmError(Text("QEMU could not be started: {strerror}.", strerror=exc.strerror)) from exc


def end_qemu(process: "subprocess.Popen[bytes]") -> None:
    """Kill what `start_qemu` started; whatever happens, nothing outlives who started it."""
    process.kill()
    process.wait()
    if process.stderr:
        process.stderr.close()


def kill_orphan(qmp_socket: Path) -> bool:
    """Kill a QEMU whose supervisor is gone; whether there was one.

    The kernel says who listens, so no process id has to be trusted; nor is a link that lies in its place.
    """
    try:
        if not stat.S_ISSOCK(qmp_socket.lstat().st_mode):
            return False
        with connect_socket(qmp_socket) as connection:
            pid = find_listener(connection)
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    os.close(descriptor)
    return True


def _read_picture(path: Path) -> bytes:
    """The file that QEMU wrote; nothing that a QEMU broken into may have put in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_PICTURE_BYTES:
            raise OSError("not a picture")
        return file.read(_MAX_PICTURE_BYTES)


def connect_socket(path: Path) -> socket.socket:
    """A connection to the unix socket at `path`; OSError where nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(1)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def find_listener(connection: socket.socket) -> int:
    """The process that listens on a unix socket, as the kernel knows it (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
