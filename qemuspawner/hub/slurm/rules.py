"""What partitions and reservations let jobs have, and whose, as `scontrol show --oneliner` prints it."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from qemuspawner.hub.slurm.words import parse_moment

# Larger lists of nodes are a mistake of ours or somebody's attack.
_MAX_NODES = 65536
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_PIECE = re.compile(r"([^\[\],]+)(?:\[([\d,-]+)\])?(?:,|$)", re.ASCII)
_UNITS_MIB = {"": 1, "M": 1, "G": 1 << 10, "T": 1 << 20}


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whom something is for; None is everybody."""

    users: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    accounts: frozenset[str] | None = None
    denied: frozenset[str] = frozenset()  # users and accounts

    def admits(self, *, user: str, groups: Collection[str] | None, account: str) -> bool:
        """Whether a job of this user and account of Slurm's may come; what is not known is Slurm's to judge.

        `groups` None: nobody here knows the user's; `account` "": Slurm's default one of the user's.
        """
        if user in self.denied or account in self.denied:
            return False
        if self.users is not None and user not in self.users:
            return False
        if self.groups is not None and groups is not None and self.groups.isdisjoint(groups):
            return False
        return self.accounts is None or not account or account in self.accounts


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Of a partition, for one job on one node; None is no limit."""

    is_up: bool = True
    needs_reservation: bool = False
    nodes: int | None = None
    cpus: int | None = None
    memory_mib: int | None = None
    memory_per_cpu_mib: int | None = None
    who: Who = Who()


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Nodes that are kept for some for a time, in seconds since the epoch."""

    name: str
    begin: float
    end: float
    ends_jobs: bool  # what would go on after its end does not start
    partition: str  # "": any
    nodes: frozenset[str]
    who: Who


def parse_rules(listed: str) -> dict[str, Rules]:
    """What `scontrol show partition` prints, by the partition's name. Raises ValueError."""
    return {
        record["PartitionName"]: Rules(
            is_up=record.get("State", "UP") == "UP",
            needs_reservation=record.get("ReqResv") == "YES",
            nodes=_parse_count(record.get("MaxNodes")),
            cpus=_parse_count(record.get("MaxCPUsPerNode")),
            memory_mib=_parse_mib(record.get("MaxMemPerNode")),
            memory_per_cpu_mib=_parse_mib(record.get("MaxMemPerCPU")),
            who=Who(
                groups=_parse_names(record.get("AllowGroups")),
                accounts=_parse_names(record.get("AllowAccounts")),
                denied=_parse_names(record.get("DenyAccounts")) or frozenset(),
            ),
        )
        for record in _parse_records(listed)
        if "PartitionName" in record and "ReservationName" not in record
    }


def parse_reservations(listed: str) -> dict[str, Reservation]:
    """What `scontrol show reservation` prints, by name; one whose time cannot be read is left out.

    Raises:
        ValueError: The answer is cut off.
    """
    found = {}
    for record in _parse_records(listed):
        name = record.get("ReservationName", "")
        begin, end = parse_moment(record.get("StartTime", "")), parse_moment(record.get("EndTime", ""))
        if not name or begin is None or end is None:
            continue
        users = _parse_names(record.get("Users")) or frozenset()
        denied = frozenset(user.removeprefix("-") for user in users if user.startswith("-"))
        allowed = frozenset(user for user in users if not user.startswith("-"))
        found[name] = Reservation(
            name=name,
            begin=begin,
            end=end,
            ends_jobs="FLEX" not in record.get("Flags", "").split(","),
            partition="" if record.get("PartitionName") in (None, "(null)") else record["PartitionName"],
            nodes=frozenset(expand_nodes(record.get("Nodes", ""))),
            who=Who(
                users=allowed or None,
                groups=_parse_names(record.get("Groups")),
                accounts=_parse_names(record.get("Accounts")),
                denied=denied,
            ),
        )
    return found


def expand_nodes(listed: str) -> Iterator[str]:
    """ "n[08-10,12],login" as n08, n09, n10, n12, login; nothing where it cannot be read."""
    if listed in ("", "(null)"):
        return
    count = 0
    for name, ranges in _PIECE.findall(listed):
        for number in _expand_ranges(ranges) if ranges else ("",):
            count += 1
            if count > _MAX_NODES:
                return
            yield f"{name}{number}"


def _expand_ranges(ranges: str) -> Iterator[str]:
    for first, last in _RANGE.findall(ranges):
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))


def _parse_records(listed: str) -> list[dict[str, str]]:
    """Words like Name=value, a record a line; of a name that comes twice the first counts.

    Comments come last, and may have anything in them.
    """
    if listed and not listed.endswith("\n"):
        raise ValueError("the list of partitions or reservations is cut off")
    records = []
    for line in listed.splitlines():
        record: dict[str, str] = {}
        for word in line.split(" "):
            name, equals, value = word.partition("=")
            if equals:
                record.setdefault(name, value)
        records.append(record)
    return records


def _parse_count(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def _parse_mib(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d{1,12})([MGT]?)", text or "", re.ASCII)
    return int(match[1]) * _UNITS_MIB[match[2]] if match else None


def _parse_names(text: str | None) -> frozenset[str] | None:
    """None: everybody's."""
    if text in (None, "", "ALL", "(null)"):
        return None
    return frozenset(text.split(","))
