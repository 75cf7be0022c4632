"""An engine, asked once for all: a hub with forty sessions in the queue asks as often as a hub with one."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar, cast

from qemuspawner.hub.batch.engine import BatchError, Engine, Job

_Answer = TypeVar("_Answer")


class Shared(Generic[_Answer]):
    """One question, asked only while somebody wants an answer, and its last answer."""

    def __init__(self, ask: Callable[[], Awaitable[_Answer]]) -> None:
        self._ask = ask
        self._asked_at = float("-inf")  # by time.monotonic()
        self._answered_at = float("-inf")
        self._answer: _Answer | None = None
        self._error: BatchError | None = None
        self._task: asyncio.Task[None] | None = None

    async def get(self, *, max_age_s: float, since: float = float("-inf")) -> _Answer:
        """An answer to a question that was asked at most so long ago, and after `since` (time.monotonic()).

        Raises:
            BatchError: That question had no answer.
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
        except BatchError as exc:
            self._error = exc
        finally:
            self._task = None
        self._asked_at = asked_at


class JobQueue:
    """What is known of one account's jobs."""

    def __init__(self, engine: Engine, user: str) -> None:
        self._jobs: Shared[Mapping[str, Job]] = Shared(lambda: engine.list_jobs(user=user))

    async def find_job(self, job_id: str, *, max_age_s: float, since: float = float("-inf")) -> Job | None:
        """A job as it was at most so long ago; None where the engine, asked after `since`, knows it no more.

        Raises:
            BatchError: Nobody knows: the job may well run.
        """
        return (await self._jobs.get(max_age_s=max_age_s, since=since)).get(job_id)


@functools.cache
def queue_of(engine: Engine, user: str) -> JobQueue:
    """The one queue of these jobs in this hub."""
    return JobQueue(engine, user)
