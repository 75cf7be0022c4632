"""The walls around a QEMU, as they are found; that no guest runs without them is for proof/test_s10_walls."""

import subprocess
from pathlib import Path

import guests
import pytest
import vms

from qemuspawner.qemu.host import find_qemu
from qemuspawner.qemu.walls import ALWAYS, JAIL, find_walls, try_walls
from qemuspawner.spec import SessionSpec


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    disk = guests.make_disk(tmp_path / "disk")
    return vms.make_spec(tmp_path, vms.make_machine(image={"file": str(disk), "format": "raw"}))


async def test_without_the_jail_the_filter_and_the_limits_stay(spec: SessionSpec, tmp_path: Path) -> None:
    without = vms.make_spec(tmp_path, spec.machine, jail=False)

    async with vms.running_guest(without) as (guest, _):
        assert set(ALWAYS) <= set(guest.walls)
        assert not {"files", "network", "processes"} & set(guest.walls)


async def test_qemu_sees_its_own_files_and_no_program(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, prepared):
        root = Path(f"/proc/{guest.qemu.pid}/root")
        top = {path.name for path in root.iterdir()}
        programs = [
            path.name for folder in ("usr/bin", "usr/local/bin") for path in (root / folder).glob("*")
        ]
        state = [path.name for path in (root / str(prepared.paths.root).lstrip("/")).iterdir()]

    assert top <= {"usr", "lib", "lib64", "etc", "proc", "dev", "tmp", prepared.paths.root.parts[1]}
    assert programs == [find_qemu().program.name]
    # Neither its spec nor its lock nor what is kept.
    assert state == ["vm"]


async def test_no_file_of_qemu_grows_beyond_its_bound_whoever_asks(spec: SessionSpec) -> None:
    """The hard limit, which QEMU itself cannot raise."""
    async with vms.running_guest(spec) as (guest, _):
        limits = Path(f"/proc/{guest.qemu.pid}/limits").read_text()

    (line,) = [line for line in limits.splitlines() if line.startswith("Max file size")]
    now, most = (int(number) for number in line.split()[3:5])
    assert (now >> 20, most >> 20) == (guest.file_limit_mib, 64 + 1024)


def test_a_process_of_the_host_has_no_walls() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert set(find_walls(process.pid)) <= {"core", "seccomp"}
        process.kill()


def test_a_process_that_has_ended_has_none() -> None:
    process = subprocess.Popen(["true"])
    process.wait()

    assert find_walls(process.pid) == ()


def test_the_walls_of_a_host_are_tried_with_qemu_itself() -> None:
    assert set(try_walls(find_qemu())) == {*ALWAYS, *JAIL}
