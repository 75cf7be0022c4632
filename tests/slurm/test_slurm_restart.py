"""A hub is killed and started again over its jobs, those that run and those that wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import hubs
import pytest
from hub_process import HubProcess
from slurm_cluster import SlurmCluster
from slurm_hubs import prepare_state, running_slurm_hub


@pytest.fixture
async def hub_process(
    cluster: SlurmCluster,
    state_dir: Path,
    machines_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[HubProcess]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    prepare_state(state_dir)
    async with running_slurm_hub(tmp_path, state_dir, machines_dir, cluster) as hub:
        yield hub
    cluster.run("scancel", "--user", hubs.sessions_account())


async def kill_while_waiting(hub_process: HubProcess) -> dict[str, Any]:
    """Kill the hub while a job waits; what it knew of the server."""
    start = asyncio.create_task(hub_process.ask("POST", "/users/alice/server"))
    async with asyncio.timeout(20):
        while "job_id" not in ((await hub_process.server()).get("state") or {}):
            await asyncio.sleep(0.05)
    pending = await hub_process.server()
    hub_process.kill()
    with contextlib.suppress(aiohttp.ClientError):
        await start
    return pending


async def test_a_desktop_outlives_its_killed_hub(hub_process: HubProcess) -> None:
    await hub_process.ask("POST", "/users/alice/server")
    before = await hub_process.wait_for_server("ready", True)

    hub_process.kill()
    await hub_process.start()
    after = await hub_process.wait_for_server("ready", True)

    assert after["state"]["job_id"] == before["state"]["job_id"]


async def test_a_hub_that_was_killed_while_a_job_waits_takes_the_start_up_again(
    hub_process: HubProcess, cluster: SlurmCluster
) -> None:
    with cluster.is_full():
        pending = await kill_while_waiting(hub_process)
    await hub_process.start()
    after = await hub_process.wait_for_server("ready", True)

    assert pending["pending"] == "spawn"
    assert after["state"]["job_id"] == pending["state"]["job_id"]
    assert after["state"]["node"].startswith("n")


async def test_keys_of_a_job_that_was_cancelled_while_no_hub_was_there_are_taken_back(
    hub_process: HubProcess, cluster: SlurmCluster, state_dir: Path
) -> None:
    with cluster.is_full():
        pending = await kill_while_waiting(hub_process)
        left = list((state_dir / "jobs").iterdir())
        cluster.run("scancel", pending["state"]["job_id"])
        await hub_process.start()

        async with asyncio.timeout(60):
            while list((state_dir / "jobs").iterdir()):
                await asyncio.sleep(0.1)

    assert len(left) == 1
