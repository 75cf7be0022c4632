"""`qemuspawner machines pack-desktop` and `pack`: an image that its user takes home."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hubs
import published
import pytest

from qemuspawner.cli import main
from qemuspawner.locks import try_lock
from qemuspawner.machines import downloads, take_home
from qemuspawner.machines.edits import set_keys
from qemuspawner.paths import SavedPaths, session_id

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def world() -> Iterator[published.World]:
    with hubs.state_folder() as folder:
        world = published.make_world(folder)
        allow(world)
        yield world


@pytest.fixture
def changed(world: published.World, tmp_path: Path) -> Path:
    return published.change_disk(world, tmp_path / "changed.raw")


@pytest.fixture
def asleep(world: published.World, changed: Path) -> SavedPaths:
    """A desktop of alice's that changed its disk, and sleeps."""
    return published.suspend(world, changed)


@pytest.fixture
def run(world: published.World, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `qemuspawner machines`; exit code, output and errors."""

    def machines(*arguments: str) -> tuple[int, str, str]:
        where = ["--state", str(world.state.root), "--machines", str(world.machines)]
        with pytest.raises(SystemExit) as caught:
            main([*where, "machines", *arguments])
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, said.out, said.err

    return machines


def allow(world: published.World, *, download: bool = True) -> None:
    file = world.machines / "base/machine.toml"
    file.write_text(set_keys(file.read_text(), {"download": download}))


def content(image: Path, folder: Path) -> bytes:
    """Everything on a disk, read by somebody who has no other file of it."""
    alone, target = folder / "alone.qcow2", folder / "whole.raw"
    alone.write_bytes(image.read_bytes())
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", alone, target], cwd=folder, check=True)
    return target.read_bytes()


def packed(world: published.World) -> list[Path]:
    return sorted(path for path in world.state.downloads.rglob("*") if path.is_file())


@pytest.mark.usefixtures("asleep")
def test_a_desktop_becomes_one_file_that_stands_alone(
    run: Run, world: published.World, changed: Path, tmp_path: Path
) -> None:
    code, out, err = run("pack-desktop", "alice")

    assert (code, err) == (0, "")
    [file] = packed(world)
    assert out.endswith(f"{file}\n")
    assert content(file, tmp_path) == changed.read_bytes()
    check = ["qemu-img", "check", "--output=json", "-f", "qcow2", str(file)]
    looked_at = json.loads(subprocess.run(check, capture_output=True, check=True).stdout)
    assert looked_at["compressed-clusters"] == looked_at["allocated-clusters"] > 0
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o400, 0o700)
    assert file.name == f"{session_id('alice', '')}-base.qcow2"


def test_a_machines_image_is_packed_too(run: Run, world: published.World, tmp_path: Path) -> None:
    code, _, err = run("pack", "base")

    assert (code, err) == (0, "")
    [file] = packed(world)
    assert file == downloads.machine_file(world.state, world.machine)
    assert content(file, tmp_path) == Path(world.machine.image.file).read_bytes()


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize("command", [("pack-desktop", "alice"), ("pack", "base")])
def test_only_where_the_machine_allows_it(run: Run, world: published.World, command: tuple[str, ...]) -> None:
    allow(world, download=False)

    code, _, err = run(*command)

    assert code == 1
    assert "Images of 'Base' are not for taking home." in err
    assert packed(world) == []


def test_a_desktop_that_runs_is_not_packed(run: Run, world: published.World, asleep: SavedPaths) -> None:
    lock = os.open(asleep.root.parent.parent / "lock", os.O_RDWR)
    assert try_lock(lock, shared=False)
    # A lock of this process would be no obstacle to it.
    command = ["qemuspawner", "--state", str(world.state.root), "--machines", str(world.machines)]
    done = subprocess.run([*command, "machines", "pack-desktop", "alice"], capture_output=True, text=True)
    os.close(lock)

    assert done.returncode == 1
    assert "The desktop is running." in done.stderr
    assert packed(world) == []


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize("command", [("pack-desktop", "alice"), ("pack", "base")])
def test_no_room_is_one_sentence_without_a_path(
    run: Run, world: published.World, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(take_home.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))

    code, _, err = run(*command)

    assert code == 1
    assert "100 MiB are free on the host's disk." in err
    assert str(world.state.root) not in err
    assert packed(world) == []


@pytest.mark.usefixtures("asleep")
def test_another_desktops_image_takes_the_place_of_the_first(
    run: Run, world: published.World, changed: Path
) -> None:
    """So nobody fills the disk with theirs."""
    published.suspend(world, changed, server="other", name="19a0000001")
    run("pack-desktop", "alice")

    run("pack-desktop", "alice/other")

    assert [path.name for path in packed(world)] == [f"{session_id('alice', 'other')}-base.qcow2"]


@pytest.mark.usefixtures("asleep")
def test_after_a_day_it_is_gone(run: Run, world: published.World) -> None:
    run("pack-desktop", "alice")
    run("pack", "base")
    old, new = packed(world)
    before = time.time() - downloads.KEEP_S - 1
    os.utime(old, (before, before))

    assert downloads.find_file(old) is None
    assert downloads.sweep(world.state) == 1
    assert packed(world) == [new]
