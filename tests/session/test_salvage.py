"""The disk of a desktop whose host was lost, kept by the next who has the directory."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import vms
from processes import find_processes
from sessions import Session, wait_for

from qemuspawner.machine import Image, Machine
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths
from qemuspawner.saved import Fingerprint, Saved, find_suspended, list_saved, write_manifest
from qemuspawner.session.host.directory import claim, sweep
from qemuspawner.session.host.salvage import keep_left, note_left
from qemuspawner.spec import SessionSpec

ID = "0123456789abcdef0123"
FITS = Fingerprint(
    qemu="7.2", accelerator="tcg", cpu="max", machine="sha256:0", image="disk", cpus=1, memory_mib=64
)


@pytest.fixture
def host(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path)
    paths.sessions.mkdir(parents=True)
    return paths


@pytest.fixture
def spec(host: StatePaths) -> SessionSpec:
    return vms.make_spec(host.root, Machine(name="Painter", image=Image(file="disk", format="raw")))


@pytest.fixture
def paths(host: StatePaths, spec: SessionSpec) -> SessionPaths:
    """A run that was lost: it woke from one layer, and made a checkpoint of another."""
    paths = host.session(ID)
    for folder in (paths.vm, paths.layers):
        folder.mkdir(parents=True)
    paths.root.chmod(0o700)
    (paths.layers / "disk-0.qcow2").write_text("slept on")
    paths.overlay(1).write_text("of the checkpoint")
    paths.overlay(2).write_text("written since")
    note_left(paths, spec, FITS)
    return paths


def contents(paths: SessionPaths) -> list[str]:
    saved = find_suspended(paths)
    assert saved is not None
    folder = SavedPaths(root=paths.saved / saved.name)
    return [folder.layer(depth).read_text() for depth in range(saved.layers)]


def test_who_starts_it_next_finds_its_disk(host: StatePaths, paths: SessionPaths) -> None:
    with claim(host, ID):
        assert contents(paths) == ["slept on", "of the checkpoint", "written since"]
        saved = find_suspended(paths)

    assert saved is not None
    assert (saved.memory, saved.fingerprint) == ("lost", FITS)


def test_who_sweeps_keeps_it_too(host: StatePaths, paths: SessionPaths) -> None:
    sweep(host, own_id="other")

    assert contents(paths) == ["slept on", "of the checkpoint", "written since"]
    assert not paths.vm.exists()


def test_what_a_lost_host_still_writes_reaches_nothing_that_is_kept(paths: SessionPaths) -> None:
    with paths.overlay(2).open("r+") as still_open:
        keep_left(paths)
        still_open.write("WRITTEN SINCE")

    assert contents(paths)[-1] == "written since"


def test_what_had_fallen_asleep_is_not_woken_without_its_memory(
    paths: SessionPaths, spec: SessionSpec
) -> None:
    asleep = Saved(
        kind="suspended", name="abcdef", saved_at=time.time() + 1, fingerprint=FITS, memory="streamed",
        layers=0, files={}, size_bytes=0, spec=spec,
    )  # fmt: skip
    (paths.saved / asleep.name).mkdir(parents=True)
    write_manifest(paths.saved / asleep.name, asleep)

    keep_left(paths)

    assert [saved.name for saved in list_saved(paths.saved)] == ["abcdef"]


def test_a_link_in_the_place_of_the_disk_is_not_followed(paths: SessionPaths, tmp_path: Path) -> None:
    """A guest that broke out may have put it there."""
    (tmp_path / "secret").write_text("of the host")
    paths.overlay(2).unlink()
    paths.overlay(2).symlink_to(tmp_path / "secret")

    keep_left(paths)

    assert list_saved(paths.saved) == []


def test_a_session_that_is_killed_with_its_host_leaves_its_disk(start: Callable[..., Session]) -> None:
    session = start(lease_s=1, suspend_on=("stop",))
    session.wait_until_ready()
    wait_for(lambda: (session.paths.root / "saved.json").exists())

    session.process.kill()
    session.process.wait(30)
    wait_for(lambda: not find_processes(session.paths))
    keep_left(session.paths)
    saved = find_suspended(session.paths)

    assert saved is not None
    assert (saved.memory, saved.layers) == ("lost", 1)
