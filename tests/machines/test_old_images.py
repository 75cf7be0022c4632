"""A replaced image stays for as long as a desktop stands on it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import vms
from msgspec import structs

from qemuspawner.locks import try_lock
from qemuspawner.machine import Machine
from qemuspawner.machines.old_images import keep_image, machine_of_saved
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.digests import check_digest
from qemuspawner.qemu.saving import image_identity
from qemuspawner.saved import Fingerprint, Saved, delete_saved, write_manifest


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path)
    paths.sessions.mkdir()
    return paths


@pytest.fixture
def machine(state: StatePaths) -> Machine:
    folder = state.images / "tiny"
    folder.mkdir(parents=True)
    image = {"file": str(folder / "disk.qcow2"), "format": "qcow2", "kernel": str(folder / "vmlinuz")}
    made = structs.replace(vms.make_machine(firmware="direct", image=image), id="tiny")
    replace_image(made, "first")
    return made


def replace_image(machine: Machine, content: str) -> None:
    """As a build does."""
    for name in (machine.image.file, machine.image.kernel):
        draft = Path(f"{name}.new")
        draft.write_text(f"{content} {Path(name).name}")
        draft.replace(name)


def rebuild(machine: Machine, state: StatePaths, content: str) -> None:
    keep_image(machine, state.sessions)
    replace_image(machine, content)


def suspend_on(machine: Machine, state: StatePaths, server_name: str = "") -> Path:
    """Leave a suspended session that stands on the present image."""
    spec = vms.make_spec(state.root, machine, server_name=server_name)
    folder = SavedPaths(root=state.session(spec.session_id).saved / "1")
    folder.root.mkdir(parents=True)
    fits = Fingerprint(
        qemu="7.2", accelerator="tcg", cpu="max", machine="", cpus=1, memory_mib=64,
        image=image_identity(machine.image),
    )  # fmt: skip
    saved = Saved(
        kind="suspended", name="1", saved_at=time.time(), fingerprint=fits, memory="streamed",
        layers=1, files={}, size_bytes=0, machine_id=machine.id, spec=spec,
    )  # fmt: skip
    write_manifest(folder.root, saved)
    return folder.root


def old_folders(machine: Machine) -> list[Path]:
    return sorted(Path(machine.image.file).parent.glob("old-*"))


def test_a_suspended_desktop_gets_the_image_that_it_stands_on(machine: Machine, state: StatePaths) -> None:
    identity = image_identity(machine.image)
    suspend_on(machine, state)

    rebuild(machine, state, "second")

    found = machine_of_saved(machine, identity)
    assert Path(found.image.file).read_text() == "first disk.qcow2"
    assert Path(found.image.kernel).read_text() == "first vmlinuz"
    assert image_identity(found.image) == identity


def test_an_image_that_was_read_is_kept_with_what_it_holds(machine: Machine, state: StatePaths) -> None:
    for name in (machine.image.file, machine.image.kernel):
        check_digest(Path(name))
    identity = image_identity(machine.image)
    suspend_on(machine, state)

    rebuild(machine, state, "second")

    found = machine_of_saved(machine, identity)
    assert Path(found.image.file).read_text() == "first disk.qcow2"
    assert image_identity(found.image) == identity


def test_a_machine_whose_image_was_not_replaced_is_the_same(machine: Machine, state: StatePaths) -> None:
    assert machine_of_saved(machine, image_identity(machine.image)) == machine


def test_an_image_that_nobody_kept_is_not_made_up(machine: Machine, state: StatePaths) -> None:
    """The fingerprints say what differs, and the caller refuses."""
    identity = image_identity(machine.image)

    rebuild(machine, state, "second")

    assert machine_of_saved(machine, identity) == machine
    assert old_folders(machine) == []


def test_an_old_image_goes_when_nobody_stands_on_it_any_more(machine: Machine, state: StatePaths) -> None:
    saved = suspend_on(machine, state)
    rebuild(machine, state, "second")
    assert len(old_folders(machine)) == 1

    delete_saved(saved)
    rebuild(machine, state, "third")

    assert old_folders(machine) == []


def test_several_generations_stay_apart(machine: Machine, state: StatePaths) -> None:
    identities = []
    for number, content in enumerate(("second", "third", "fourth")):
        identities.append(image_identity(machine.image))
        suspend_on(machine, state, f"server-{number}")
        rebuild(machine, state, content)

    found = [Path(machine_of_saved(machine, identity).image.file).read_text() for identity in identities]
    assert found == ["first disk.qcow2", "second disk.qcow2", "third disk.qcow2"]


def test_what_a_running_session_stands_on_stays_since_it_may_be_suspended(
    machine: Machine, state: StatePaths
) -> None:
    """Who runs is whose lock is held."""
    identity = image_identity(machine.image)
    with running_session(machine, state):
        rebuild(machine, state, "second")
        rebuild(machine, state, "third")

    assert Path(machine_of_saved(machine, identity).image.file).read_text() == "first disk.qcow2"
    # It has ended, and left nothing.
    rebuild(machine, state, "fourth")
    assert old_folders(machine) == []


def test_what_a_session_began_from_a_checkpoint_on_an_old_image_stays(
    machine: Machine, state: StatePaths
) -> None:
    """It began after the image was replaced, and the checkpoint is deleted while it runs."""
    identity = image_identity(machine.image)
    saved = suspend_on(machine, state)
    rebuild(machine, state, "second")
    (old,) = old_folders(machine)
    os.utime(old, (0, 0))

    with running_session(machine_of_saved(machine, identity), state, "branch"):
        delete_saved(saved)
        rebuild(machine, state, "third")

    assert Path(machine_of_saved(machine, identity).image.file).read_text() == "first disk.qcow2"


@contextlib.contextmanager
def running_session(machine: Machine, state: StatePaths, server_name: str = "") -> Iterator[None]:
    """Another process holds its lock, which names it as the owner."""
    spec = vms.make_spec(state.root, machine, server_name=server_name)
    paths = state.session(spec.session_id)
    paths.root.mkdir()
    paths.spec.write_text(spec.to_json())
    paths.lock.touch()
    holder = os.fork()
    if holder == 0:
        try_lock(os.open(paths.lock, os.O_RDWR))
        (state.root / "locked").touch()
        time.sleep(60)
        os._exit(0)
    try:
        while not (state.root / "locked").exists():
            time.sleep(0.01)
        yield
    finally:
        os.kill(holder, 9)
        os.waitpid(holder, 0)


def test_names_that_no_file_can_have_keep_no_build_from_working(machine: Machine, state: StatePaths) -> None:
    nul = structs.replace(machine, image=structs.replace(machine.image, file="a\0b"))

    with running_session(nul, state):
        rebuild(machine, state, "second")

    assert Path(machine.image.file).read_text() == "second disk.qcow2"


def test_a_folder_that_is_no_session_keeps_no_build_waiting(machine: Machine, state: StatePaths) -> None:
    """What lies in the sessions' folder is their account's, and a build runs as root."""
    paths = state.session("0" * 20)
    paths.root.mkdir()
    os.mkfifo(paths.spec)
    (state.sessions / "a-file").touch()

    rebuild(machine, state, "second")

    assert old_folders(machine) == []
