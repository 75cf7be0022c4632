"""What Slurm is asked once for all: beside the jobs its nodes, and who comes first."""

import functools

from qemuspawner.hub.batch.queue import JobQueue, Shared
from qemuspawner.hub.slurm.commands import Slurm
from qemuspawner.hub.slurm.jobs import Place
from qemuspawner.hub.slurm.nodes import Cluster


class Queue(JobQueue):
    """What is known of one account's jobs, and of the nodes."""

    def __init__(self, slurm: Slurm, user: str) -> None:
        super().__init__(slurm, user)
        self._cluster: Shared[Cluster] = Shared(slurm.list_nodes)
        self._places: Shared[dict[str, Place]] = Shared(slurm.list_places)

    async def find_place(self, job_id: str, *, max_age_s: float) -> Place | None:
        """Where a job stands that waits; None where it does not. Raises SlurmError where nobody says."""
        return (await self._places.get(max_age_s=max_age_s)).get(job_id)

    async def cluster(self, *, max_age_s: float) -> Cluster:
        """Raises SlurmError where Slurm does not tell."""
        return await self._cluster.get(max_age_s=max_age_s)

    def find_last_cluster(self, *, max_age_s: float = float("inf")) -> Cluster | None:
        """As it was when Slurm told last; None where that is longer ago."""
        return self._cluster.find_last(max_age_s=max_age_s)


@functools.cache
def queue_of(slurm: Slurm, user: str) -> Queue:
    """The one queue of these jobs in this hub."""
    return Queue(slurm, user)
