"""GPUs as a made-up /sys has them."""

from pathlib import Path

import pytest
from fake_sysfs import FakeHost

from qemuspawner.gpus import Gpu, choose_allowed, find_gpus

A100, OTHER_A100, MI210 = "0000:65:00.0", "0000:66:00.0", "0000:67:00.0"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    host.add(A100, group=17, bars=(16 << 20, 0, 128 << 30), numa_node=1)
    host.add("0000:65:00.1", "0x040300", driver="snd_hda_intel", group=17)
    host.add("0000:64:01.0", "0x060400", driver="pcieport", group=17)
    host.add(OTHER_A100, driver="nvidia", can_reset=False)
    host.add(MI210, "0x038000", "0x1002", "0x740f", driver="amdgpu", memory=64 << 30)
    # A network card, and a folder that is no device.
    host.add("0000:68:00.0", "0x020000", "0x8086", "0x1572")
    (host.sysfs / "bus/pci/devices/odd").mkdir()
    return host


def find(host: FakeHost) -> list[Gpu]:
    return find_gpus(host.sysfs, pci_ids=[host.sysfs / "nowhere", host.pci_ids])


def test_gpus_are_found_with_what_the_kernel_says_of_them(host: FakeHost) -> None:
    first, second, third = find(host)

    assert (first.address, first.vendor, first.model) == (A100, "NVIDIA Corporation", "A100 PCIe 80GB")
    assert (first.driver, first.iommu_group, first.memory_mib) == ("vfio-pci", 17, None)
    assert (second.driver, second.iommu_group) == ("nvidia", None)
    assert (third.model, third.memory_mib) == ("Instinct MI210", 65536)


def test_the_largest_memory_window_counts_and_no_rom(host: FakeHost) -> None:
    assert [gpu.bar_mib for gpu in find(host)] == [128 << 10, 0, 0]


def test_what_else_is_in_its_iommu_group_belongs_to_it_but_no_bridge(host: FakeHost) -> None:
    first, second, _ = find(host)

    assert [(one.address, one.driver, one.is_gpu) for one in first.companions] == [
        ("0000:65:00.1", "snd_hda_intel", False)
    ]
    assert second.companions == ()


def test_where_it_is_and_whether_it_can_be_reset_is_known(host: FakeHost) -> None:
    assert [(gpu.numa_node, gpu.can_reset) for gpu in find(host)] == [(1, True), (None, False), (None, True)]


def test_what_nobody_has_a_name_for_is_called_by_its_ids(host: FakeHost) -> None:
    models = [gpu.model for gpu in find_gpus(host.sysfs, pci_ids=[])]

    assert models == ["10de:20b5", "10de:20b5", "1002:740f"]


@pytest.mark.parametrize("file", ["vendor", "device", "class"])
def test_what_vanishes_meanwhile_is_left_out(host: FakeHost, file: str) -> None:
    (host.sysfs / "bus/pci/devices" / A100 / file).unlink()

    assert [gpu.address for gpu in find(host)] == [OTHER_A100, MI210]


@pytest.mark.parametrize("file", ["resource", "numa_node", "reset_method", "iommu_group", "driver"])
def test_what_cannot_be_read_of_one_is_unknown(host: FakeHost, file: str) -> None:
    (host.sysfs / "bus/pci/devices" / A100 / file).unlink()

    assert [gpu.address for gpu in find(host)] == [A100, OTHER_A100, MI210]


def test_nonsense_in_the_list_of_windows_is_passed_over(host: FakeHost) -> None:
    (host.sysfs / "bus/pci/devices" / A100 / "resource").write_text("x y z\n0x0\n0x0 0xfffff 0x200\n")

    assert find(host)[0].bar_mib == 1


def test_a_host_without_a_pci_bus_has_none(tmp_path: Path) -> None:
    assert find_gpus(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("allowed", "denied", "addresses"),
    [
        ([], [], []),
        (["0000:66:00.0"], [], [OTHER_A100]),
        (["a100 pcie 80gb"], [], [A100, OTHER_A100]),
        (["Instinct MI210", "0000:65:00.0"], [], [A100, MI210]),
        (["A100"], [], []),
        (["a100*"], [A100], [OTHER_A100]),
        (["*"], ["A100*"], [MI210]),
        (["*"], [A100, "Instinct MI210"], [OTHER_A100]),
        (["*"], ["*"], []),
    ],
)
def test_only_what_is_allowed_and_not_denied_by_address_or_model_is_given(
    host: FakeHost, allowed: list[str], denied: list[str], addresses: list[str]
) -> None:
    assert [gpu.address for gpu in choose_allowed(find(host), allowed, denied)] == addresses
