"""Desktops as jobs on a real cluster of three nodes, through the hub."""

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hubs
import pytest
from slurm_cluster import SlurmCluster
from traitlets.config import Config

from qemuspawner.hub.slurm.spawner import QemuSlurmSpawner


def slurm_config(state: Path, machines: Path, cluster: SlurmCluster, **spawner: Any) -> Config:
    config = hubs.hub_config(state, machines)
    account = hubs.sessions_account()
    config.JupyterHub.spawner_class = QemuSlurmSpawner
    config.JupyterHub.hub_ip = cluster.hub_address
    traits = {name: value for name, value in config.QemuSpawner.items() if name != "run_as"}
    config.QemuSlurmSpawner = Config(
        {
            **traits,
            "slurm_user": account,
            "slurm_prefix": ["runuser", "-u", account, "--"],
            # A job has nothing of the hub's environment.
            "cmd": ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", *hubs.SESSION_COMMAND],
            **spawner,
        }
    )
    return config


@pytest.fixture
async def hub(
    hub_app: Any,
    cluster: SlurmCluster,
    state_dir: Path,
    machines_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[hubs.Hub]:
    # Nodes' storage is the administrator's to prepare.
    (state_dir / "sessions").mkdir(mode=0o711)
    shutil.chown(state_dir / "sessions", hubs.sessions_account())
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    config = slurm_config(state_dir, machines_dir, cluster)
    async with hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir) as hub:
        yield hub


async def test_a_desktop_runs_on_a_node_and_ends_with_its_server(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {})
    assert answer.status in (201, 202), answer.text
    url = await hub.wait_until_ready("alice")
    status = json.loads((await alice.request("GET", url / "api/status")).text)
    running = cluster.run("squeue", "-h", "-o", "%T %N")

    assert status["state"] == "running"
    assert str(url.host).startswith("198.18.77.1")
    assert running.split()[0] == "RUNNING"

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert cluster.run("squeue", "-h", "-t", "running,pending") == ""
    assert hub.session_folders() == []
