"""Slurm's commands, as argument lists; what they answer, and what it means when they do not."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qemuspawner.hub.batch.documents import KeepsDocuments
from qemuspawner.hub.batch.engine import BatchError, tag
from qemuspawner.hub.slurm import jobs, nodes, rules
from qemuspawner.texts import Text

_THERE = "--states=pending,configuring,running,suspended"


class SlurmError(BatchError):
    """A command of Slurm failed, was silent, or answered something else than it does."""


@dataclass(frozen=True)
class Slurm(KeepsDocuments):
    """One cluster's commands."""

    name = "Slurm"
    error = SlurmError
    variables = ("SLURM_CONF",)

    async def submit(self, arguments: Sequence[str], script: str) -> str:
        """Submit a job; its id.

        Raises:
            SlurmError: Slurm does not take it; the message has Slurm's own words.
        """
        answer = await self._run("sbatch", "--parsable", *arguments, given=script.encode())
        # "ID;CLUSTER" where there are several.
        number = answer.strip().split(";")[0]
        if not number.isdecimal():
            raise SlurmError(Text("Slurm took the job, but named no number for it."))
        return number

    async def list_jobs(self, *, user: str) -> dict[str, jobs.Job]:
        """All jobs of one account, "" of everybody, that Slurm still knows, also those that are over.

        Raises:
            SlurmError: Nobody knows how the jobs are; that is not to say that they are gone.
        """
        answer = await self._run(
            *("squeue", "--noheader", "--all", "--states=all", f"--format={jobs.COLUMNS}"),
            *([f"--user={user}"] if user else []),
        )
        try:
            # Ten thousand lines take 20 ms, in which the hub serves others.
            return await asyncio.to_thread(jobs.parse_jobs, answer)
        except ValueError as exc:
            raise self._not_understood(exc) from None

    async def list_places(self) -> dict[str, jobs.Place]:
        """Where each job stands that waits, also other accounts', as far as this one may see them.

        Raises:
            SlurmError: Slurm does not tell.
        """
        answer = await self._run(
            *("squeue", "--noheader", "--all", "--states=pending"),
            *(f"--format={jobs.PLACE_COLUMNS}", f"--sort={jobs.PLACE_ORDER}"),
        )
        return await asyncio.to_thread(jobs.parse_places, answer)

    async def list_users(self) -> set[str]:
        """Whose jobs wait or run.

        Raises:
            SlurmError: Slurm does not tell.
        """
        answer = await self._run("squeue", "--noheader", "--all", _THERE, "--format=%u")
        return set(answer.split())

    async def list_tagged(self, *, user: str, hub: str) -> dict[str, str]:
        """The jobs of one account and hub that wait or run, with the session of each; see `tag`.

        Anybody may write anything into their own jobs' comments, so never ask for several accounts at once.

        Raises:
            SlurmError: Slurm does not tell.
        """
        answer = await self._run(
            *("squeue", "--noheader", "--all", _THERE, f"--user={user}", "--format=%i|%k"),
        )
        prefix = tag(hub, "")
        rows = (line.partition("|") for line in answer.splitlines())
        return {
            number: comment.removeprefix(prefix) for number, _, comment in rows if comment.startswith(prefix)
        }

    async def list_nodes(self) -> nodes.Cluster:
        """All nodes, partitions and reservations.

        Raises:
            SlurmError: Slurm does not tell.
        """
        show = ("scontrol", "--all", "--oneliner", "show")
        listed, partitions, reservations = await asyncio.gather(
            self._run("sinfo", "--noheader", "--Node", "--all", f"--Format={nodes.COLUMNS}"),
            self._run(*show, "partition"),
            self._run(*show, "reservation"),
        )
        try:
            return replace(
                nodes.parse_cluster(listed),
                rules=rules.parse_rules(partitions),
                reservations=rules.parse_reservations(reservations),
            )
        except ValueError as exc:
            raise self._not_understood(exc) from None

    async def cancel(self, job_id: str) -> None:
        """End a job, whether it waits or runs; one that is over already is none of an error.

        Raises:
            SlurmError: It goes on.
        """
        await self._run("scancel", "--", job_id)

    async def stop(self, job_id: str) -> None:
        """Ask a job's session to end in order; its other processes hear nothing of it.

        Raises:
            SlurmError: It was not asked.
        """
        await self._run("scancel", "--batch", "--signal=INT", "--", job_id)
