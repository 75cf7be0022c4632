"""Nodes as `sinfo` lists them: what each has, and what of it is free."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qemuspawner.hub.slurm.words import parse_duration

# What `sinfo --Node` is asked for; with a suffix each, so that nothing is cut to a column's width.
FIELDS = (
    *("NodeList", "Partition", "StateCompact", "CPUsState", "Memory", "AllocMem"),
    *("Gres", "GresUsed", "NodeAddr", "Time"),
)
COLUMNS = ",".join(f"{field}:|" for field in FIELDS)

# Of `man sinfo`, NODE STATE CODES: those on which something can run, now or once something else ends.
_IN_SERVICE = frozenset(("idle", "mix", "alloc", "comp", "plnd"))
_GPU = re.compile(r"gpu(?::([\w.-]+))?:(\d{1,6})(?:\([^)]*\))?(?:,|$)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node; `None` free memory where Slurm does not count memory."""

    name: str
    address: str
    state: str  # Slurm's own word, with its marks
    cpus: int
    free_cpus: int
    memory_mib: int
    free_memory_mib: int
    gpus: Mapping[str, int]  # by model; "" where Slurm knows none
    free_gpus: Mapping[str, int]

    @property
    def in_service(self) -> bool:
        """Not down, drained, off or silent; any mark after the word says so."""
        return self.state in _IN_SERVICE

    def fits(self, *, cpus: int, memory_mib: int, gpus: int = 0, model: str = "") -> bool:
        """Whether so much is free at this moment."""
        if not self.in_service or cpus > self.free_cpus or memory_mib > self.free_memory_mib:
            return False
        return gpus <= (self.free_gpus.get(model, 0) if model else max([*self.free_gpus.values(), 0]))


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Nodes that jobs are sent to together, for at most so many seconds (None: no limit)."""

    name: str
    is_default: bool
    max_s: int | None
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    nodes: Mapping[str, Node]
    partitions: Mapping[str, Partition]

    def nodes_of(self, partition: str) -> list[Node]:
        """Those of a partition, "" for Slurm's default one; none where there is no such partition."""
        found = [
            one
            for one in self.partitions.values()
            if one.name == partition or (not partition and one.is_default)
        ]
        return [self.nodes[name] for one in found for name in one.nodes]


def parse_cluster(listed: str) -> Cluster:
    """What `sinfo --noheader --Node --Format COLUMNS` prints: a line for each node in each partition.

    Raises:
        ValueError: Not such a list.
    """
    nodes: dict[str, Node] = {}
    partitions: dict[str, Partition] = {}
    for line in listed.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != len(FIELDS) + 1:
            raise ValueError(f"the list of nodes has the line {line[:200]!r}")
        node = _parse_node(dict(zip(FIELDS, parts, strict=False)))
        nodes[node.name] = node
        name = parts[1].rstrip("*")
        known = partitions.get(name)
        partitions[name] = Partition(
            name=name,
            is_default=parts[1].endswith("*"),
            max_s=parse_duration(parts[9]),
            nodes=(*(known.nodes if known else ()), node.name),
        )
    return Cluster(nodes=nodes, partitions=partitions)


def _parse_node(field: Mapping[str, str]) -> Node:
    cpus = [int(number) for number in field["CPUsState"].split("/")]
    if len(cpus) != 4:
        raise ValueError(f"a node's CPUs are {field['CPUsState'][:40]!r}")
    memory = int(field["Memory"])
    gpus, used = _parse_gpus(field["Gres"]), _parse_gpus(field["GresUsed"])
    return Node(
        name=field["NodeList"],
        address=field["NodeAddr"],
        state=field["StateCompact"],
        cpus=cpus[3],
        free_cpus=cpus[1],
        memory_mib=memory,
        free_memory_mib=max(0, memory - int(field["AllocMem"])),
        gpus=gpus,
        free_gpus={model: max(0, count - used.get(model, 0)) for model, count in gpus.items()},
    )


def _parse_gpus(gres: str) -> dict[str, int]:
    """ "gpu:t4:2(IDX:0,1),gpu:a100:1" by model; anything else that a node has is not for desktops."""
    found: dict[str, int] = {}
    for model, count in _GPU.findall(gres):
        found[model] = found.get(model, 0) + int(count)
    return found


def count_fitting(
    nodes: Iterable[Node], *, cpus: int, memory_mib: int, gpus: int = 0, model: str = ""
) -> int:
    """On how many of these nodes so much is free now."""
    return sum(node.fits(cpus=cpus, memory_mib=memory_mib, gpus=gpus, model=model) for node in nodes)
