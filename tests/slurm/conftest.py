import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hubs
import pytest
from slurm_cluster import SlurmCluster, find_obstacle, running_cluster
from slurm_hubs import prepare_state, slurm_config

from qemuspawner.hub.slurm.queue import queue_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """One for all tests: three nodes that are idle."""
    if why := find_obstacle():
        pytest.skip(why)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
async def start_slurm_hub(
    hub_app: Any,
    cluster: SlurmCluster,
    state_dir: Path,
    machines_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Callable[..., Awaitable[hubs.Hub]]]:
    """Start a hub on the cluster with other settings of the spawner, or in `jupyterhub` of the hub.

    `more` are the settings of other classes, by their names.
    """
    # What other tests have asked is a few seconds old.
    queue_of.cache_clear()
    prepare_state(state_dir)
    monkeypatch.setenv("SLURM_CONF", str(cluster.config))
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            *,
            jupyterhub: Mapping[str, Any] | None = None,
            more: Mapping[str, Any] | None = None,
            **spawner: Any,
        ) -> hubs.Hub:
            config = slurm_config(state_dir, machines_dir, cluster, **spawner)
            config.JupyterHub.update(jupyterhub or {})
            config.update(more or {})
            # Else they are written to the working directory.
            config.JupyterHub.internal_certs_location = str(tmp_path / "certificates")
            running = hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir)
            return await stack.enter_async_context(running)

        yield start


@pytest.fixture
async def hub(
    request: pytest.FixtureRequest, start_slurm_hub: Callable[..., Awaitable[hubs.Hub]]
) -> hubs.Hub:
    return await start_slurm_hub(jupyterhub=getattr(request, "param", {}))
