"""Hubs whose desktops are jobs on a cluster of the tests."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import hubs
from hub_process import TOKEN
from jupyterhub.utils import random_port
from slurm_cluster import SlurmCluster
from traitlets.config import Config

from qemuspawner.hub.slurm.spawner import QemuSlurmSpawner

_CONFIG = """
import sys
sys.path[:0] = {path!r}
import hubs
from slurm_hubs import slurm_config
from slurm_cluster import SlurmCluster
from pathlib import Path
cluster = SlurmCluster(Path({cluster!r}))
c.merge(slurm_config(Path({state!r}), Path({machines!r}), cluster, **{traits!r}))
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.db_url = "sqlite:///{state}/hub.sqlite"
c.JupyterHub.cookie_secret = b"0" * 32
c.JupyterHub.bind_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.hub_port = {port}
c.JupyterHub.services = [{{"name": "test", "api_token": {token!r}, "admin": True}}]
c.JupyterHub.load_roles = [
    {{"name": "test", "services": ["test"],
      "scopes": ["admin:users", "admin:servers", "admin:server_state", "read:servers"]}}
]
"""


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


def prepare_state(state: Path) -> None:
    """What of the nodes' storage is the administrator's to prepare."""
    (state / "sessions").mkdir(mode=0o711)
    shutil.chown(state / "sessions", hubs.sessions_account())


def write_config(
    folder: Path, state: Path, machines: Path, cluster: SlurmCluster, **traits: Any
) -> tuple[Path, str]:
    """A jupyterhub_config.py for a hub as a process of its own, and where that will listen."""
    port = random_port()
    config = folder / "jupyterhub_config.py"
    config.write_text(
        _CONFIG.format(
            path=sys.path,
            cluster=str(cluster.folder),
            state=str(state),
            machines=str(machines),
            traits=traits,
            proxy_port=random_port(),
            port=port,
            token=TOKEN,
        )
    )
    return config, f"http://{cluster.hub_address}:{port}"
