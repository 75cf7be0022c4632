"""The hub's end of its fork server, which starts sessions in milliseconds; see session/forkserver.py."""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.forking import ForkAnswer, ForkRequest, receive, send, write_environment
from qemuspawner.hub.sessions.process import KnownProcess

log = logging.getLogger(__name__)

# An answer takes milliseconds, but the first session of a template waits until its memory is loaded.
_TIMEOUT_S = 60

# What the interpreter and the package need. The hub's own environment holds its proxy's token, and every
# session could read what its server has.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"),
    *("CONDA_DEFAULT_ENV", "CONDA_ROOT"),
)


class ForkServerError(QemuSpawnerError):
    """The fork server cannot be used; sessions can be started without it."""


class ForkServer:
    """The process, started when it is needed and again when it died.

    One thread speaks with it, request by request: what takes long must not hold up the hub.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fork-server")
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int:
        """0 where it has not been started."""
        return self._process.pid if self._process else 0

    def warm_up(self) -> None:
        """Have it ready for the next start, without waiting for it."""
        self._worker.submit(self._connect_ahead)

    async def start(
        self, request: ForkRequest, environment: Mapping[str, str], listener: socket.socket
    ) -> int:
        """Start a session, which takes `listener` on; its process id.

        Raises:
            ForkServerError: There is no session, or none that will last.
        """
        # The caller may be cancelled, and close its own, while the thread still needs it.
        passed = listener.dup()
        started = self._worker.submit(self._start, request, environment, passed)
        started.add_done_callback(lambda _: passed.close())
        try:
            return await asyncio.wrap_future(started)
        except asyncio.CancelledError:
            started.add_done_callback(_end)
            raise

    async def close(self) -> None:
        """End the server; its sessions go on."""
        await asyncio.wrap_future(self._worker.submit(self._disconnect))

    # In the thread

    def _connect_ahead(self) -> None:
        with contextlib.suppress(ForkServerError):  # the start will say it
            self._connect()

    def _start(self, request: ForkRequest, environment: Mapping[str, str], listener: socket.socket) -> int:
        try:
            file = write_environment(environment)
        except (OSError, ValueError) as exc:
            raise ForkServerError(f"The session's environment cannot be passed on: {exc}.") from exc
        try:
            return self._ask(request, [file, listener.fileno()])
        finally:
            os.close(file)

    def _ask(self, request: ForkRequest, descriptors: list[int]) -> int:
        control = self._connect()
        try:
            send(control, request, descriptors=descriptors)
            received = receive(control, ForkAnswer)
            if received is None:
                raise ConnectionResetError("it has ended")
        except (OSError, ValueError) as exc:
            # It may still be at work for us, and must not start a session that nobody waits for.
            self._disconnect()
            raise ForkServerError(f"The fork server does not answer: {exc}.") from exc
        answer, _ = received
        if not answer.pid:
            raise ForkServerError(f"The fork server refuses: {answer.error}")
        return answer.pid

    def _connect(self) -> socket.socket:
        """The connection to the server, which is started if need be."""
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._disconnect()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*self._command, "--fork-server", str(theirs.fileno())],
                    cwd="/",
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # The terminal's Ctrl-C is for the hub.
                    start_new_session=True,
                )
            except OSError as exc:
                ours.close()
                raise ForkServerError(f"The fork server cannot be started: {exc.strerror}.") from exc
        ours.settimeout(_TIMEOUT_S)
        self._control = ours
        return ours

    def _disconnect(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


@functools.cache
def fork_server(command: tuple[str, ...]) -> ForkServer:
    """The server of this hub's process for this command."""
    return ForkServer(command)


def _end(started: "Future[int]") -> None:
    """End a session whose start was given up: nobody else knows of it."""
    if not started.cancelled() and started.exception() is None:
        process = KnownProcess.find(started.result())
        if process is not None:
            process.signal(signal.SIGTERM)
