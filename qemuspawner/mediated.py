"""Parts of GPUs that their driver makes on demand: NVIDIA's vGPU, also of MIG instances, and Intel's GVT-g.

The kernel calls them mediated devices. A GPU offers types; one of a type is made by writing a UUID into its
`create`, and is gone when 1 is written into the device's `remove`.

Source: the kernel's Documentation/driver-api/vfio-mediated-device.rst.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.gpus import is_named
from qemuspawner.vfio import Passed, node_of

_PCI_API = "vfio-pci"


@dataclass(frozen=True, kw_only=True)
class MediatedType:
    """What a GPU can be divided into."""

    parent: str  # the GPU's PCI address
    id: str  # nvidia-222
    name: str  # GRID T4-1Q: its model, as far as users are concerned
    free: int  # how many more can be made now
    made: int  # how many there are

    @property
    def device(self) -> str:
        """As a session is told what it may take."""
        return f"{self.parent}/{self.id}"


def find_types(sysfs: Path = Path("/sys")) -> list[MediatedType]:
    """All types of all GPUs that can be attached as PCI devices; empty where there are none."""
    return [
        MediatedType(
            parent=folder.parent.parent.name,
            id=folder.name,
            name=_read(folder / "name") or folder.name,
            free=int(free) if (free := _read(folder / "available_instances")).isdecimal() else 0,
            made=len(list((folder / "devices").glob("*"))),
        )
        for folder in sorted((sysfs / "class/mdev_bus").glob("*/mdev_supported_types/*"))
        if _read(folder / "device_api") == _PCI_API
    ]


def choose_allowed_types(
    types: Iterable[MediatedType], allowed: Collection[str], denied: Collection[str] = ()
) -> list[MediatedType]:
    """Those whose GPU's address or whose name is in `allowed` and not in `denied`, also by patterns."""
    return [
        one
        for one in types
        if is_named(allowed, one.parent, one.name) and not is_named(denied, one.parent, one.name)
    ]


def make_device(device: str, name: str, *, sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> Passed:
    """Make one of the type "ADDRESS/TYPE"; `name` is a UUID of its own.

    Raises:
        OSError: No more can be made, or this account may not.
    """
    parent, _, kind = device.partition("/")
    (sysfs / "class/mdev_bus" / parent / "mdev_supported_types" / kind / "create").write_text(name)
    folder = sysfs / "bus/mdev/devices" / name
    group = (folder / "iommu_group").readlink().name
    return Passed(name=name, folders=(folder.resolve(),), node=node_of(int(group), dev))


def remove_device(name: str, *, sysfs: Path = Path("/sys")) -> None:
    """Raises OSError where it is in use, or this account may not."""
    (sysfs / "bus/mdev/devices" / name / "remove").write_text("1")


def find_devices(sysfs: Path = Path("/sys")) -> list[str]:
    """The UUIDs of those that there are, whoever made them."""
    return [folder.name for folder in (sysfs / "bus/mdev/devices").glob("*")]


def _read(file: Path) -> str:
    """A value of sysfs; "" where there is none, or the device has just gone."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
