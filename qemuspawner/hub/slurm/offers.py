"""What of a cluster a user is offered: partitions, reservations, and the GPUs of its nodes."""

import functools
import grp
import os
import pwd
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from traitlets import Dict, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.batch import SPARE_S
from qemuspawner.hub.admission.capacity import Amount, HostCapacity
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.slurm.nodes import ANY_GPU, Cluster, Node, Partition
from qemuspawner.hub.slurm.rules import Rules
from qemuspawner.spec import Gpus

# Slurm looks every minute whether a job still fits into its reservation.
_LATE_S = 60
# An account's groups may come from a directory far away.
_GROUPS_S = 300
# Names as Slurm and its administrators write them; nothing that a comma or a blank could end.
_NAME = re.compile(r"[\w.:=/@+-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class JobOwner:
    """Whose a job is to be: an account of the cluster's, its groups where they are known, Slurm's account."""

    user: str
    groups: frozenset[str] | None
    account: str = ""


class OffersCluster(LoggingConfigurable):
    """Part of `QemuSlurmSpawner`: what its users may choose from."""

    partition = Unicode(
        "",
        help="""The partition of the desktops, where `partitions` names none; "" is Slurm's default one.""",
    ).tag(config=True)
    partitions = Dict(
        key_trait=Unicode(),
        value_trait=List(Unicode()),
        help="""The partitions that users choose from: {"desktop": [], "gpu*": ["staff"]}.

        Names or patterns, each with the hub's groups of which a user has to be in one; [] is everybody.
        Without a choice a desktop gets the first in which it can run.
        """,
    ).tag(config=True)
    reservation = Unicode(
        "", help="A reservation that the desktops run in, where their users choose none."
    ).tag(config=True)
    reservations = Dict(
        key_trait=Unicode(),
        value_trait=List(Unicode()),
        help="""The reservations that users choose from, as in `partitions`: {"course-*": []}.""",
    ).tag(config=True)
    gpus = List(
        Unicode(),
        help="""The GPUs that desktops may have: models as Slurm calls them, or patterns such as "*".

        Each node that has some needs the file that says which is which; see the manual.
        """,
    ).tag(config=True)
    gres = List(
        Unicode(), help="""What else each job asks for by `--gres`, such as ["kvm:1"].""", maxlen=20
    ).tag(config=True)
    slurm_account = Unicode(
        "", help="""The account of Slurm's that the jobs are charged to; "" is the default one."""
    ).tag(config=True)

    @validate("gres")
    def _gres_that_can_be_listed(self, proposal: Any) -> Any:
        if wrong := [name for name in proposal["value"] if not _NAME.fullmatch(name)]:
            raise TraitError(f'gres has {wrong[0]!r}; an entry is like "NAME:COUNT" or "NAME:TYPE:COUNT".')
        return proposal["value"]

    def list_partitions(self, cluster: Cluster, groups: Collection[str] | None = None) -> list[Partition]:
        """Those of the traits, in their order, for who is in these groups of the hub; None: for anybody."""
        if not self.partitions:
            found = cluster.find_partition(self.partition)
            return [] if found is None else [found]
        names = _choose(cluster.partitions, self.partitions, groups)
        return [cluster.partitions[name] for name in names]

    def offer_partitions(
        self, cluster: Cluster, owner: JobOwner, groups: Collection[str], *, is_current: bool
    ) -> tuple[OfferedPartition, ...]:
        """For a user in these groups of the hub; `is_current`: what is free is so now."""
        now = time.time()
        reserved = frozenset(
            node
            for one in cluster.reservations.values()
            if one.begin <= now < one.end and one.name != self.reservation
            for node in one.nodes
        )
        return tuple(
            self._offer(partition, cluster, reserved, is_current=is_current)
            for partition in self.list_partitions(cluster, groups)
            if _rules_of(cluster, partition).who.admits(
                user=owner.user, groups=owner.groups, account=owner.account
            )
        )

    def _offer(
        self, partition: Partition, cluster: Cluster, reserved: frozenset[str], *, is_current: bool
    ) -> OfferedPartition:
        rules = _rules_of(cluster, partition)
        return OfferedPartition(
            name=partition.name,
            lifetime_s=None if partition.max_s is None else max(0, partition.max_s - SPARE_S),
            cpus=rules.cpus,
            memory_mib=rules.memory_mib,
            memory_per_cpu_mib=rules.memory_per_cpu_mib,
            is_up=rules.is_up and rules.nodes != 0,
            needs_reservation=rules.needs_reservation and not self.reservation,
            nodes=tuple(self.describe_node(cluster.nodes[name]) for name in partition.nodes),
            reserved=reserved,
            is_current=is_current,
        )

    def offer_reservations(
        self, cluster: Cluster, owner: JobOwner, groups: Collection[str]
    ) -> tuple[OfferedReservation, ...]:
        """For a user in these groups of the hub: those that are not over."""
        now = time.time()
        found = (
            cluster.reservations[name] for name in _choose(cluster.reservations, self.reservations, groups)
        )
        return tuple(
            OfferedReservation(
                name=one.name,
                nodes=one.nodes,
                partition=one.partition,
                lifetime_s=max(0, int(one.end - max(now, one.begin)) - SPARE_S - _LATE_S)
                if one.ends_jobs
                else None,
                begins_in_s=one.begin - now,
                ends_in_s=one.end - now,
            )
            for one in found
            if one.end > now and one.who.admits(user=owner.user, groups=owner.groups, account=owner.account)
        )

    def describe_node(self, node: Node) -> HostCapacity:
        """A node as far as it is for desktops: what is out of service has nothing free."""

        def amount(total: int, free: int) -> Amount:
            return Amount(total=total, free=free if node.in_service else 0)

        return HostCapacity(
            host=node.name,
            cpus=amount(node.cpus, node.free_cpus),
            memory_mib=amount(node.memory_mib, node.free_memory_mib),
            gpus={
                model: amount(total, node.free_gpus.get(model, 0))
                for model, total in node.gpus.items()
                if any(fnmatchcase(model.lower(), pattern.lower()) for pattern in self.gpus)
            },
        )

    def write_gres(self, gpus: Gpus | None) -> str:
        """As `--gres` takes it."""
        model = f"{gpus.model}:" if gpus is not None and gpus.model not in ("", ANY_GPU) else ""
        return ",".join([*([] if gpus is None else [f"gpu:{model}{gpus.count}"]), *self.gres])


def count_gpus(partitions: Iterable[OfferedPartition]) -> dict[str, int]:
    """The most of each model that one node has."""
    most: dict[str, int] = {}
    for partition in partitions:
        for node in partition.nodes:
            for model, units in node.gpus.items():
                most[model] = max(most.get(model, 0), units.total)
    return most


def find_unix_groups(user: str) -> frozenset[str] | None:
    """The names of an account's groups; None where this host does not know it."""
    return _find_unix_groups(user, int(time.monotonic() / _GROUPS_S))


@functools.lru_cache(maxsize=1024)
def _find_unix_groups(user: str, _period: int) -> frozenset[str] | None:
    try:
        account = pwd.getpwnam(user)
        return frozenset(grp.getgrgid(number).gr_name for number in os.getgrouplist(user, account.pw_gid))
    except (KeyError, ValueError):
        return None


def _rules_of(cluster: Cluster, partition: Partition) -> Rules:
    return cluster.rules.get(partition.name, Rules())


def _choose(
    names: Iterable[str], allowed: Mapping[str, Collection[str]], groups: Collection[str] | None
) -> list[str]:
    """In the order of the patterns; a name is for whom the first pattern says that it matches."""
    known = list(names)
    chosen: dict[str, bool] = {}
    for pattern, wanted in allowed.items():
        is_mine = groups is None or not wanted or not set(wanted).isdisjoint(groups)
        for name in known:
            if fnmatchcase(name, pattern):
                chosen.setdefault(name, is_mine)
    return [name for name, is_mine in chosen.items() if is_mine]
