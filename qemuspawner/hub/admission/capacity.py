"""What hosts have for desktops, and what of it is free: not measured, but what nothing was promised of yet.

What a desktop was promised it may use at any moment, so a host whose desktops are idle is full all the same.
"""

import functools
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traitlets import Dict, Float, Integer, List, TraitError, Unicode, Union, validate

from qemuspawner.hub.admission.gpu_units import GpuUnit, find_units
from qemuspawner.hub.admission.promises import KeepsPromise, Promise, list_promises
from qemuspawner.spec import SESSION_OVERHEAD_MIB, Gpus
from qemuspawner.units import parse_mib

# GPUs come and go by a driver's being bound; nobody waits longer to see it.
_LOOK_EVERY_S = 10


@dataclass(frozen=True, kw_only=True)
class Amount:
    total: int
    free: int

    def describe(self) -> dict[str, int]:
        return {"total": self.total, "free": self.free}


@dataclass(frozen=True, kw_only=True)
class HostCapacity:
    """One host, as far as it is for desktops.

    `cpus` are virtual ones, None where they are not limited; a desktop takes more memory than its guest has.
    """

    host: str
    cpus: Amount | None
    memory_mib: Amount
    gpus: Mapping[str, Amount]  # by model
    promises: tuple[Promise, ...] = ()  # of the desktops there

    def describe(self) -> dict[str, object]:
        """For programs."""
        return {
            "host": self.host,
            "cpus": self.cpus.describe() if self.cpus else None,
            "memory_mib": self.memory_mib.describe(),
            "gpus": [{"model": model, **units.describe()} for model, units in sorted(self.gpus.items())],
        }


def calculate_capacity(
    host: str,
    *,
    cpus: int | None,
    memory_mib: int,
    gpus: Mapping[str, int],
    promises: Iterable[Promise],
) -> HostCapacity:
    """A host that has so much for desktops (`cpus` None: no limit), of which `promises` were made."""
    made = tuple(promises)

    def left(total: int, promised: int) -> Amount:
        # Less than nothing where the administrator has just lowered it.
        return Amount(total=total, free=max(0, total - promised))

    return HostCapacity(
        host=host,
        cpus=None if cpus is None else left(cpus, sum(promise.cpus for promise in made)),
        memory_mib=left(memory_mib, sum(needed_mib(promise.memory_mib) for promise in made)),
        gpus={
            model: left(
                total,
                sum(one.gpus.count for one in made if one.gpus is not None and one.gpus.model == model),
            )
            for model, total in gpus.items()
        },
        promises=made,
    )


def needed_mib(memory_mib: int) -> int:
    """What a desktop with so much memory takes of its host's."""
    return memory_mib + SESSION_OVERHEAD_MIB


class LocalHost(KeepsPromise):
    """Part of `QemuSpawner`: what the hub's own host has for desktops."""

    memory_reserve = Union(
        [Integer(), Unicode()],
        default_value=1024,
        help="""What the host keeps for itself, the hub and the proxy: MiB, or text like "4 GiB".

        The rest is promised to desktops, none of it twice.
        """,
    ).tag(config=True)
    cpu_overcommit = Float(
        4.0,
        min=0,
        help="""How many virtual CPUs desktops may have for each CPU of the host, all together; 0: any number.

        Desktops wait for their users most of the time, so CPUs can be promised more than once. What computes
        all day wants 1.
        """,
    ).tag(config=True)
    gpus = List(
        Unicode(),
        help="""The GPUs of this host that desktops may have: models, addresses like "0000:65:00.0", or
        patterns such as "*". Types of vGPU count as models. `qemuspawner gpu list` has the names.
        """,
    ).tag(config=True)
    denied_gpus = List(
        Unicode(),
        help="""The GPUs of this host that desktops may not have, whatever `gpus` says.""",
    ).tag(config=True)
    gpu_units = Dict(
        key_trait=Unicode(),
        value_trait=Integer(min=0),
        help="""How many GPUs of which model desktops may have, instead of counting those in `gpus`.""",
    ).tag(config=True)

    @validate("memory_reserve")
    def _memory_reserve_mib(self, proposal: Any) -> int:
        try:
            return parse_mib(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"memory_reserve is {proposal['value']!r}: {exc}.") from None

    @property
    def can_pass_gpus(self) -> bool:
        """Whether a guest can get any. Nothing is offered that it would not get."""
        return bool(self._found_units())

    def find_gpu_models(self) -> dict[str, int]:
        """How many GPUs of which model this host has for desktops."""
        if not self.can_pass_gpus:
            return {}
        if self.gpu_units:
            return dict(self.gpu_units)
        counts: dict[str, int] = {}
        for unit in self._found_units():
            counts[unit.model] = counts.get(unit.model, 0) + unit.count
        return counts

    def find_gpu_devices(self, gpus: Gpus | None) -> tuple[str, ...]:
        """What a session may take for what it was promised; which of it is free it sees itself."""
        if gpus is None:
            return ()
        return tuple(
            unit.device
            for unit in self._found_units()
            if unit.model == gpus.model
            # Of a type the same name makes one device after the other.
            for _ in range(min(unit.count, gpus.count))
        )

    def _found_units(self) -> tuple[GpuUnit, ...]:
        if not self.gpus:
            return ()
        period = int(time.monotonic() / _LOOK_EVERY_S)
        return _look_for_gpus(period, tuple(self.gpus), tuple(self.denied_gpus))

    def count_host(self) -> HostCapacity:
        """This host as it is at this moment."""
        cpus = len(os.sched_getaffinity(0))
        return calculate_capacity(
            platform.node(),
            cpus=int(cpus * self.cpu_overcommit) if self.cpu_overcommit else None,
            memory_mib=max(0, find_memory_mib() - self.memory_reserve),
            gpus=self.find_gpu_models(),
            promises=[
                promise
                for promise in list_promises(self.user.settings["users"], LocalHost)
                if promise.where in ("", "host")
            ],
        )

    async def capacity(self) -> list[HostCapacity]:
        """All hosts that desktops can start on, at most 10 s old."""
        return [self.count_host()]


@functools.lru_cache(maxsize=4)
def _look_for_gpus(_period: int, allowed: tuple[str, ...], denied: tuple[str, ...]) -> tuple[GpuUnit, ...]:
    return find_units(allowed, denied)


def find_memory_mib(meminfo: Path = Path("/proc/meminfo")) -> int:
    """This host's memory."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    return int(match[1]) >> 10 if match else 0
