"""Hubs whose desktops are jobs on a cluster of the tests."""

import asyncio
import html
import os
import shutil
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import hubs
from hub_process import HubProcess, running_hub_process
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


async def refused_by_form(hub: hubs.Hub, person: hubs.Person, **fields: str) -> str:
    """What somebody reads whose start by the form is refused.

    After a second JupyterHub shows the page of a start that goes on; what is wrong stands there then.
    """
    answer = await hub.submit_form(person, **fields)
    if answer.status == 302:
        spawner = hub.spawner(person.name)
        async with asyncio.timeout(60):
            while spawner.pending:
                await asyncio.sleep(0.05)
        answer = await person.request("GET", hub.url / "spawn-pending" / person.name)
    assert answer.status in (400, 500, 503), answer.text
    return html.unescape(answer.text)


def prepare_state(state: Path) -> None:
    """What of the nodes' storage is the administrator's to prepare."""
    for name in ("sessions", "templates"):
        (state / name).mkdir(mode=0o755)
        shutil.chown(state / name, hubs.sessions_account())
    (state / "sessions").chmod(0o711)


def running_slurm_hub(
    folder: Path, state: Path, machines: Path, cluster: SlurmCluster, **spawner: Any
) -> AbstractAsyncContextManager[HubProcess]:
    """A hub as a process of its own, configured in `folder`, which the nodes reach.

    `spawner` has settings that are written as they are read.
    """
    merged = f"""\
from pathlib import Path
from slurm_cluster import SlurmCluster
from slurm_hubs import slurm_config
cluster = SlurmCluster(Path({str(cluster.folder)!r}))
c.merge(slurm_config(Path({str(state)!r}), Path({str(machines)!r}), cluster, **{spawner!r}))
"""
    return running_hub_process(folder, merged, path=sys.path, state=state, host=cluster.hub_address)
