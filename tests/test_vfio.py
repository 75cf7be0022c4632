"""What keeps a GPU from a guest, on a made-up host."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from fake_sysfs import FakeHost

from qemuspawner import vfio
from qemuspawner.gpus import find_gpus
from qemuspawner.vfio import allow_locking, describe_passed, find_lack_of_rights, find_obstacles

GPU, SOUND = "0000:65:00.0", "0000:65:00.1"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def obstacles(host: FakeHost) -> list[str]:
    gpu = next(gpu for gpu in find_gpus(host.sysfs) if gpu.address == GPU)
    return [obstacle.text for obstacle in find_obstacles(gpu, dev=host.dev)]


def test_a_group_that_is_bound_as_a_whole_can_be_passed_on(host: FakeHost) -> None:
    host.add(GPU, group=17, bars=(0, 1 << 28))
    host.add(SOUND, "0x040300", group=17)
    host.add("0000:64:01.0", "0x060400", driver="pcieport", group=17)

    assert obstacles(host) == []
    passed = describe_passed(find_gpus(host.sysfs)[0], sysfs=host.sysfs, dev=host.dev)
    assert [folder.name for folder in passed.folders] == [GPU, SOUND]
    assert all(folder.is_dir() and not folder.is_symlink() for folder in passed.folders)
    assert (passed.node, passed.bar_mib) == (host.dev / "vfio/17", 256)


@pytest.mark.parametrize(
    ("devices", "texts"),
    [
        ({GPU: {}}, ["It is in no IOMMU group: the host's IOMMU is off."]),
        ({GPU: {"group": 3, "driver": "nvidia"}}, [f"{GPU} is bound to nvidia, not vfio-pci."]),
        ({GPU: {"group": 3, "driver": ""}}, [f"{GPU} has no driver, not vfio-pci."]),
        (
            {GPU: {"group": 3}, SOUND: {"kind": "0x040300", "group": 3, "driver": "snd_hda_intel"}},
            [f"{SOUND} is bound to snd_hda_intel, not vfio-pci."],
        ),
        (
            {GPU: {"group": 3}, "0000:66:00.0": {"group": 3}},
            ["It shares the IOMMU group 3 with the GPU 0000:66:00.0."],
        ),
        (
            {GPU: {"group": 3}, **{f"0000:65:00.{n}": {"kind": "0x0c0330", "group": 3} for n in range(1, 8)}},
            [],
        ),
        (
            {GPU: {"group": 3}, **{f"0000:67:0{n}.0": {"kind": "0x0c0330", "group": 3} for n in range(8)}},
            ["Its IOMMU group 3 has 9 devices."],
        ),
    ],
)
def test_everything_that_is_missing_is_said(
    host: FakeHost, devices: dict[str, dict[str, Any]], texts: list[str]
) -> None:
    for address, keys in devices.items():
        host.add(address, **keys)

    assert obstacles(host) == texts


def test_a_group_without_a_device_node_is_no_ones(host: FakeHost) -> None:
    host.add(GPU, group=17, node=False)

    assert obstacles(host) == [f"There is no {host.dev}/vfio/17."]


def test_an_account_is_told_what_it_may_not_open(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add(GPU, group=17)
    node = host.dev / "vfio/17"
    assert find_lack_of_rights([node, host.dev / "vfio/18"]) == []

    monkeypatch.setattr(os, "access", lambda path, mode: False)

    (lack,) = find_lack_of_rights([node, host.dev / "vfio/18"])
    assert lack.text == f"This account may not open {node}."
    assert 'SUBSYSTEM=="vfio"' in lack.hint


@pytest.mark.parametrize(
    ("hard", "is_allowed", "soft"),
    [
        (resource.RLIM_INFINITY, True, resource.RLIM_INFINITY),
        (8 << 30, True, 3 << 30),
        (3 << 30, True, 3 << 30),
        ((3 << 30) - (1 << 20), False, None),
    ],
)
def test_memory_may_be_locked_as_far_as_the_limit_goes(
    monkeypatch: pytest.MonkeyPatch, hard: int, is_allowed: bool, soft: int | None
) -> None:
    """A guest of 2 GiB needs one more for what is beside it."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(vfio.resource, "getrlimit", lambda _kind: (0, hard))
    monkeypatch.setattr(vfio.resource, "setrlimit", lambda _kind, both: limits.append(both))

    obstacle = allow_locking(2048)

    assert (obstacle is None) == is_allowed
    assert limits == ([(soft, hard)] if is_allowed else [])
    if obstacle is not None:
        assert obstacle.text == "A guest with 2048 MiB needs 3072 MiB locked; 3071 MiB are allowed."
