"""The GPUs of this host, as the kernel lists them below /sys; looking needs no rights and changes nothing."""

import contextlib
import fnmatch
import functools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Where distributions put the names of PCI devices (Debian, Fedora).
_PCI_IDS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
# Display controllers: VGA compatible, 3D, and other ones. Source: PCI Code and ID Assignment, 1.4.
_DISPLAY = "0x03"
# Bridges are in the IOMMU groups of what is behind them, and stay the host's.
_BRIDGE = "0x06"
# A device has six windows (BARs); its ROM and those of bridges follow. Source: linux/pci.h, linux/ioport.h.
_BARS = 6
_IS_MEMORY = 0x200
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
# "GA102 [GeForce RTX 3090]": what people call it stands in brackets, after the chip.
_BRACKETS = re.compile(r"\[([^\]]+)\]\s*$")
_ID = re.compile(r"(\t?)([0-9a-f]{4})  (.+)")


@dataclass(frozen=True, kw_only=True)
class Companion:
    """What else is in a GPU's IOMMU group, such as its sound: it goes where the GPU goes."""

    address: str
    driver: str = ""  # "" where none has it
    is_gpu: bool = False


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A display controller on the PCI bus."""

    address: str  # 0000:65:00.0
    vendor_id: str  # 10de
    device_id: str
    vendor: str  # its id where nothing on this host knows the name
    model: str  # "VENDOR:DEVICE" likewise
    driver: str = ""  # "" where none has it
    iommu_group: int | None = None  # None where the host's IOMMU is off
    memory_mib: int | None = None  # None where its driver does not tell
    bar_mib: int = 0  # the largest of its memory windows (BARs): all of its memory, or a part
    numa_node: int | None = None  # None where the host has one, or does not tell
    can_reset: bool = False  # the kernel can: else the next guest finds what the last one left in it
    companions: tuple[Companion, ...] = ()


def find_gpus(sysfs: Path = Path("/sys"), *, pci_ids: Iterable[Path] = _PCI_IDS) -> list[Gpu]:
    """All GPUs by their addresses, also those that are built in; empty where there is no PCI bus.

    `pci_ids` are files with names of devices, of which the first that exists counts.
    """
    found = [
        (folder, vendor.removeprefix("0x"), device.removeprefix("0x"))
        for folder in _devices(sysfs)
        if (_read(folder / "class") or "").startswith(_DISPLAY)
        and (vendor := _read(folder / "vendor"))
        and (device := _read(folder / "device"))
    ]
    if not found:
        return []
    names: dict[tuple[str, str], str] = {}
    for file in pci_ids:
        with contextlib.suppress(OSError):
            names = _find_names(file, frozenset((vendor, device) for _, vendor, device in found))
            break
    return [
        Gpu(
            address=folder.name,
            vendor_id=vendor,
            device_id=device,
            vendor=names.get((vendor, ""), vendor),
            model=names.get((vendor, device), f"{vendor}:{device}"),
            driver=_link(folder / "driver"),
            iommu_group=_number(_link(folder / "iommu_group")),
            memory_mib=_memory_mib(folder),
            bar_mib=_bar_mib(folder),
            numa_node=_number(_read(folder / "numa_node")),
            can_reset=bool(_read(folder / "reset_method")),
            companions=_find_companions(folder, sysfs),
        )
        for folder, vendor, device in found
    ]


def choose_allowed(gpus: Iterable[Gpu], allowed: Collection[str], denied: Collection[str] = ()) -> list[Gpu]:
    """Those whose address or model is in `allowed` and not in `denied`, also by patterns such as "*"."""
    return [
        gpu
        for gpu in gpus
        if is_named(allowed, gpu.address, gpu.model) and not is_named(denied, gpu.address, gpu.model)
    ]


def is_named(patterns: Iterable[str], *names: str) -> bool:
    """Whether one of `names` fits one of `patterns`; capitals do not count."""
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns for name in names)


def _devices(sysfs: Path) -> list[Path]:
    try:
        return sorted(
            folder for folder in (sysfs / "bus/pci/devices").iterdir() if ADDRESS.fullmatch(folder.name)
        )
    except OSError:
        return []


def _read(file: Path) -> str | None:
    """A value of sysfs; None where there is none, or the device has just gone."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _link(link: Path) -> str:
    """The last part of where a link of sysfs leads; "" where there is none."""
    try:
        return link.readlink().name
    except OSError:
        return ""


def _number(text: str | None) -> int | None:
    """None for anything else, also for the kernel's "-1"."""
    return int(text) if text and text.isdecimal() else None


def _bar_mib(folder: Path) -> int:
    """Each line of `resource` is a window: first and last byte, and flags."""
    largest = 0
    for line in (_read(folder / "resource") or "").splitlines()[:_BARS]:
        with contextlib.suppress(ValueError):
            first, last, flags = (int(word, 16) for word in line.split())
            if flags & _IS_MEMORY and last > first:
                largest = max(largest, last - first + 1)
    return largest >> 20


def _find_companions(folder: Path, sysfs: Path) -> tuple[Companion, ...]:
    group = _link(folder / "iommu_group")
    try:
        members = sorted(
            entry.name for entry in (sysfs / "kernel/iommu_groups" / group / "devices").iterdir()
        )
    except OSError:
        return ()
    found = []
    for address in members:
        device = sysfs / "bus/pci/devices" / address
        kind = _read(device / "class") or ""
        if address != folder.name and not kind.startswith(_BRIDGE):
            is_gpu = kind.startswith(_DISPLAY)
            found.append(Companion(address=address, driver=_link(device / "driver"), is_gpu=is_gpu))
    return tuple(found)


def _memory_mib(folder: Path) -> int | None:
    """As amdgpu tells it. Other drivers have nothing in sysfs, and a BAR may be smaller than the memory."""
    size = _read(folder / "mem_info_vram_total")
    return int(size) >> 20 if size and size.isdecimal() else None


@functools.lru_cache(maxsize=4)
def _find_names(file: Path, wanted: frozenset[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Names of these vendors and devices; a vendor's has the device "". The file has 1.5 MB.

    Source: the comment at the head of pci.ids.
    """
    vendors = {vendor for vendor, _ in wanted}
    names: dict[tuple[str, str], str] = {}
    vendor = ""
    for tab, number, name in _entries(file):
        if not tab:
            vendor = number
            if vendor in vendors:
                names[vendor, ""] = name
        elif (vendor, number) in wanted:
            common = _BRACKETS.search(name)
            names[vendor, number] = common[1] if common else name
    return names


def _entries(file: Path) -> Iterator[tuple[str, str, str]]:
    with file.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("C "):
                return  # classes come after all vendors
            if match := _ID.fullmatch(line.rstrip("\n")):
                yield match[1], match[2], match[3].strip()
