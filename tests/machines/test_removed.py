"""Removing machines: never what somebody's desktop stands on, and not at once for good."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import vms
from msgspec import structs

from qemuspawner.errors import CatalogueError
from qemuspawner.locks import try_lock
from qemuspawner.machines.catalogue import load_all_machines
from qemuspawner.machines.own import OwnMachines, describe_new
from qemuspawner.machines.removed import list_removed, remove_machine, restore_machine, sweep_removed
from qemuspawner.machines.uses import Uses, find_uses
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.saved import Fingerprint, Saved, write_manifest

ALMA = structs.replace(vms.make_machine(image={"file": "disk.img", "format": "raw"}), id="alma")


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path / "state")
    paths.sessions.mkdir(parents=True)
    return paths


@pytest.fixture
def own(state: StatePaths, tmp_path: Path) -> OwnMachines:
    """With a machine "alma" that has an image."""
    (tmp_path / "shipped").mkdir()
    own = OwnMachines(state=state, folders=[tmp_path / "shipped"], by="admin")
    own.add("alma", describe_new(name="Alma", image_format="raw"))
    (state.images / "alma").mkdir(parents=True)
    (state.images / "alma" / "disk.img").write_text("image")
    return own


def remove(own: OwnMachines, machine_id: str = "alma") -> None:
    digest = own.find(machine_id).digest
    remove_machine(own, machine_id, digest=digest, uses=find_uses(own.state).get(machine_id))


def save(state: StatePaths, folder: Path, kind: str, *, name: str = "abcdef", server: str = "desk") -> None:
    spec = vms.make_spec(state.root, ALMA, server_name=server)
    fits = Fingerprint(qemu="7.2", accelerator="tcg", cpu="max", machine="", image="", cpus=1, memory_mib=64)
    saved = Saved(
        kind=kind, name=name, saved_at=time.time(), fingerprint=fits, memory="streamed", layers=1,
        files={}, size_bytes=0, machine_id="alma", spec=None if kind == "template" else spec,
    )  # fmt: skip
    folder.mkdir(parents=True)
    write_manifest(folder, saved)


def test_what_nobody_uses_is_removed_and_restored_with_its_image(own: OwnMachines, state: StatePaths) -> None:
    text = own.find("alma").text

    remove(own)

    assert load_all_machines(state, own.folders).machines == {}
    assert not (state.images / "alma").exists()
    (removed,) = list_removed(state)
    assert (removed.id, removed.title, removed.by) == ("alma", "Alma", "admin")

    assert restore_machine(own, removed.name).text == text
    assert (state.images / "alma" / "disk.img").read_text() == "image"
    assert list_removed(state) == []


@pytest.mark.parametrize(("kind", "said"), [("suspended", "asleep"), ("checkpoint", "with checkpoints")])
def test_what_somebody_has_kept_is_not_removed(
    own: OwnMachines, state: StatePaths, kind: str, said: str
) -> None:
    spec = vms.make_spec(state.root, ALMA, server_name="desk")
    save(state, state.session(spec.session_id).saved / "abcdef", kind)

    with pytest.raises(CatalogueError, match=f"{said}: {spec.user}/desk") as error:
        remove(own)

    assert error.value.trouble == "used"
    assert own.find("alma").machine is not None
    assert (state.images / "alma" / "disk.img").exists()


def test_what_runs_is_not_removed(own: OwnMachines, state: StatePaths) -> None:
    spec = vms.make_spec(state.root, ALMA)
    paths = state.session(spec.session_id)
    paths.root.mkdir()
    paths.spec.write_text(spec.to_json())
    child = os.fork()
    if not child:  # the supervisor
        try_lock(os.open(paths.lock, os.O_RDWR | os.O_CREAT))
        (paths.root / "held").touch()
        time.sleep(60)
        os._exit(0)
    try:
        while not (paths.root / "held").exists():
            time.sleep(0.01)
        with pytest.raises(CatalogueError, match=f"running: {spec.user}"):
            remove(own)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    remove(own)


def test_templates_go_with_the_machine(own: OwnMachines, state: StatePaths) -> None:
    template = SavedPaths(root=state.templates / "alma-1")
    save(state, template.root, "template", name="alma-1")

    remove(own)

    assert not template.root.exists()


def test_many_users_are_not_all_named() -> None:
    uses = Uses(running=[f"user-{number}" for number in range(9)], asleep=[], checkpoints=[], templates=[])

    assert uses.sentence() == "running: user-0, user-1, user-2, user-3, user-4 and 4 others"


def test_a_changed_copy_gives_way_to_the_one_of_the_other_folder(
    own: OwnMachines, state: StatePaths, write_machine: Callable[..., Path]
) -> None:
    """Also while it is used: the machine and its image stay."""
    folder = write_machine(name="rocky", catalogue="shipped2").parent
    own = OwnMachines(state=state, folders=[folder], by="admin")
    own.change("rocky", {"name": "Mine"}, digest=own.find("rocky").digest)
    (state.images / "rocky").mkdir()

    removed = remove_machine(
        own, "rocky", digest=own.find("rocky").digest,
        uses=Uses(running=["alice"], asleep=[], checkpoints=[], templates=[]),
    )  # fmt: skip

    assert removed is None
    assert load_all_machines(state, [folder]).machines["rocky"].name == "Minimal"
    assert (state.images / "rocky").is_dir()


def test_a_machine_of_another_folder_is_not_removed(
    own: OwnMachines, state: StatePaths, write_machine: Callable[..., Path]
) -> None:
    folder = write_machine(name="rocky", catalogue="shipped2").parent
    own = OwnMachines(state=state, folders=[folder], by="admin")

    with pytest.raises(CatalogueError, match="which is only read here") as error:
        remove(own, "rocky")

    assert error.value.trouble == "denied"


def test_an_image_that_another_machine_starts_from_stays(own: OwnMachines, state: StatePaths) -> None:
    on_host = OwnMachines(state=state, folders=own.folders, by="root", is_host_admin=True)
    image = state.images / "alma" / "disk.img"
    on_host.add("other", describe_new(name="Other", image_format="raw"))
    on_host.change("other", {"image.file": str(image)}, digest=own.find("other").digest)

    with pytest.raises(CatalogueError, match="'other' starts from an image of 'alma'"):
        remove(own)


def test_who_did_not_see_the_last_change_does_not_remove(own: OwnMachines) -> None:
    seen = own.find("alma").digest
    own.change("alma", {"name": "Other"}, digest=seen)

    with pytest.raises(CatalogueError, match="was changed since you opened it"):
        remove_machine(own, "alma", digest=seen, uses=None)


def test_a_restored_machine_takes_nobodys_place(own: OwnMachines, state: StatePaths) -> None:
    remove(own)
    (removed,) = list_removed(state)
    own.add("alma", describe_new(name="Another", image_format="raw"))

    with pytest.raises(CatalogueError) as error:
        restore_machine(own, removed.name)

    assert error.value.trouble == "exists"
    assert own.find("alma").machine.name == "Another"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["", "..", "../images", "alma-1"])
def test_only_what_was_removed_is_restored(own: OwnMachines, name: str) -> None:
    with pytest.raises(CatalogueError) as error:
        restore_machine(own, name)

    assert error.value.trouble == "missing"


def test_after_a_week_it_is_gone(own: OwnMachines, state: StatePaths) -> None:
    remove(own)

    assert sweep_removed(state) == []
    assert len(sweep_removed(state, keep_s=-1)) == 1
    assert list(state.removed_machines.iterdir()) == []


def test_a_machine_without_an_image_is_removed_and_restored(own: OwnMachines, state: StatePaths) -> None:
    own.add("bare", describe_new(name="Bare", image_format="iso"))
    remove(own, "bare")
    (removed,) = list_removed(state)

    restore_machine(own, removed.name)

    assert own.find("bare").machine is not None
