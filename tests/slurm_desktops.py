"""One user's desktop on a cluster of the tests, and what Slurm, the kernel and the hub say of it."""

import asyncio
from pathlib import Path

import hubs
from processes import find_qemus
from slurm_cluster import SlurmCluster

from qemuspawner.hub.runs.runs import Run, find_run
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.saved import Saved, find_suspended


class SlurmDesktop:
    """One user's, on the cluster."""

    def __init__(self, hub: hubs.Hub, cluster: SlurmCluster, person: hubs.Person) -> None:
        self._hub, self._cluster, self.person = hub, cluster, person
        self.most_at_once = 0  # of its QEMUs, as often as somebody looked

    async def start(self, *, timeout_s: float = 60, **options: str) -> str:
        """Start it, and wait until it is there; how it came up."""
        asked = asyncio.create_task(self._hub.start(self.person, options))
        async with asyncio.timeout(timeout_s):
            while not asked.done() or self.spawner.pending:
                self.most_at_once = max(self.most_at_once, len(self.qemus))
                await asyncio.sleep(0.1)
        assert asked.result().status in (201, 202), asked.result().text
        assert self.spawner.ready, self.spawner._spawn_future
        _, status = await self.spawner.ask_session("GET", "api/status")
        return str(status["way"])

    @property
    def spawner(self) -> QemuSpawner:
        return self._hub.spawner(self.person.name)

    @property
    def node(self) -> int:
        return int(str(self.spawner._session["node"]).removeprefix("n"))

    @property
    def qemus(self) -> list[int]:
        return find_qemus(self.spawner._state_paths.session(self.spawner.session_id))

    @property
    def opened(self) -> list[str]:
        """What its QEMU has open."""
        links = (path for pid in self.qemus for path in Path(f"/proc/{pid}/fd").iterdir())
        return sorted({str(path.readlink()) for path in links})

    @property
    def saved(self) -> Saved | None:
        return find_suspended(self.spawner._state_paths.session(self.spawner.session_id))

    def job_state(self, job_id: str) -> str:
        return self._cluster.run("squeue", "-h", "-t", "all", "-j", job_id, "-o", "%T").strip()

    async def wait_until_lost(self) -> tuple[str, Run]:
        """Wait until the hub has seen that it is gone; Slurm's word, and what its user reads."""
        spawner = self.spawner
        job_id, run_id = spawner.job_id, spawner.run_id
        async with asyncio.timeout(90):
            while spawner.active:
                # Slurm is asked as often as for who waits.
                await spawner._queue.find_job(job_id, max_age_s=1)
                await spawner.poll_and_notify()
                await asyncio.sleep(0.5)
        run = find_run(spawner.records, run_id)
        assert run is not None
        return self.job_state(job_id), run
