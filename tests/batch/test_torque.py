"""Desktops as jobs of Torque, whose commands are stood in for: Debian has none."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fake_torque
import hubs
import pytest
from traitlets.config import Config

from qemuspawner.hub.batch.qsub import Order
from qemuspawner.hub.torque.commands import Torque
from qemuspawner.hub.torque.spawner import QemuTorqueSpawner


@pytest.fixture
async def hub(
    hub_app: Any, state_dir: Path, machines_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hubs.Hub]:
    account = hubs.sessions_account()
    for folder in ("sessions", "jobs", "torque", "torque/jobs"):
        (state_dir / folder).mkdir(mode=0o755)
        if account:
            shutil.chown(state_dir / folder, account)
    for name in ("qsub", "qstat", "qsig", "qdel"):
        command = state_dir / "torque" / name
        shutil.copyfile(fake_torque.__file__, command)
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{state_dir}/torque:{os.environ['PATH']}")
    config = hubs.hub_config(state_dir, machines_dir)
    config.JupyterHub.spawner_class = QemuTorqueSpawner
    traits = {name: value for name, value in config.QemuSpawner.items() if name != "run_as"}
    config.QemuTorqueSpawner = Config(
        {
            **traits,
            "qsub_user": account,
            "qsub_prefix": ["runuser", "-u", account, "--"] if account else [],
            "cmd": ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *hubs.SESSION_COMMAND],
        }
    )
    async with hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir) as hub:
        yield hub


async def test_a_desktop_is_a_job_and_ends_with_its_server(hub: hubs.Hub, state_dir: Path) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {})
    assert answer.status in (201, 202), answer.text
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    (job,) = (state_dir / "torque/jobs").iterdir()
    script = Path(job.read_text().splitlines()[2])

    assert job.name == spawner.job_id
    # Torque keeps scripts, and tells them to whoever it sends mails to.
    assert spawner.api_token not in script.read_text()
    assert list((state_dir / "jobs").iterdir()) == []
    # Other hosts have its folder, too.
    assert len(list((state_dir / "sessions" / spawner.session_id).glob("lease-*"))) == 1

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert hub.session_folders() == []
    script.unlink()


async def test_a_session_may_be_quicker_than_the_answer_of_who_submitted_it(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await hub.with_token("alice")
    spawner = hub.spawner("alice")
    submit = Torque.submit

    async def submit_slowly(self: Torque, order: Order, script: str) -> str:
        job_id = await submit(self, order, script)
        async with asyncio.timeout(60):
            while spawner._port is None or not spawner._port.done():
                await asyncio.sleep(0.05)
        return job_id

    monkeypatch.setattr(Torque, "submit", submit_slowly)
    await hub.start(alice, {})

    await hub.wait_until_ready("alice")


async def test_a_list_from_before_a_job_was_taken_does_not_make_it_gone(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others ask for the list, too, while one is submitted."""
    alice = await hub.with_token("alice")
    spawner = hub.spawner("alice")
    submit = Torque.submit

    async def submit_while_others_ask(self: Torque, order: Order, script: str) -> str:
        assert await spawner._queue.find_job("another", max_age_s=0) is None
        return await submit(self, order, script)

    monkeypatch.setattr(Torque, "submit", submit_while_others_ask)
    await hub.start(alice, {})

    await hub.wait_until_ready("alice")
