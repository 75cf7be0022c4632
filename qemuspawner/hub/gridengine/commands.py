"""Grid Engine's commands, as argument lists."""

from dataclasses import dataclass

from qemuspawner.hub.batch.documents import KeepsDocuments
from qemuspawner.hub.batch.engine import BatchError
from qemuspawner.hub.batch.qsub import Order, read_tag
from qemuspawner.hub.gridengine.jobs import Job, parse_jobs
from qemuspawner.texts import Text

# Before its hard limit a job is told (SIGUSR1), and has this long to end or to be saved.
_NOTICE_S = 300


@dataclass(frozen=True)
class GridEngine(KeepsDocuments):
    """One cell's commands; `memory` is the resource by which it is asked for, `parallel` who gives CPUs."""

    memory: str = ""
    parallel: str = ""

    name = "Grid Engine"
    variables = ("SGE_ROOT", "SGE_CELL", "SGE_QMASTER_PORT", "SGE_EXECD_PORT", "SGE_CLUSTER_NAME")
    farewell = "Exiting."

    async def submit(self, order: Order, script: str) -> str:
        answer = await self._run("qsub", *self.arguments(order), given=script.encode())
        number = answer.strip()
        if not number.isdecimal():
            raise BatchError(Text("{engine} took the job, but named no number for it.", engine=self.name))
        return number

    def arguments(self, order: Order) -> list[str]:
        """Each is an argument of its own, and no shell sees it."""
        limits = [f"h_rt={order.time_s}", f"s_rt={max(order.time_s - _NOTICE_S, 1)}"]
        if self.memory:
            limits.append(f"{self.memory}={order.memory_mib}M")
        return [
            "-terse",
            # What can never run is refused at once.
            *("-w", "e"),
            *("-N", order.tag),
            # A second start of a desktop that somebody may be using elsewhere would be worse than none.
            *("-r", "n"),
            # Told before it is killed, by SIGUSR2.
            "-notify",
            *("-S", "/bin/sh"),
            *("-wd", "/"),
            *("-j", "y", "-o", order.log),
            *("-l", ",".join(limits)),
            *(("-q", order.queue) if order.queue else ()),
            *(("-pe", self.parallel, str(order.cpus)) if self.parallel else ()),
        ]

    async def list_jobs(self, *, user: str) -> dict[str, Job]:
        answer = await self._run("qstat", "-xml", "-r", "-u", user)
        try:
            return parse_jobs(answer)
        except ValueError as exc:
            raise self._not_understood(exc) from None

    async def list_tagged(self, *, user: str, hub: str) -> dict[str, str]:
        tags = {job.id: read_tag(job.name, hub) for job in (await self.list_jobs(user=user)).values()}
        return {number: session for number, session in tags.items() if session is not None}

    async def cancel(self, job_id: str) -> None:
        try:
            await self._run("qdel", job_id)
        except BatchError as exc:
            # It was over before, which qdel takes for a mistake.
            if "does not exist" not in str(exc):
                raise

    async def stop(self, job_id: str) -> None:
        # With "-notify" a deletion is an orderly stop first: the queue's `notify` says for how long.
        await self.cancel(job_id)
