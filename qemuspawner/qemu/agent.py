"""The QEMU guest agent: a program inside the guest that answers over a virtio port.

Every answer comes from the guest, which is hostile: it is bounded in size and time, and never trusted to
be more than text.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from qemuspawner.errors import VmError
from qemuspawner.texts import Text

# Of every program that is run as root in a guest.
ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

_MAX_ANSWER_BYTES = 4 << 20
_TIMEOUT_S = 10
# A program that has ended is noticed as soon, and one that takes long is not asked for more often.
_FIRST_POLL_S = 0.005
_LONGEST_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program in the guest ended."""

    code: int  # -1 where the guest does not say
    stdout: bytes
    stderr: bytes


class AgentRefusalError(VmError):
    """The agent is there, and will not do it."""


class GuestAgent:
    """A connection to the guest agent; one command at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        # In a VM that was saved an answer to an earlier one of us may be left.
        self._ids = itertools.count(secrets.randbelow(1 << 31))
        self._lock = asyncio.Lock()
        self._is_held = False
        self.answered_at = 0.0  # when it last did, by the monotonic clock

    async def wait_until_ready(self, *, timeout_s: float) -> bool:
        """Wait until the agent answers; False after `timeout_s` seconds of silence."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    # An agent that is not there yet does not answer, and QEMU keeps what was sent for it.
                    with contextlib.suppress(VmError):
                        async with self._lock:
                            await self._synchronise(timeout_s=2)
                        return True
                    await asyncio.sleep(0.2)
        return False

    async def execute(self, command: str, **arguments: object) -> object:
        """Run an agent command and return its answer.

        Raises:
            AgentRefusalError: The agent refuses.
            VmError: The agent is silent.
        """
        async with self._lock:
            if self._writer is None:
                await self._synchronise(timeout_s=_TIMEOUT_S)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    answer = await self._exchange(command, arguments)
            except TimeoutError as exc:
                raise VmError(
                    Text(
                        "The guest agent did not answer '{command}' within {timeout_s} s.",
                        command=command,
                        timeout_s=_TIMEOUT_S,
                    )
                ) from exc
        if "error" in answer:
            raise AgentRefusalError(Text("The guest agent refused '{command}'.", command=command))
        return answer.get("return")

    async def send(self, command: str, **arguments: object) -> None:
        """Send a command that has no answer when it succeeds, such as guest-shutdown."""
        async with self._lock:
            if self._writer is None:
                await self._synchronise(timeout_s=_TIMEOUT_S)
            self._write({"execute": command, "arguments": arguments})

    async def run(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout_s: float = 30
    ) -> tuple[int, str]:
        """Run a program in the guest as `run_program` does; its exit code and all that it wrote, as text."""
        ended = await self.run_program(*argv, stdin=stdin, env=env, timeout_s=timeout_s)
        return ended.code, ended.stdout.decode(errors="replace") + ended.stderr.decode(errors="replace")

    async def run_program(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None, timeout_s: float = 30
    ) -> Ended:
        """Run a program in the guest as root.

        `env` is its whole environment; without one it has the agent's. Other commands get their turn while it
        runs; what it writes must be short enough for one answer: 2 MiB are.

        Raises:
            AgentRefusalError: There is no such program, or none may be run.
            VmError: The agent is silent, or the program did not end within `timeout_s` seconds.
        """
        pid = await self.start_program(*argv, stdin=stdin, env=env)
        return await self.wait_for_program(pid, name=argv[0], timeout_s=timeout_s)

    async def start_program(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> int:
        """Start a program as `run_program` does; its number in the guest, for `wait_for_program`.

        The agent knows it until it has told the end, also in a VM that was saved and goes on later.
        """
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        if env is not None:
            arguments["env"] = [f"{name}={value}" for name, value in env.items()]
        started = await self.execute("guest-exec", **arguments)
        if not isinstance(started, dict) or not isinstance(started.get("pid"), int):
            raise VmError(Text("The guest agent's answer to 'guest-exec' is not understood."))
        return cast(int, started["pid"])

    async def wait_for_program(self, pid: int, *, name: str, timeout_s: float) -> Ended:
        """Wait for the end of a program, which the agent tells once.

        Raises:
            AgentRefusalError: It knows of no such program, as after a boot.
            VmError: It is silent, or the program did not end within `timeout_s` seconds.
        """
        try:
            async with asyncio.timeout(timeout_s):
                pause_s = _FIRST_POLL_S
                while True:
                    status = await self.execute("guest-exec-status", pid=pid)
                    if isinstance(status, dict) and status.get("exited"):
                        break
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
        except TimeoutError as exc:
            raise VmError(
                Text(
                    "'{program}' did not end in the guest within {timeout_s} s.",
                    program=name,
                    timeout_s=timeout_s,
                )
            ) from exc
        code = status.get("exitcode")
        return Ended(
            code=code if isinstance(code, int) else -1,
            stdout=_decode(status.get("out-data")),
            stderr=_decode(status.get("err-data")),
        )

    async def hold(self, *, timeout_s: float) -> None:
        """Ask it nothing until `let_go`, since the guest is going to be paused.

        What it answers to one who has gone meanwhile is lost, and it tells the end of a program once. After
        `timeout_s` seconds of silence nothing is held.
        """
        if not self._is_held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._lock.acquire()
                    self._is_held = True

    def let_go(self) -> None:
        """The guest runs again; harmless where nothing is held."""
        if self._is_held:
            self._is_held = False
            self._lock.release()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _synchronise(self, *, timeout_s: float) -> None:
        """Connect, and skip whatever an earlier connection left in the channel."""
        self.close()
        number = next(self._ids)
        try:
            async with asyncio.timeout(timeout_s):
                with self._closed_on_error():
                    await self._connect(number)
        except (TimeoutError, OSError) as exc:
            raise VmError(
                Text("The guest agent did not answer within {timeout_s} s.", timeout_s=timeout_s)
            ) from exc

    async def _connect(self, number: int) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(
            str(self._path), limit=_MAX_ANSWER_BYTES
        )
        # 0xff makes the agent drop a half-read command; it answers with 0xff in front.
        self._writer.write(b"\xff")
        self._write({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        while (await self._read()).get("return") != number:
            pass

    async def _exchange(self, command: str, arguments: dict[str, object]) -> dict[str, object]:
        with self._closed_on_error():
            self._write({"execute": command, "arguments": arguments})
            return await self._read()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Whatever ends an exchange half-way, a late answer must not be taken for the next command's."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _write(self, message: dict[str, object]) -> None:
        if self._writer is None:
            raise VmError(Text("The guest agent is not connected."))
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> dict[str, object]:
        """The next line that is a JSON object."""
        while self._reader is not None:
            try:
                line = await self._reader.readline()
            except ValueError as exc:
                raise VmError(Text("The guest agent's answer is too long.")) from exc
            except OSError:
                break
            if not line:
                break
            with contextlib.suppress(ValueError, RecursionError):
                answer = json.loads(line.rpartition(b"\xff")[2])
                if isinstance(answer, dict):
                    self.answered_at = time.monotonic()
                    return answer
        raise VmError(Text("The guest agent's channel was closed."))


def _decode(data: object) -> bytes:
    if not isinstance(data, str):
        return b""
    try:
        return base64.b64decode(data)
    except ValueError:  # no base64, or not even ASCII
        return b""
