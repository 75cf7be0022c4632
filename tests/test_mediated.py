"""Parts of GPUs, on a made-up host."""

from pathlib import Path

import pytest
from fake_sysfs import FakeHost

from qemuspawner.mediated import choose_allowed_types, find_types

GPU = "0000:65:00.0"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    small = host.add_type(GPU, "nvidia-222", name="GRID T4-1Q", free=14)
    for uuid in ("one", "two"):
        (small / "devices" / uuid).symlink_to("../../..")
    host.add_type(GPU, "nvidia-230", name="GRID T4-16Q", free=0)
    # Not for PCI: of a mainframe.
    host.add_type(GPU, "vfio_ccw-io", name="I/O", free=1, api="vfio-ccw")
    return host


def test_types_are_found_with_how_many_there_are_and_can_be(host: FakeHost) -> None:
    found = find_types(host.sysfs)

    assert [(one.name, one.device, one.free, one.made) for one in found] == [
        ("GRID T4-1Q", f"{GPU}/nvidia-222", 14, 2),
        ("GRID T4-16Q", f"{GPU}/nvidia-230", 0, 0),
    ]


def test_a_type_that_vanishes_meanwhile_has_nothing_left(host: FakeHost) -> None:
    folder = host.sysfs / "class/mdev_bus" / GPU / "mdev_supported_types/nvidia-222"
    (folder / "available_instances").unlink()
    (folder / "name").unlink()

    (first, _) = find_types(host.sysfs)

    assert (first.name, first.free) == ("nvidia-222", 0)


def test_a_host_without_such_drivers_has_none(tmp_path: Path) -> None:
    assert find_types(tmp_path) == []


@pytest.mark.parametrize(
    ("allowed", "denied", "names"),
    [
        ([], [], []),
        ([GPU], [], ["GRID T4-1Q", "GRID T4-16Q"]),
        (["grid t4-1q"], [], ["GRID T4-1Q"]),
        (["*"], ["*-16Q"], ["GRID T4-1Q"]),
        (["*"], [GPU], []),
    ],
)
def test_only_what_is_allowed_and_not_denied_is_given(
    host: FakeHost, allowed: list[str], denied: list[str], names: list[str]
) -> None:
    assert [one.name for one in choose_allowed_types(find_types(host.sysfs), allowed, denied)] == names
