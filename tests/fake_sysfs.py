"""A made-up /sys and /dev with PCI devices, as far as GPUs go."""

from pathlib import Path

PCI_IDS = """\
# Comment
10de  NVIDIA Corporation
\t20b5  GA100 [A100 PCIe 80GB]
\t\t10de 1533  Subsystem [Not This]
\t2204  GA102 [GeForce RTX 3090]
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t740f  Aldebaran/MI200 [Instinct MI210]
1234  Technical Corp.
\t1111  QEMU Virtual Video Controller
C 03  Display controller
\t00  VGA compatible controller
"""


class FakeHost:
    """Grows by `add`."""

    def __init__(self, root: Path) -> None:
        self.sysfs, self.dev, self.pci_ids = root / "sys", root / "dev", root / "pci.ids"
        (self.sysfs / "bus/pci/devices").mkdir(parents=True)
        (self.dev / "vfio").mkdir(parents=True)
        self.pci_ids.write_text(PCI_IDS)

    def add(
        self,
        address: str,
        kind: str = "0x030200",
        vendor: str = "0x10de",
        device: str = "0x20b5",
        *,
        driver: str = "vfio-pci",
        group: int | None = None,
        node: bool = True,
        memory: int = 0,
        bars: tuple[int, ...] = (),
        numa_node: int = -1,
        can_reset: bool = True,
    ) -> Path:
        """A device in this IOMMU group, which has a device node; its folder."""
        folder = self.sysfs / "devices/pci0000:00" / address
        folder.mkdir(parents=True)
        for name, value in {
            "class": kind,
            "vendor": vendor,
            "device": device,
            "numa_node": numa_node,
        }.items():
            (folder / name).write_text(f"{value}\n")
        windows = [(0xE0000000, 0xE0000000 + size - 1, 0x140204) if size else (0, 0, 0) for size in bars]
        # As many lines as the kernel's: the ROM follows the six windows, and is no memory.
        windows += [(0, 0, 0)] * (6 - len(windows)) + [(0xF0000000, 0xF0000000 + (1 << 40), 0x46200)]
        (folder / "resource").write_text(
            "".join(map("0x{0[0]:016x} 0x{0[1]:016x} 0x{0[2]:016x}\n".format, windows))
        )
        if driver:
            (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if group is not None:
            members = self.sysfs / "kernel/iommu_groups" / str(group) / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(folder)
            (folder / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
            if node:
                (self.dev / "vfio" / str(group)).touch()
        if memory:
            (folder / "mem_info_vram_total").write_text(f"{memory}\n")
        if can_reset:
            (folder / "reset_method").write_text("flr bus\n")
        (self.sysfs / "bus/pci/devices" / address).symlink_to(folder)
        return folder

    def add_type(self, parent: str, kind: str, *, name: str, free: int, api: str = "vfio-pci") -> Path:
        """A type that the GPU `parent` can be divided into; its folder."""
        folder = self.sysfs / "class/mdev_bus" / parent / "mdev_supported_types" / kind
        (folder / "devices").mkdir(parents=True)
        for file, value in {
            "name": name,
            "available_instances": free,
            "device_api": api,
            "create": "",
        }.items():
            (folder / file).write_text(f"{value}\n")
        return folder

    def add_mediated(self, uuid: str, *, group: int) -> Path:
        """A mediated device that the kernel made; its folder."""
        folder = self.sysfs / "bus/mdev/devices" / uuid
        folder.mkdir(parents=True)
        (folder / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{group}")
        (folder / "remove").touch()
        (self.dev / "vfio" / str(group)).touch()
        return folder
