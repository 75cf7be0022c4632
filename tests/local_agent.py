"""A guest agent whose guest is this host: programs really run, in a folder of the test, as who runs it."""

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from qemuspawner.qemu.agent import GuestAgent

Argv = Sequence[str]


class LocalAgent:
    """What QEMU's channel would lead to. A test may change each field at any time."""

    def __init__(self) -> None:
        self.commands: list[Argv] = []  # what ran, with the account that it was to run as in front
        self.is_silent = False
        self.hostile: Callable[[dict[str, Any]], object] | None = None  # answers instead; None: as usual
        # The programs that were started here, and what has come of each, which is told once.
        self._programs: dict[int, tuple[asyncio.subprocess.Process, asyncio.Task[dict[str, Any]]]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                if self.is_silent:
                    continue
                answer = await self._answer(request)
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(raw + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, request: dict[str, Any]) -> object:
        arguments = request.get("arguments", {})
        if request["execute"] == "guest-sync-delimited":
            return {"return": arguments["id"]}
        if self.hostile is not None and (answer := self.hostile(request)) is not None:
            return answer if isinstance(answer, bytes) else {"return": answer}
        if request["execute"] == "guest-exec":
            return {"return": {"pid": await self._start(arguments)}}
        if request["execute"] == "guest-exec-status":
            return self._tell(arguments["pid"])
        raise AssertionError(request)

    async def boot(self) -> None:
        """What ran runs no more, and the agent knows nothing of it."""
        for process, following in self._programs.values():
            # Its end may not have been noticed yet.
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
            await following
        self._programs.clear()

    def _tell(self, pid: int) -> dict[str, Any]:
        if pid not in self._programs:
            return {"error": {"class": "GenericError", "desc": "Invalid parameter 'pid'"}}
        _, following = self._programs[pid]
        if not following.done():
            return {"return": {"exited": False}}
        del self._programs[pid]
        return {"return": following.result()}

    async def _start(self, arguments: dict[str, Any]) -> int:
        argv = [arguments["path"], *arguments["arg"]]
        self.commands.append(argv)
        if argv[0] == "setpriv":
            argv = argv[4:]
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(one.split("=", 1) for one in arguments["env"])
            if "env" in arguments
            else dict(os.environ),
            start_new_session=True,
        )
        given = base64.b64decode(arguments.get("input-data", ""))
        self._programs[process.pid] = process, asyncio.create_task(_follow(process, given))
        return process.pid


async def _follow(process: asyncio.subprocess.Process, given: bytes) -> dict[str, Any]:
    out, err = await process.communicate(given)
    return {
        "exited": True,
        "exitcode": process.returncode,
        "out-data": base64.b64encode(out).decode(),
        "err-data": base64.b64encode(err).decode(),
    }


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.asynccontextmanager
async def local_agent(path: Path) -> AsyncIterator[tuple[LocalAgent, GuestAgent]]:
    """The agent behind the socket `path`, and our connection to it."""
    local = LocalAgent()
    server = await asyncio.start_unix_server(local.serve, path, limit=8 << 20)
    agent = GuestAgent(path)
    try:
        yield local, agent
    finally:
        agent.close()
        server.close()
        await local.boot()
