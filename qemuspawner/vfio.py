"""Whether a GPU can be passed on to a guest, and what the administrator has to do where it cannot.

VFIO is the kernel's way to give a device to a program. It knows devices by their IOMMU groups: what is in one
can reach each other's memory, so a group is given as a whole or not at all.
"""

import os
import resource
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.gpus import Gpu

DRIVER = "vfio-pci"
CONTROL = Path("/dev/vfio/vfio")
# A PCI slot has so many functions.
_MAX_FUNCTIONS = 8
# Beside the guest's memory QEMU locks the windows of devices; libvirt allows as much for them.
_LOCKED_BESIDE_MIB = 1024


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why something cannot be passed on, and what to do about it."""

    text: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One GPU that is a guest's, with all of its IOMMU group, or a part of a GPU."""

    name: str  # for the log: its PCI address, or the identifier of a mediated device
    folders: tuple[Path, ...]  # its functions in sysfs, by their real paths; the GPU first
    node: Path  # the device node of its IOMMU group
    bar_mib: int = 0  # its largest memory window


def node_of(group: int, dev: Path = Path("/dev")) -> Path:
    """The device node of an IOMMU group."""
    return dev / "vfio" / str(group)


def describe_passed(gpu: Gpu, *, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Passed:
    """What of this GPU a guest is given. Raises OSError where it has just gone."""
    if gpu.iommu_group is None:
        raise AssertionError("It was looked at before: find_obstacles.")
    addresses = (gpu.address, *(companion.address for companion in gpu.companions))
    return Passed(
        name=gpu.address,
        folders=tuple((sysfs / "bus/pci/devices" / address).resolve(strict=True) for address in addresses),
        node=node_of(gpu.iommu_group, dev),
        bar_mib=gpu.bar_mib,
    )


def find_obstacles(gpu: Gpu, *, dev: Path = Path("/dev")) -> list[Obstacle]:
    """What keeps a GPU from being passed on to anybody; empty where nothing does."""
    return list(_find_obstacles(gpu, dev))


def _find_obstacles(gpu: Gpu, dev: Path) -> Iterator[Obstacle]:
    if gpu.iommu_group is None:
        yield Obstacle(
            text="It is in no IOMMU group: the host's IOMMU is off.",
            hint="Switch it on in the firmware (VT-d, AMD-Vi) and on the kernel's command line: "
            "intel_iommu=on, or amd_iommu=on; iommu=pt.",
        )
        return
    if others := [companion.address for companion in gpu.companions if companion.is_gpu]:
        yield Obstacle(
            text=f"It shares the IOMMU group {gpu.iommu_group} with the GPU {' and '.join(others)}.",
            hint="Only a whole group can be given away: put one of them into another slot.",
        )
    if len(gpu.companions) >= _MAX_FUNCTIONS:
        yield Obstacle(
            text=f"Its IOMMU group {gpu.iommu_group} has {len(gpu.companions) + 1} devices.",
            hint=f"Only {_MAX_FUNCTIONS} can be passed on as one: put the GPU into another slot.",
        )
    is_bound = True
    for address, driver in (
        (gpu.address, gpu.driver),
        *((one.address, one.driver) for one in gpu.companions),
    ):
        if driver != DRIVER:
            is_bound = False
            has = f"is bound to {driver}" if driver else "has no driver"
            yield Obstacle(
                text=f"{address} {has}, not {DRIVER}.",
                hint=f"Bind it at each boot: 'driverctl set-override {address} {DRIVER}', "
                f"or options {DRIVER} ids=VENDOR:DEVICE in /etc/modprobe.d.",
            )
    # Nobody needs the node before there is something behind it.
    if is_bound and not node_of(gpu.iommu_group, dev).exists():
        yield Obstacle(
            text=f"There is no {node_of(gpu.iommu_group, dev)}.",
            hint=f"Load the modules: {DRIVER} and vfio_iommu_type1 in /etc/modules-load.d.",
        )


def find_lack_of_rights(nodes: Iterable[Path]) -> list[Obstacle]:
    """Which device nodes our own account may not open."""
    return [
        Obstacle(
            text=f"This account may not open {node}.",
            hint='Give it to the sessions\' group by a udev rule: SUBSYSTEM=="vfio", GROUP="qemuspawner", '
            'MODE="0660".',
        )
        for node in nodes
        if node.exists() and not os.access(node, os.R_OK | os.W_OK)
    ]


def needed_lock_mib(memory_mib: int) -> int:
    """How much memory a VM with a GPU locks, at most: the device writes to the guest's at any moment."""
    return memory_mib + _LOCKED_BESIDE_MIB


def lockable_mib() -> int | None:
    """How much memory our programs may lock; None where nothing limits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if hard == resource.RLIM_INFINITY else hard >> 20


def allow_locking(memory_mib: int) -> Obstacle | None:
    """Let QEMU, which inherits our limits, lock a guest's memory; why it cannot."""
    needed_mib, most_mib = needed_lock_mib(memory_mib), lockable_mib()
    if most_mib is not None and most_mib < needed_mib:
        return Obstacle(
            text=f"A guest with {memory_mib} MiB needs {needed_mib} MiB locked; {most_mib} MiB are allowed.",
            hint="Set LimitMEMLOCK=infinity in the hub's systemd unit: sessions inherit it.",
        )
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (needed_mib << 20 if most_mib is not None else hard, hard))
    return None
