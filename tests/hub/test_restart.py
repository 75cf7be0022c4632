"""A real hub process is killed and started again under its sessions."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from hub_process import HubProcess, running_hub_process

import qemuspawner
from qemuspawner.hub.sessions.process import KnownProcess

TESTS = Path(__file__).parent.parent
STANDIN = [sys.executable, str(Path(__file__).with_name("standin.py"))]


@pytest.fixture
async def hub_process(state_dir: Path, machines_dir: Path, tmp_path: Path) -> AsyncIterator[HubProcess]:
    root = str(Path(qemuspawner.__file__).parent.parent)
    environment = {"QEMUSPAWNER_STANDIN": "slow", "PYTHONPATH": root}
    folders = f"{str(state_dir)!r}, {str(machines_dir)!r}"
    merged = f"import hubs; c.merge(hubs.hub_config({folders}, cmd={STANDIN!r}, environment={environment!r}))"
    async with running_hub_process(tmp_path, merged, path=[str(TESTS), root], state=state_dir) as hub:
        yield hub


async def test_a_hub_killed_during_a_start_takes_it_up_again(hub_process: HubProcess) -> None:
    start = asyncio.create_task(hub_process.ask("POST", "/users/alice/server"))
    async with asyncio.timeout(20):
        while "pid" not in ((await hub_process.server()).get("state") or {}):
            await asyncio.sleep(0.05)
    pending = await hub_process.server()

    hub_process.kill()
    with contextlib.suppress(aiohttp.ClientError):
        await start
    await hub_process.start()
    after = await hub_process.wait_for_server("ready", True)

    assert pending["pending"] == "spawn"
    assert after["state"]["pid"] == pending["state"]["pid"]
    assert "starting" not in after["state"]


async def test_a_session_that_ended_while_the_hub_was_dead_is_stopped(hub_process: HubProcess) -> None:
    await hub_process.ask("POST", "/users/alice/server")
    state = (await hub_process.wait_for_server("ready", True))["state"]
    hub_process.kill()
    os.kill(state["pid"], signal.SIGTERM)
    known = KnownProcess.from_state(state)
    while known is not None and known.alive:
        await asyncio.sleep(0.05)

    await hub_process.start()
    after = await hub_process.wait_for_server("stopped", True)

    assert not after["ready"]


async def test_a_hub_that_is_killed_still_knows_what_it_has_promised(hub_process: HubProcess) -> None:
    await hub_process.ask("POST", "/users/alice/server")
    await hub_process.wait_for_server("ready", True)
    before = await hub_process.ask("GET", "/desktops/capacity")

    hub_process.kill()
    await hub_process.start()
    after = await hub_process.ask("GET", "/desktops/capacity")

    (host,) = after["hosts"]
    assert after == before
    assert host["cpus"]["free"] == host["cpus"]["total"] - 1
