"""`qemuspawner gpu`, on a made-up host."""

import json
from functools import partial
from pathlib import Path

import pytest
from fake_sysfs import FakeHost

from qemuspawner.cli import doctor, gpu, main
from qemuspawner.gpus import find_gpus
from qemuspawner.mediated import find_types
from qemuspawner.vfio import find_obstacles

GPU, OTHER = "0000:65:00.0", "0000:66:00.0"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    host = FakeHost(tmp_path)
    monkeypatch.setattr(gpu, "find_gpus", partial(find_gpus, host.sysfs, pci_ids=[host.pci_ids]))
    monkeypatch.setattr(gpu, "find_types", partial(find_types, host.sysfs))
    monkeypatch.setattr(gpu, "find_obstacles", partial(find_obstacles, dev=host.dev))
    monkeypatch.setattr(gpu, "lockable_mib", lambda: None)
    return host


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["gpu", *arguments])
    return int(exit_.value.code or 0)


def test_the_list_says_what_there_is_and_what_desktops_can_have(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.add(GPU, group=17, bars=(16 << 20, 128 << 30), numa_node=1)
    host.add("0000:65:00.1", "0x040300", group=17)
    host.add(OTHER, "0x038000", "0x1002", "0x740f", driver="amdgpu", memory=64 << 30)
    host.add_type("0000:70:00.0", "nvidia-222", name="GRID T4-1Q", free=3)

    code = run("list")

    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert code == 0
    assert cells[1][:5] == [GPU, "A100 PCIe 80GB", "NVIDIA Corporation", "window 128 GiB", "17"]
    assert cells[1][5:] == ["0000:65:00.1", "1", "vfio-pci", "yes"]
    assert cells[2][3:] == ["64 GiB", "-", "-", "-", "amdgpu", "no"]
    assert cells[-1] == ["0000:70:00.0", "GRID T4-1Q", "nvidia-222", "0", "3"]


def test_programs_are_told_why_not(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    host.add(GPU, group=17, driver="nvidia")

    run("list", "--json")

    (shown,) = json.loads(capsys.readouterr().out)["gpus"]
    assert (shown["address"], shown["iommu_group"], shown["driver"]) == (GPU, 17, "nvidia")
    assert shown["obstacles"] == [f"{GPU} is bound to nvidia, not vfio-pci."]


def test_the_check_says_each_obstacle_with_what_to_do(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(GPU, group=17)
    host.add(OTHER, "0x038000", "0x1002", "0x740f", driver="amdgpu", group=18)
    monkeypatch.setattr(gpu, "lockable_mib", lambda: 8)

    code = run("check")

    said = capsys.readouterr().out
    assert code == 1
    assert f"ok       {GPU} (A100 PCIe 80GB): It can be passed on." in said
    assert f"error    {OTHER} (Instinct MI210): {OTHER} is bound to amdgpu, not vfio-pci." in said
    assert f"driverctl set-override {OTHER} vfio-pci" in said
    assert "error    8 MiB of memory may be locked" in said
    assert "LimitMEMLOCK=infinity" in said


def test_programs_are_told_what_the_check_finds(
    host: FakeHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add(GPU, group=17, can_reset=False)
    host.add(OTHER, "0x038000", "0x1002", "0x740f", driver="amdgpu", group=18)
    monkeypatch.setattr(gpu, "lockable_mib", lambda: 8)

    code = run("check", "--json")

    findings = json.loads(capsys.readouterr().out)
    assert code == 1
    assert [(found["level"], found["gpu"]) for found in findings] == [
        ("error", ""),
        ("ok", GPU),
        ("warning", GPU),
        ("error", OTHER),
    ]
    assert findings[1]["text"] == f"{GPU} (A100 PCIe 80GB): It can be passed on."
    assert all(found["hint"] for found in findings if found["level"] != "ok")


def test_a_host_that_is_ready_passes_and_is_warned(
    host: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    host.add(GPU, group=17, can_reset=False, bars=(256 << 30,))

    code = run("check")

    said = capsys.readouterr().out
    assert code == 0
    assert f"warning  {GPU} (A100 PCIe 80GB): The kernel cannot reset it." in said
    assert "Its memory window of 256 GiB fits no desktop that runs already." in said


def test_a_host_without_gpus_says_so(host: FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    assert (run("list"), run("check")) == (0, 1)
    lists, heading, checks, hint = capsys.readouterr().out.splitlines()
    assert (lists, checks) == ("This host has no GPUs.", "error    This host has no GPUs.")
    assert heading.startswith("For the account ")
    assert "lspci" in hint


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("vfio-pci", "1 of 1 GPUs can be passed on to desktops."),
        ("nvidia", "No GPU is passed on to desktops."),
    ],
)
def test_the_doctor_says_whether_desktops_can_have_gpus(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, driver: str, text: str
) -> None:
    """Neither is an error: a host needs none."""
    monkeypatch.setattr(doctor, "find_gpus", partial(find_gpus, host.sysfs))
    monkeypatch.setattr(doctor, "find_obstacles", partial(find_obstacles, dev=host.dev))
    assert list(doctor._find_in_gpus()) == []

    host.add(GPU, group=17, driver=driver)

    (finding,) = doctor._find_in_gpus()
    assert (finding.level, finding.text) == ("ok", text)
