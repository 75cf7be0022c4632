"""GPUs as a made-up /sys has them."""

from pathlib import Path

import pytest

from qemuspawner.gpus import choose_allowed, count_models, find_gpus

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


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    add_device(tmp_path, "0000:65:00.0", "0x030200", "0x10de", "0x20b5", driver="vfio-pci", iommu_group=17)
    add_device(tmp_path, "0000:66:00.0", "0x030200", "0x10de", "0x20b5", driver="nvidia")
    add_device(tmp_path, "0000:67:00.0", "0x038000", "0x1002", "0x740f", driver="amdgpu", memory=64 << 30)
    # A network card, and a folder that is no device.
    add_device(tmp_path, "0000:68:00.0", "0x020000", "0x8086", "0x1572")
    (tmp_path / "bus/pci/devices/odd").mkdir()
    return tmp_path


@pytest.fixture
def pci_ids(tmp_path: Path) -> Path:
    file = tmp_path / "pci.ids"
    file.write_text(PCI_IDS)
    return file


def add_device(
    sysfs: Path,
    address: str,
    kind: str,
    vendor: str,
    device: str,
    *,
    driver: str = "",
    iommu_group: int | None = None,
    memory: int = 0,
) -> None:
    folder = sysfs / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    for name, value in {"class": kind, "vendor": vendor, "device": device}.items():
        (folder / name).write_text(f"{value}\n")
    if driver:
        (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
    if iommu_group is not None:
        (folder / "iommu_group").symlink_to(f"../../../kernel/iommu_groups/{iommu_group}")
    if memory:
        (folder / "mem_info_vram_total").write_text(f"{memory}\n")


def test_gpus_are_found_with_what_the_kernel_says_of_them(sysfs: Path, pci_ids: Path) -> None:
    first, second, third = find_gpus(sysfs, pci_ids=[sysfs / "nowhere", pci_ids])

    assert (first.address, first.vendor, first.model) == (
        "0000:65:00.0",
        "NVIDIA Corporation",
        "A100 PCIe 80GB",
    )
    assert (first.driver, first.iommu_group, first.memory_mib) == ("vfio-pci", 17, None)
    assert (second.driver, second.iommu_group) == ("nvidia", None)
    assert (third.model, third.memory_mib) == ("Instinct MI210", 65536)


def test_what_nobody_has_a_name_for_is_called_by_its_ids(sysfs: Path) -> None:
    models = [gpu.model for gpu in find_gpus(sysfs, pci_ids=[])]

    assert models == ["10de:20b5", "10de:20b5", "1002:740f"]


def test_what_vanishes_meanwhile_is_left_out(sysfs: Path, pci_ids: Path) -> None:
    (sysfs / "bus/pci/devices/0000:65:00.0/vendor").unlink()

    assert [gpu.address for gpu in find_gpus(sysfs, pci_ids=[pci_ids])] == ["0000:66:00.0", "0000:67:00.0"]


def test_a_host_without_a_pci_bus_has_none(tmp_path: Path) -> None:
    assert find_gpus(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("allowed", "models"),
    [
        ([], {}),
        (["0000:66:00.0"], {"A100 PCIe 80GB": 1}),
        (["a100 pcie 80gb"], {"A100 PCIe 80GB": 2}),
        (["Instinct MI210", "0000:65:00.0"], {"A100 PCIe 80GB": 1, "Instinct MI210": 1}),
        (["A100"], {}),
    ],
)
def test_only_what_is_allowed_by_address_or_model_is_given(
    sysfs: Path, pci_ids: Path, allowed: list[str], models: dict[str, int]
) -> None:
    assert count_models(choose_allowed(find_gpus(sysfs, pci_ids=[pci_ids]), allowed)) == models
