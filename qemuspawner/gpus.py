"""The GPUs of this host, as the kernel lists them below /sys; looking needs no rights and changes nothing."""

import contextlib
import functools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Where distributions put the names of PCI devices (Debian, Fedora).
_PCI_IDS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
# Display controllers: VGA compatible, 3D, and other ones. Source: PCI Code and ID Assignment, 1.4.
_DISPLAY = "0x03"
ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.ASCII)
# "GA102 [GeForce RTX 3090]": what people call it stands in brackets, after the chip.
_BRACKETS = re.compile(r"\[([^\]]+)\]\s*$")
_ID = re.compile(r"(\t?)([0-9a-f]{4})  (.+)")


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
            iommu_group=int(group) if (group := _link(folder / "iommu_group")).isdecimal() else None,
            memory_mib=_memory_mib(folder),
        )
        for folder, vendor, device in found
    ]


def choose_allowed(gpus: Iterable[Gpu], allowed: Collection[str]) -> list[Gpu]:
    """Those whose address or model is in `allowed`; capitals do not count."""
    wanted = {name.lower() for name in allowed}
    return [gpu for gpu in gpus if gpu.address in wanted or gpu.model.lower() in wanted]


def count_models(gpus: Iterable[Gpu]) -> dict[str, int]:
    """How many there are of each model."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[gpu.model] = counts.get(gpu.model, 0) + 1
    return counts


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
