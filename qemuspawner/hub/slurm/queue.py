"""The cluster, asked once for all: a hub with forty sessions in the queue asks as often as a hub with one."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

from qemuspawner.hub.slurm.commands import Slurm, SlurmError
from qemuspawner.hub.slurm.jobs import Job, Place
from qemuspawner.hub.slurm.nodes import Cluster

_Answer = TypeVar("_Answer")


class _Shared(Generic[_Answer]):
    """One question, asked only while somebody wants an answer, and its last answer."""

    def __init__(self, ask: Callable[[], Awaitable[_Answer]]) -> None:
        self._ask = ask
        self._asked_at = float("-inf")  # by time.monotonic()
        self._answer: _Answer | None = None
        self._answered_at = float("-inf")
        self._error: SlurmError | None = None
        self._task: asyncio.Task[None] | None = None

    async def get(self, *, max_age_s: float, since: float = float("-inf")) -> _Answer:
        """An answer to a question that was asked at most so long ago, and after `since` (time.monotonic()).

        Raises:
            SlurmError: That question had no answer.
        """
        oldest = max(time.monotonic() - max_age_s, since)
        while self._asked_at < oldest:
            if self._task is None:
                self._task = asyncio.create_task(self._put())
            # Who asks may be cancelled; others wait for the same answer.
            await asyncio.shield(self._task)
        if self._error is not None:
            raise self._error
        return cast(_Answer, self._answer)

    def find_last(self, *, max_age_s: float = float("inf")) -> _Answer | None:
        """The last answer that there was, asked for at most so long ago."""
        return self._answer if time.monotonic() - self._answered_at <= max_age_s else None

    async def _put(self) -> None:
        asked_at = time.monotonic()
        try:
            self._answer, self._error = await self._ask(), None
            self._answered_at = asked_at
        except SlurmError as exc:
            self._error = exc
        finally:
            self._task = None
        self._asked_at = asked_at


class Queue:
    """What is known of one account's jobs, and of the nodes."""

    def __init__(self, slurm: Slurm, user: str) -> None:
        self._jobs: _Shared[dict[str, Job]] = _Shared(lambda: slurm.list_jobs(user=user))
        self._cluster: _Shared[Cluster] = _Shared(slurm.list_nodes)
        self._places: _Shared[dict[str, Place]] = _Shared(slurm.list_places)

    async def find_job(self, job_id: str, *, max_age_s: float, since: float = float("-inf")) -> Job | None:
        """A job as it was at most so long ago; None where Slurm, asked after `since`, knows it no more.

        Raises:
            SlurmError: Nobody knows: the job may well run.
        """
        return (await self._jobs.get(max_age_s=max_age_s, since=since)).get(job_id)

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
