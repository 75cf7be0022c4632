"""Partitions of a cluster as one user may use them: what can run there at all, and on how many nodes now."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qemuspawner.batch import job_memory_mib
from qemuspawner.hub.admission.capacity import Amount, HostCapacity
from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.form.fields import quote
from qemuspawner.texts import Text
from qemuspawner.units import render_mib


@dataclass(frozen=True, kw_only=True)
class OfferedReservation:
    """Nodes that are kept for some for a time."""

    name: str
    nodes: frozenset[str]
    partition: str = ""  # "": any
    lifetime_s: int | None = None  # the longest that a desktop can last there; None: also after its end
    begins_in_s: float = 0  # more than 0: a desktop waits for it
    ends_in_s: float = 0


@dataclass(frozen=True, kw_only=True)
class OfferedPartition:
    """Of what a desktop may have there None is no limit; nodes that are out of service have nothing free."""

    name: str
    lifetime_s: int | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    memory_per_cpu_mib: int | None = None
    is_up: bool = True
    needs_reservation: bool = False
    nodes: tuple[HostCapacity, ...] = ()
    reserved: frozenset[str] = frozenset()  # the nodes that only reservations have now
    is_current: bool = True  # what is free was so a moment ago

    def find_lack(self, need: Need, reservation: OfferedReservation | None = None) -> str:
        """Why a desktop of this size can never run there, in a sentence; "" where it can."""
        name = quote(self.name)
        if not self.is_up:
            return Text("The partition {name} takes no jobs at this moment.", name=name)
        if self.needs_reservation and reservation is None:
            return Text("The partition {name} is for reservations only.", name=name)
        if reservation is not None and reservation.partition not in ("", self.name):
            return Text(
                "The reservation {reservation} is of the partition {partition}, not of {name}.",
                reservation=quote(reservation.name),
                partition=quote(reservation.partition),
                name=name,
            )
        if self.memory_mib is not None and job_memory_mib(need.memory_mib) > self.memory_mib:
            return self._say_memory(need, self.memory_mib)
        cpus = self._count_cpus(need)
        if self.cpus is not None and cpus > self.cpus:
            return self._say_cpus(cpus, self.cpus)
        return self._find_lack_of_nodes(need, reservation)

    def _find_lack_of_nodes(self, need: Need, reservation: OfferedReservation | None) -> str:
        nodes = [node for node in self.nodes if reservation is None or node.host in reservation.nodes]
        if not nodes:
            return Text("The partition {name} has no nodes for it.", name=quote(self.name))
        if any(self._fits(node, need, free=False) for node in nodes):
            return ""
        most_mib = max(node.memory_mib.total for node in nodes)
        most_cpus = max(node.cpus.total if node.cpus else 0 for node in nodes)
        if job_memory_mib(need.memory_mib) > most_mib:
            return self._say_memory(need, most_mib)
        if self._count_cpus(need) > most_cpus:
            return self._say_cpus(self._count_cpus(need), most_cpus)
        if need.gpus is not None:
            return Text(
                "No node of the partition {name} has such a desktop's GPUs ({gpus}), CPUs and memory.",
                name=quote(self.name),
                gpus=need.gpus,
            )
        return Text(
            "No node of the partition {name} has such a desktop's CPUs and memory.", name=quote(self.name)
        )

    def _say_memory(self, need: Need, most_mib: int) -> Text:
        return Text(
            "In the partition {name} a desktop's job has at most {most} of memory; it needs {needed}.",
            name=quote(self.name),
            most=render_mib(most_mib),
            needed=render_mib(job_memory_mib(need.memory_mib)),
        )

    def _say_cpus(self, cpus: int, most: int) -> Text:
        return Text(
            "In the partition {name} a desktop has at most {most} CPUs; it needs {needed}.",
            name=quote(self.name),
            most=most,
            needed=cpus,
        )

    def count_fitting(self, need: Need, reservation: OfferedReservation | None = None) -> int:
        """On how many nodes there is room for such a desktop at this moment."""
        if reservation is not None and reservation.begins_in_s > 0:
            return 0
        nodes = [
            node
            for node in self.nodes
            if (node.host not in self.reserved if reservation is None else node.host in reservation.nodes)
        ]
        return sum(self._fits(node, need, free=True) for node in nodes)

    def sum_up(self) -> tuple[Amount, Amount, Mapping[str, Amount]]:
        """CPUs, memory in MiB and GPUs by model, of all its nodes."""
        models = sorted({model for node in self.nodes for model in node.gpus})
        none = Amount(total=0, free=0)
        return (
            _sum(node.cpus or none for node in self.nodes),
            _sum(node.memory_mib for node in self.nodes),
            {model: _sum(node.gpus.get(model, none) for node in self.nodes) for model in models},
        )

    def _count_cpus(self, need: Need) -> int:
        """A job that has more memory than goes with its CPUs is given the CPUs for it."""
        if not self.memory_per_cpu_mib:
            return need.cpus
        return max(need.cpus, -(-job_memory_mib(need.memory_mib) // self.memory_per_cpu_mib))

    def _fits(self, node: HostCapacity, need: Need, *, free: bool) -> bool:
        def has(amount: Amount) -> int:
            return amount.free if free else amount.total

        if node.cpus is not None and self._count_cpus(need) > has(node.cpus):
            return False
        if job_memory_mib(need.memory_mib) > has(node.memory_mib):
            return False
        if need.gpus is None:
            return True
        return any(
            need.gpus.count <= has(units)
            for model, units in node.gpus.items()
            if need.gpus.model in ("", model)
        )


def _sum(amounts: Iterable[Amount]) -> Amount:
    listed = list(amounts)
    return Amount(total=sum(one.total for one in listed), free=sum(one.free for one in listed))
