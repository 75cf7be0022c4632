"""The memories of templates that the fork server keeps for its sessions."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qemuspawner.forking import WantedTemplates
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.memory import make_memory, save_memory
from qemuspawner.saved import FileDigest, Fingerprint, Saved, delete_saved, load_saved, write_manifest
from qemuspawner.session.host.memories import Memories

FINGERPRINT = Fingerprint(
    qemu="7.2", accelerator="tcg", cpu="max", machine="sha256:0", image="sha256:0", cpus=1, memory_mib=64
)

AddTemplate = Callable[..., Path]


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    return StatePaths(root=tmp_path)


@pytest.fixture
def add(state: StatePaths) -> AddTemplate:
    """Write a template of the machine "mini"; its folder."""

    def add(name: str = "mini-0", *, content: bytes = b"memory", memory_mib: int = 64, **keys: Any) -> Path:
        folder = SavedPaths(root=state.templates / name)
        folder.root.mkdir(parents=True, exist_ok=True)
        memory = make_memory(memory_mib)
        os.pwrite(memory, content, 4096)
        digest = FileDigest(size_bytes=memory_mib << 20, digest=save_memory(memory, folder.memory))
        os.close(memory)
        saved = Saved(
            kind="template", name=name, saved_at=0, memory="mapped", layers=1, size_bytes=0,
            machine_id="mini",
            fingerprint=msgspec.structs.replace(FINGERPRINT, memory_mib=memory_mib),
            files={folder.memory.name: digest},
        )  # fmt: skip
        write_manifest(folder.root, msgspec.structs.replace(saved, **keys))
        return folder.root

    return add


def wanted(state: StatePaths, **keys: Any) -> WantedTemplates:
    wanted = WantedTemplates(state_dir=str(state.root), machine_id="mini", cpus=1, memory_mib=64)
    return msgspec.structs.replace(wanted, **keys)


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def digest_of(root: Path) -> str:
    saved = load_saved(root)
    assert saved is not None
    return saved.files["memory"].digest


def only(found: dict[str, int]) -> int:
    (descriptor,) = found.values()
    return descriptor


def test_what_was_saved_is_found_by_its_digest(state: StatePaths, add: AddTemplate) -> None:
    """Its name may be another template's by the time that a session opens it."""
    folder = add("mini-0", content=b"the guest's")

    found = Memories().find(wanted(state))

    assert list(found) == [digest_of(folder)]
    assert os.pread(only(found), 11, 4096) == b"the guest's"


def test_only_the_newest_can_still_be_wanted(state: StatePaths, add: AddTemplate) -> None:
    """One for another accelerator may be another hub's."""
    other = msgspec.structs.replace(FINGERPRINT, accelerator="kvm")
    add("mini-2", content=b"old", saved_at=1)
    newest = add("mini-1", content=b"new", saved_at=2)
    for_kvm = add("mini-0", content=b"kvm", saved_at=0, fingerprint=other)

    found = Memories().find(wanted(state))

    assert set(found) == {digest_of(newest), digest_of(for_kvm)}


def test_a_newer_one_gives_the_older_ones_memory_back(state: StatePaths, add: AddTemplate) -> None:
    add("mini-0", content=b"old", saved_at=1)
    memories = Memories()
    inode = os.fstat(only(memories.find(wanted(state)))).st_ino
    add("mini-1", content=b"new", saved_at=2)

    found = memories.find(wanted(state))

    assert os.pread(only(found), 3, 4096) == b"new"
    assert len(memories._loaded) == 1
    assert os.fstat(only(found)).st_ino != inode


def test_a_memory_is_loaded_once(state: StatePaths, add: AddTemplate) -> None:
    add()
    memories = Memories()

    assert memories.find(wanted(state)) == memories.find(wanted(state))


@pytest.mark.parametrize("other", [{"machine_id": "maxi"}, {"cpus": 2}, {"memory_mib": 128}])
def test_another_machine_or_size_gets_none(
    state: StatePaths, add: AddTemplate, other: dict[str, Any]
) -> None:
    add()

    assert Memories().find(wanted(state, **other)) == {}


def test_a_template_without_a_memory_of_its_own_is_left_out(state: StatePaths, add: AddTemplate) -> None:
    add(memory="streamed")

    assert Memories().find(wanted(state)) == {}


def test_a_damaged_memory_is_left_out(state: StatePaths, add: AddTemplate) -> None:
    folder = add()
    with SavedPaths(root=folder).memory.open("r+b") as file:
        file.seek(4096)
        file.write(b"M")

    assert Memories().find(wanted(state)) == {}


def test_a_deleted_template_gives_its_memory_back(state: StatePaths, add: AddTemplate) -> None:
    folder = add()
    memories = Memories()
    [descriptor] = memories.find(wanted(state)).values()

    delete_saved(folder)
    memories.find(wanted(state, machine_id="another"))

    assert not is_open(descriptor)


def test_a_template_that_was_made_anew_is_loaded_anew(state: StatePaths, add: AddTemplate) -> None:
    add(content=b"old")
    memories = Memories()
    memories.find(wanted(state))

    add(content=b"new")

    assert os.pread(only(memories.find(wanted(state))), 3, 4096) == b"new"


def test_a_memory_whose_holes_were_filled_by_reading_is_loaded_anew(
    state: StatePaths, add: AddTemplate
) -> None:
    """As by a QEMU that saves its clone: that reads all of the mapping."""
    add(memory_mib=96)
    memories = Memories()
    big = wanted(state, memory_mib=96)
    before = only(memories.find(big))
    inode = os.fstat(before).st_ino
    with mmap.mmap(before, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as mapping:
        assert mapping.find(b"nowhere") == -1

    after = only(memories.find(big))

    assert os.fstat(after).st_ino != inode
    assert os.fstat(after).st_blocks * 512 <= 1 << 20


def test_the_least_recently_used_gives_way(
    state: StatePaths, add: AddTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qemuspawner.session.host.memories._MAX_LOADED", 2)
    memories = Memories()
    descriptors = {}
    for machine_id in ("first", "second", "first", "third"):
        if machine_id not in descriptors:
            add(machine_id, machine_id=machine_id)
        found = memories.find(wanted(state, machine_id=machine_id))
        descriptors[machine_id] = os.fstat(only(found)).st_ino

    left = {os.fstat(loaded.descriptor).st_ino for loaded in memories._loaded.values()}

    assert left == {descriptors["first"], descriptors["third"]}


def test_all_together_take_no_more_than_a_share_of_the_host(
    state: StatePaths, add: AddTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a MiB here; what is too large by itself closes no other."""
    monkeypatch.setattr("qemuspawner.session.host.memories._host_bytes", lambda: 10 << 20)
    memories = Memories()
    for machine_id in ("first", "second", "first", "third"):
        add(machine_id, machine_id=machine_id)
        memories.find(wanted(state, machine_id=machine_id))
    add("large", machine_id="large", content=b"x" * (3 << 20))

    assert memories.find(wanted(state, machine_id="large")) == {}
    assert [kind.machine_id for kind in memories._loaded] == ["first", "third"]


def test_the_use_of_a_template_is_noted(state: StatePaths, add: AddTemplate) -> None:
    folder = add()
    os.utime(folder, (0, 0))

    Memories().find(wanted(state))

    assert folder.stat().st_mtime > 0
