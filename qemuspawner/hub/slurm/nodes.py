"""Nodes as `sinfo` lists them: what each has, and what of it is free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qemuspawner.hub.slurm.rules import Reservation, Rules
from qemuspawner.hub.slurm.words import parse_duration

# What `sinfo --Node` is asked for; with a suffix each, so that nothing is cut to a column's width.
FIELDS = (
    *("NodeList", "Partition", "StateCompact", "CPUsState", "Memory", "AllocMem"),
    *("Gres", "GresUsed", "NodeAddr", "Time"),
)
COLUMNS = ",".join(f"{field}:|" for field in FIELDS)

# Of `man sinfo`, NODE STATE CODES: those on which something can run, now or once something else ends.
_IN_SERVICE = frozenset(("idle", "mix", "alloc", "comp", "plnd"))
# One that is idle and reserved, for who may use the reservation.
_RESERVED = "resv"
_COUNT = re.compile(r"\d{1,12}", re.ASCII)
_GPU = re.compile(r"(?:^|,)gpu(?::([\w.-]+))?:(\d{1,6})(?=,|$)", re.ASCII)
# How GPUs are called whose model Slurm does not know.
ANY_GPU = "gpu"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node."""

    name: str
    address: str
    state: str  # Slurm's own word, with its marks
    cpus: int
    free_cpus: int
    memory_mib: int
    free_memory_mib: int
    gpus: Mapping[str, int]  # by model, or as ANY_GPU
    free_gpus: Mapping[str, int]

    @property
    def in_service(self) -> bool:
        """Not down, drained, off or silent; any mark after the word says so."""
        return self.state in _IN_SERVICE or self.state == _RESERVED


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
    rules: Mapping[str, Rules] = field(default_factory=dict)  # by partition
    reservations: Mapping[str, Reservation] = field(default_factory=dict)

    def nodes_of(self, partition: str) -> list[Node]:
        """Those of a partition, "" for Slurm's default one; none where there is no such partition."""
        found = self.find_partition(partition)
        return [] if found is None else [self.nodes[name] for name in found.nodes]

    def find_partition(self, name: str) -> Partition | None:
        """A partition, "" for Slurm's default one."""
        return next(
            (one for one in self.partitions.values() if one.name == name or (not name and one.is_default)),
            None,
        )


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
            max_s=_parse_limit(parts[9]),
            nodes=(*(known.nodes if known else ()), node.name),
        )
    return Cluster(nodes=nodes, partitions=partitions)


def _parse_node(field: Mapping[str, str]) -> Node:
    """A number that cannot be read is none: nothing fits there, and Slurm may still send a job to it."""
    _, free_cpus, _, cpus = [*map(_parse_count, field["CPUsState"].split("/")), 0, 0, 0, 0][:4]
    memory = _parse_count(field["Memory"])
    # Without a number for what is taken, none of it counts as free.
    taken = _parse_count(field["AllocMem"]) if _COUNT.fullmatch(field["AllocMem"]) else memory
    gpus, used = _parse_gpus(field["Gres"]), _parse_gpus(field["GresUsed"])
    return Node(
        name=field["NodeList"],
        address=field["NodeAddr"],
        state=field["StateCompact"],
        cpus=cpus,
        free_cpus=free_cpus,
        memory_mib=memory,
        free_memory_mib=max(0, memory - taken),
        gpus=gpus,
        free_gpus={model: max(0, count - used.get(model, 0)) for model, count in gpus.items()},
    )


def _parse_count(text: str) -> int:
    return int(text) if _COUNT.fullmatch(text) else 0


def _parse_limit(text: str) -> int | None:
    """Seconds; None where there is no limit, or none that can be read: Slurm itself will judge."""
    try:
        return parse_duration(text)
    except ValueError:
        return None


def _parse_gpus(gres: str) -> dict[str, int]:
    """ "gpu:t4:2(IDX:0,1),gpu:a100:1" by model; anything else that a node has is not for desktops."""
    found: dict[str, int] = {}
    # Numbers in brackets have commas, which are none of the list's.
    for model, count in _GPU.findall(re.sub(r"\([^()]*\)", "", gres)):
        if int(count):
            found[model or ANY_GPU] = found.get(model or ANY_GPU, 0) + int(count)
    return found
