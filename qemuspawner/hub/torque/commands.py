"""Torque's commands, as argument lists."""

import re
from dataclasses import dataclass

from qemuspawner.hub.batch.documents import KeepsDocuments
from qemuspawner.hub.batch.engine import BatchError
from qemuspawner.hub.batch.qsub import Order, read_tag
from qemuspawner.hub.torque.jobs import Job, parse_jobs
from qemuspawner.texts import Text

_JOB_ID = re.compile(r"\d{1,18}(?:\.[\w.-]{1,250})?", re.ASCII)


@dataclass(frozen=True)
class Torque(KeepsDocuments):
    """One server's commands."""

    name = "Torque"
    variables = ("PBS_DEFAULT", "PBS_SERVER_HOME")

    async def submit(self, order: Order, script: str) -> str:
        answer = await self._run("qsub", *self.arguments(order), given=script.encode())
        job_id = answer.strip()
        if not _JOB_ID.fullmatch(job_id):
            raise BatchError(Text("{engine} took the job, but named no number for it.", engine=self.name))
        return job_id

    def arguments(self, order: Order) -> list[str]:
        """Each is an argument of its own, and no shell sees it."""
        resources = (f"nodes=1:ppn={order.cpus}", f"mem={order.memory_mib}mb", f"walltime={order.time_s}")
        return [
            *("-N", order.tag),
            # A second start of a desktop that somebody may be using elsewhere would be worse than none.
            *("-r", "n"),
            *("-S", "/bin/sh"),
            *("-d", "/"),
            *("-j", "oe", "-o", order.log),
            *("-l", ",".join(resources)),
            *(("-q", order.queue) if order.queue else ()),
        ]

    async def list_jobs(self, *, user: str) -> dict[str, Job]:
        answer = await self._run("qstat", "-x")
        try:
            jobs = parse_jobs(answer)
        except ValueError as exc:
            raise self._not_understood(exc) from None
        return {number: job for number, job in jobs.items() if job.owner == user}

    async def list_tagged(self, *, user: str, hub: str) -> dict[str, str]:
        jobs = (await self.list_jobs(user=user)).values()
        tags = {job.id: read_tag(job.name, hub) for job in jobs if job.phase != "over"}
        return {number: session for number, session in tags.items() if session is not None}

    async def cancel(self, job_id: str) -> None:
        await self._unless_over("qdel", job_id)

    async def stop(self, job_id: str) -> None:
        # It goes to QEMU too, which takes SIGINT and SIGTERM for an end without a shutdown.
        await self._unless_over("qsig", "-s", "USR2", job_id)

    async def _unless_over(self, *command: str) -> None:
        try:
            await self._run(*command)
        except BatchError as exc:
            # It was over before, which is taken for a mistake.
            if not any(words in str(exc) for words in ("Unknown Job Id", "invalid state for job")):
                raise
