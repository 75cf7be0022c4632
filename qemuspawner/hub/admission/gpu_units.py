"""What this host can pass on to guests, under the names that users choose from."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.gpus import choose_allowed, find_gpus
from qemuspawner.mediated import choose_allowed_types, find_types
from qemuspawner.vfio import find_obstacles


@dataclass(frozen=True, kw_only=True)
class GpuUnit:
    """One GPU, or as many parts of one as can be made of a type."""

    model: str
    device: str  # as a session takes it
    count: int = 1


def find_units(
    allowed: Collection[str],
    denied: Collection[str],
    *,
    sysfs: Path = Path("/sys"),
    dev: Path = Path("/dev"),
) -> tuple[GpuUnit, ...]:
    """What of the host is allowed and can be passed on, whether a desktop has it now or not."""
    whole = [
        GpuUnit(model=gpu.model, device=gpu.address)
        for gpu in choose_allowed(find_gpus(sysfs), allowed, denied)
        if not find_obstacles(gpu, dev=dev)
    ]
    parts = [
        GpuUnit(model=one.name, device=one.device, count=one.free + one.made)
        for one in choose_allowed_types(find_types(sysfs), allowed, denied)
        if one.free + one.made
    ]
    return (*whole, *parts)
