"""QemuSlurmSpawner: sessions as jobs of a Slurm cluster, on whichever node has room."""

import asyncio
import functools
import ipaddress
import os
import pwd
import time
from typing import Any

from batchspawner import SlurmSpawner
from traitlets import List, Unicode, default

from qemuspawner.errors import HostError
from qemuspawner.hub.admission.capacity import HostCapacity
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.batch.engine import Job, tag
from qemuspawner.hub.batch.reaper import ListOwners
from qemuspawner.hub.batch.shared import SharesStorage
from qemuspawner.hub.batch.spawner import QemuBatchSpawner
from qemuspawner.hub.sessions import account
from qemuspawner.hub.slurm import jobs
from qemuspawner.hub.slurm.commands import Slurm, SlurmError
from qemuspawner.hub.slurm.jobs import Place, describe_place
from qemuspawner.hub.slurm.offers import JobOwner, OffersCluster, count_gpus, find_unix_groups
from qemuspawner.hub.slurm.owners import Owners, list_owners
from qemuspawner.hub.slurm.queue import Queue, queue_of
from qemuspawner.hub.slurm.script import make_arguments
from qemuspawner.hub.slurm.warming import WarmsOnNodes
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text

# Of who watches their place in the queue.
_PLACE_S = 5.0
_NODES_S = 10.0
# What is older is not told as if it were so now.
_CURRENT_S = 60.0


class QemuSlurmSpawner(SharesStorage, WarmsOnNodes, OffersCluster, QemuBatchSpawner, SlurmSpawner):  # type: ignore[misc]
    """Sessions are jobs of a Slurm cluster."""

    slurm_user = Unicode(
        "root",
        help="""The account that owns the jobs, as Slurm knows it; "{username}" for each user's own.""",
    ).tag(config=True)
    slurm_prefix = List(
        Unicode(),
        help="""What goes before Slurm's commands, such as ["runuser", "-u", "qemuspawner", "--"].

        With users' own accounts ["sudo", "-u", "{username}"], and only for commands about their own jobs.
        """,
    ).tag(config=True)
    slurm_log = Unicode(
        "/dev/null", help="""Where jobs write what their sessions say, such as "/var/log/desktops/%j.log"."""
    ).tag(config=True)
    _stood: Place | None = None

    @default("ssl_alt_names")
    def _default_ssl_alt_names(self) -> Any:
        return QemuSlurmSpawner._list_node_names

    async def _list_node_names(self) -> list[str]:
        """Of the nodes that a session may be on: hub and proxy look whether its certificate has one."""
        try:
            nodes = (await self._queue.cluster(max_age_s=_NODES_S)).nodes_of(self._chosen_partition)
        except (SlurmError, HostError) as exc:
            raise self.failure(exc.message, exc.hint) from exc
        return [
            name for node in nodes for name in (f"DNS:{node.name}", f"{_kind(node.address)}:{node.address}")
        ]

    @property
    def _owners(self) -> Owners:
        return Owners(user=self.slurm_user, prefix=tuple(self.slurm_prefix))

    @property
    def _slurm(self) -> Slurm:
        """Raises HostError where the user has no account of their own."""
        return self._owners.slurm_of(self.user.name)

    @property
    def _engine(self) -> Slurm:
        return self._slurm

    @property
    def _jobs_user(self) -> str:
        return self._owners.name_of(self.user.name)

    def _make_owners_list(self) -> ListOwners:
        return functools.partial(list_owners, self._owners, self.user.settings["db"])

    @property
    def _queue(self) -> Queue:
        return queue_of(*self._owners.watch)

    # What there is to choose from

    @property
    def _job_owner(self) -> JobOwner:
        name = self._owners.name_of(self.user.name)
        return JobOwner(user=name, groups=find_unix_groups(name), account=self.slurm_account)

    async def ask_place(self, *, most_s: float) -> None:
        self._owners.name_of(self.user.name)
        why: SlurmError | None = None
        try:
            async with asyncio.timeout(most_s):
                await self._queue.cluster(max_age_s=_NODES_S)
        except SlurmError as exc:
            why = exc
        except TimeoutError:
            why = SlurmError(Text("The cluster does not answer."), hint=Text("Try again later."))
        if why is not None and self._queue.find_last_cluster() is None:
            raise why

    def find_partitions(self) -> tuple[OfferedPartition, ...] | None:
        cluster = self._queue.find_last_cluster()
        if cluster is None:
            return None
        try:
            owner = self._job_owner
        except HostError:
            # Which a start says.
            return None
        is_current = self._queue.find_last_cluster(max_age_s=_CURRENT_S) is not None
        groups = {group.name for group in self.user.groups}
        return self.offer_partitions(cluster, owner, groups, is_current=is_current)

    def find_reservations(self) -> tuple[OfferedReservation, ...]:
        cluster = self._queue.find_last_cluster()
        if cluster is None:
            return ()
        try:
            owner = self._job_owner
        except HostError:
            return ()
        return self.offer_reservations(cluster, owner, {group.name for group in self.user.groups})

    def find_gpu_models(self) -> dict[str, int]:
        return count_gpus(self.find_partitions() or ()) if self.gpus else {}

    @property
    def _jobs_are_users(self) -> bool:
        return self._owners.are_users

    def _prepare_folders(self) -> None:
        """Make the session's folder its user's own, where others could else make one of that name first.

        Raises:
            HostError: The user has no account of their own.
        """
        super()._prepare_folders()
        if not self._jobs_are_users or os.geteuid() != 0:
            return
        owner = pwd.getpwnam(self._owners.name_of(self.user.name))
        try:
            account.prepare_folders(self._state_paths, owner, session_id=self.session_id, shared=True)
        except OSError as exc:
            # On storage where this host's root is nobody, they are made by the job.
            self.log.warning("%s: its folder is not made here: %s", self.session_id, exc)

    @property
    def _chosen_partition(self) -> str:
        return self._options.partition if self._options is not None else self.partition

    async def _submit(self, spec: SessionSpec, script: str) -> str:
        self._stood = None
        chosen = self._options.reservation if self._options is not None else ""
        arguments = make_arguments(
            session_id=spec.session_id,
            comment=tag(self._hub_id, spec.session_id),
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            lifetime_s=spec.max_lifetime_s,
            partition=self._chosen_partition,
            reservation=chosen or self.reservation,
            account=self.slurm_account,
            gres=self.write_gres(spec.gpus),
            log=self.slurm_log,
        )
        return await self._slurm.submit(arguments, script)

    async def _find_address(self, node: str) -> str:
        cluster = await self._queue.cluster(max_age_s=_NODES_S)
        return cluster.nodes[node].address if node in cluster.nodes else node

    async def _say_place(self, job: Job) -> None:
        assert isinstance(job, jobs.Job)
        place = await self._queue.find_place(self.job_id, max_age_s=_PLACE_S)
        if place is not None and place != self._stood:
            self._stood = place
            self._progress.say(describe_place(job, place, now=time.time()))

    async def capacity(self) -> list[HostCapacity]:
        try:
            cluster = await self._queue.cluster(max_age_s=_NODES_S)
        except SlurmError as exc:
            self.log.warning("What the cluster has is not known: %s", exc.text)
            return []
        names = dict.fromkeys(name for one in self.list_partitions(cluster) for name in one.nodes)
        nodes = [cluster.nodes[name] for name in names]
        return [self.describe_node(node) for node in nodes if node.in_service]


def _kind(address: str) -> str:
    """Of a certificate's alternative name."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "DNS"
    return "IP"
