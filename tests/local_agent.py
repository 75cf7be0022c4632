"""A guest agent whose guest is this host: programs really run, in a folder of the test, as who runs it."""

import asyncio
import base64
import contextlib
import json
import os
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
        self._ended: dict[int, dict[str, Any]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                if self.is_silent:
                    continue
                answer = await self._answer(request)
                raw = answer if isinstance(answer, bytes) else json.dumps({"return": answer}).encode()
                writer.write(raw + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, request: dict[str, Any]) -> object:
        arguments = request.get("arguments", {})
        if request["execute"] == "guest-sync-delimited":
            return arguments["id"]
        if self.hostile is not None and (answer := self.hostile(request)) is not None:
            return answer
        if request["execute"] == "guest-exec":
            return {"pid": await self._run(arguments)}
        if request["execute"] == "guest-exec-status":
            return self._ended.pop(arguments["pid"])
        raise AssertionError(request)

    async def _run(self, arguments: dict[str, Any]) -> int:
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
        )
        out, err = await process.communicate(base64.b64decode(arguments.get("input-data", "")))
        self._ended[process.pid] = {
            "exited": True,
            "exitcode": process.returncode,
            "out-data": base64.b64encode(out).decode(),
            "err-data": base64.b64encode(err).decode(),
        }
        return process.pid


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
