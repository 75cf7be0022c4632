"""Desktops as jobs of a real Grid Engine, through the hub."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hubs
import pytest
from gridengine_cell import SLOTS, GridEngineCell
from traitlets.config import Config

from qemuspawner.hub.batch.qsub import tag_of
from qemuspawner.hub.gridengine.spawner import QemuGridEngineSpawner


@pytest.fixture
async def hub(
    hub_app: Any,
    cell: GridEngineCell,
    state_dir: Path,
    machines_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[hubs.Hub]:
    account = hubs.sessions_account()
    for folder in ("sessions", "jobs"):
        (state_dir / folder).mkdir(mode=0o711)
        shutil.chown(state_dir / folder, account)
    for name, value in cell.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{cell.path}:{os.environ['PATH']}")
    config = hubs.hub_config(state_dir, machines_dir)
    config.JupyterHub.spawner_class = QemuGridEngineSpawner
    traits = {name: value for name, value in config.QemuSpawner.items() if name != "run_as"}
    config.QemuGridEngineSpawner = Config(
        {
            **traits,
            "qsub_user": account,
            "qsub_prefix": ["runuser", "-u", account, "--"],
            "cmd": ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *hubs.SESSION_COMMAND],
        }
    )
    async with hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir) as hub:
        yield hub
    cell.run("qdel", "-u", account, check=False)


async def test_a_desktop_is_a_job_and_ends_with_its_server(
    hub: hubs.Hub, cell: GridEngineCell, state_dir: Path
) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {})
    assert answer.status in (201, 202), answer.text
    url = await hub.wait_until_ready("alice")
    status = json.loads((await alice.request("GET", url / "api/status")).text)
    (job_id,) = cell.jobs()
    script = (cell.folder / "qmaster/job_scripts" / job_id).read_text()

    assert status["state"] == "running"
    assert job_id == hub.spawner("alice").job_id
    # Every account of the host can read the script, and a list of processes.
    assert hub.spawner("alice").api_token not in script + cell.run("qstat", "-xml", "-j", job_id)
    assert list((state_dir / "jobs").iterdir()) == []
    # Other hosts have its folder, too.
    assert len(list((state_dir / "sessions" / hub.spawner("alice").session_id).glob("lease-*"))) == 1

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert cell.jobs() == []
    assert hub.session_folders() == []


async def test_why_it_waits_is_said_and_a_waiting_start_can_be_cancelled(
    hub: hubs.Hub, cell: GridEngineCell, state_dir: Path
) -> None:
    blocker = cell.run("qsub", "-terse", "-b", "y", "-pe", "smp", str(SLOTS), "/bin/sleep", "300").strip()
    alice = await hub.log_in("alice")
    try:
        answer = await hub.submit_form(alice)
        assert answer.status == 302, answer.text
        async with asyncio.timeout(30):
            async for event in hub.spawner("alice").progress():
                said = str(event["message"])
                if said.startswith("Waiting"):
                    break
        waiting, keys = cell.jobs(), list((state_dir / "jobs").iterdir())

        await hub.stop(alice)
        await hub.wait_until_stopped("alice")
        left = cell.jobs()
    finally:
        cell.run("qdel", blocker)

    assert said == "Waiting for free CPUs and memory on the cluster"
    assert (len(waiting), left) == (2, [blocker])
    assert (len(keys), list((state_dir / "jobs").iterdir())) == (1, [])


async def test_a_job_that_is_deleted_on_the_cluster_is_gone_from_the_hub(
    hub: hubs.Hub, cell: GridEngineCell
) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    cell.run("qdel", *cell.jobs())
    async with asyncio.timeout(60):
        while await hub.spawner("alice").poll() is None:
            await asyncio.sleep(0.5)


async def test_what_can_never_run_is_refused_in_the_engines_own_words(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    user = hub.user("alice")
    user.spawner.queue = "no-such.q"

    answer = await hub.start(alice, {})

    assert answer.status == 500
    assert "'qsub' of Grid Engine failed" in answer.text


async def test_a_start_ends_a_former_job_of_its_server_first(hub: hubs.Hub, cell: GridEngineCell) -> None:
    """Two jobs would be two desktops on one disk."""
    alice = await hub.with_token("alice")
    spawner = hub.spawner("alice")
    name = tag_of(spawner._hub_id, spawner.session_id)
    prefix = ("runuser", "-u", hubs.sessions_account(), "--")
    process = await asyncio.create_subprocess_exec(
        *(*prefix, "qsub", "-terse", "-N", name, "-b", "y", "-o", "/dev/null", "-j", "y"),
        *("/bin/sleep", "300"),
        stdout=asyncio.subprocess.PIPE,
    )
    former = (await process.communicate())[0].decode().strip()

    await hub.start(alice, {})
    await hub.wait_until_ready("alice")

    assert cell.jobs() == [hub.spawner("alice").job_id]
    assert former != hub.spawner("alice").job_id
