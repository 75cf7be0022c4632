"""The guest agent's answers are a hostile guest's: late, cut off, or nonsense."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from qemuspawner.errors import VmError
from qemuspawner.qemu import agent as agent_module
from qemuspawner.qemu.agent import GuestAgent

Answer = Callable[[dict[str, Any]], Any]


class FakeChannel:
    """One channel for all connections, as QEMU's: what the guest writes while nobody reads comes later."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.connections = 0
        self.late: list[bytes] = []  # for whoever connects next
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        for line in self.late:
            writer.write(line)
        self.late.clear()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                request = json.loads(line.lstrip(b"\xff"))
                if request["execute"] == "guest-sync-delimited":
                    answer = request["arguments"]["id"]
                else:
                    answer = self._answer(request)
                if answer is ConnectionResetError:
                    writer.transport.abort()
                elif answer is not None:
                    writer.write(json.dumps({"return": answer}).encode() + b"\n")
        writer.close()


@contextlib.asynccontextmanager
async def channel(path: Path, answer: Answer) -> AsyncIterator[tuple[FakeChannel, GuestAgent]]:
    fake = FakeChannel(path, answer)
    server = await asyncio.start_unix_server(fake.serve, path)
    agent = GuestAgent(path)
    try:
        yield fake, agent
    finally:
        agent.close()
        server.close()


def say_nothing_to_slow(request: dict[str, Any]) -> object:
    return None if request["execute"] == "slow" else request["execute"]


async def test_who_gives_up_half_way_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    """The caller's own time limit ends the exchange; the answer comes when nobody waits for it."""
    async with channel(tmp_path / "qga", say_nothing_to_slow) as (fake, agent):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await agent.execute("slow")
        fake.late.append(b'{"return": "slow"}\n')

        assert await agent.execute("quick") == "quick"
        assert fake.connections == 2


async def test_a_silent_agent_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_TIMEOUT_S", 0.2)
    async with channel(tmp_path / "qga", say_nothing_to_slow) as (fake, agent):
        with pytest.raises(VmError, match=r"did not answer 'slow' within 0\.2 s"):
            await agent.execute("slow")
        fake.late.append(b'{"return": "slow"}\n')

        assert await agent.execute("quick") == "quick"


async def test_a_wait_that_is_cancelled_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    """In the middle of the first exchange of all, too."""
    path = tmp_path / "qga"
    silent = await asyncio.start_unix_server(lambda reader, _: reader.read(), path)
    agent = GuestAgent(path)

    assert await agent.wait_until_ready(timeout_s=0.2) is False
    assert agent._writer is None
    silent.close()


async def test_a_broken_connection_is_a_vm_error(tmp_path: Path) -> None:
    async with channel(tmp_path / "qga", lambda _: ConnectionResetError) as (_, agent):
        with pytest.raises(VmError, match="closed"):
            await agent.execute("anything")


async def test_an_error_of_reading_is_a_vm_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: asyncio.StreamReader) -> bytes:
        raise ConnectionResetError

    async with channel(tmp_path / "qga", lambda _: "yes") as (_, agent):
        await agent.execute("anything")
        monkeypatch.setattr(asyncio.StreamReader, "readline", fail)
        with pytest.raises(VmError, match="closed"):
            await agent.execute("anything")
        assert agent._writer is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [("ñ😀", ""), ("abc", ""), (7, ""), (base64.b64encode(b"a\xffb").decode(), "a\ufffdb")],
)
async def test_output_that_is_no_text_is_none(data: object, expected: str, tmp_path: Path) -> None:
    def answer(request: dict[str, Any]) -> object:
        if request["execute"] == "guest-exec":
            return {"pid": 1}
        return {"exited": True, "exitcode": 0, "out-data": data}

    async with channel(tmp_path / "qga", answer) as (_, agent):
        assert await agent.run("true") == (0, expected)


async def test_an_agent_that_is_held_is_asked_nothing_until_it_is_let_go(tmp_path: Path) -> None:
    """An answer that is on its way is waited for first."""
    asked: list[str] = []

    def answer(request: dict[str, Any]) -> object:
        asked.append(request["execute"])
        return {}

    async with channel(tmp_path / "qga", answer) as (_, agent):
        before = asyncio.create_task(agent.execute("before"))
        await asyncio.sleep(0)
        await agent.hold(timeout_s=5)
        is_done = before.done()
        later = asyncio.create_task(agent.execute("later"))
        await asyncio.wait([later], timeout=0.1)
        while_held = list(asked)
        agent.let_go()
        await later

    assert is_done
    assert (while_held, asked) == (["before"], ["before", "later"])


async def test_a_silent_agent_keeps_nobody_from_pausing_the_guest(tmp_path: Path) -> None:
    async with channel(tmp_path / "qga", say_nothing_to_slow) as (_, agent):
        slow = asyncio.create_task(agent.execute("slow"))
        await asyncio.sleep(0)
        await agent.hold(timeout_s=0.1)
        agent.let_go()

        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])
        assert await agent.execute("quick") is not None
