"""A guest runs only behind all its walls: they are looked at around the process, not in a command line."""

import subprocess
from pathlib import Path
from typing import Any

import guests
import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.qemu import command
from qemuspawner.qemu.host import find_qemu
from qemuspawner.qemu.walls import ALWAYS, JAIL, MEANINGS, find_walls, try_walls
from qemuspawner.session.vm import prepare
from qemuspawner.spec import SessionSpec


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    disk = guests.make_disk(tmp_path / "disk")
    return vms.make_spec(tmp_path, vms.make_machine(image={"file": str(disk), "format": "raw"}))


async def test_every_wall_stands_around_a_desktop(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, _):
        assert set(guest.walls) == {*ALWAYS, *JAIL} == set(MEANINGS)


async def test_without_the_jail_the_filter_and_the_limits_stay(spec: SessionSpec, tmp_path: Path) -> None:
    without = vms.make_spec(tmp_path, spec.machine, jail=False)

    async with vms.running_guest(without) as (guest, _):
        assert set(ALWAYS) <= set(guest.walls)
        assert not {"files", "network", "processes"} & set(guest.walls)


# Of a guest of 64 MiB with one CPU.
MEMORY_BOUND = f"ulimit -d {(64 + 8 + 1536) << 10} && "


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("network", "--unshare-net"),
        ("ipc", "--unshare-ipc"),
        ("core", "ulimit -c 0 && "),
        ("memory", MEMORY_BOUND),
        ("oom", "echo 500 > /proc/self/oom_score_adj && "),
    ],
)
async def test_a_guest_behind_fewer_walls_never_runs(
    spec: SessionSpec, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    """The command that builds the wall is lost, as by a mistake of ours; QEMU starts all the same."""
    tie = prepare.tie_to_parent
    seen = []

    def tie_without(*args: Any, **kwargs: Any) -> list[str]:
        command = tie(*args, **kwargs)
        less = [word.replace(words, "") for word in command]
        assert less != command
        return [word for word in less if word]

    monkeypatch.setattr(prepare, "tie_to_parent", tie_without)
    execute = vms.Guest.limit_files

    def limit_files(guest: vms.Guest, mib: int) -> None:
        seen.append(guest)
        execute(guest, mib)

    monkeypatch.setattr(vms.Guest, "limit_files", limit_files)

    with pytest.raises(VmError, match=f"walls that it must have: {missing}"):
        async with vms.running_guest(spec):
            pass

    assert not seen


async def test_a_qemu_without_its_filter_runs_no_guest(
    spec: SessionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SANDBOX", "off")

    with pytest.raises(VmError, match="walls that it must have: seccomp"):
        async with vms.running_guest(spec):
            pass


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
