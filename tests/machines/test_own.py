"""Machines added and changed by administrators: nothing that is broken is saved, everything can be undone."""

import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qemuspawner.errors import CatalogueError
from qemuspawner.machines import history
from qemuspawner.machines.catalogue import load_all_machines
from qemuspawner.machines.own import InvalidMachineError, OwnMachines, describe_new
from qemuspawner.paths import StatePaths

SHIPPED = """# The site's first machine.
name = "Rocky 9"  # shown
icon = "icon.svg"

[image]
file = "disk.raw"
format = "raw"

[cpus]
default = 1 # enough
offered = [1, 2]
"""
BUILT = SHIPPED.replace('"raw"', '"qcow2"').replace("[image]", 'firmware = "direct"\n[image]\nkernel = "k"')
URL = 'url = "https://x.org/a"\n'
SIGNED = 'signature = "https://x.org/a.sig"\nkeyring = "/etc/shadow"'
RECIPE = '\n[build]\nsuite = "bookworm"\npackages = ["linux-image-amd64"]\n'


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    return StatePaths(root=tmp_path / "state")


@pytest.fixture
def own(state: StatePaths, write_machine: Callable[..., Path]) -> OwnMachines:
    """What "admin" may change on the hub; the read-only folder has "rocky"."""
    folder = write_machine(SHIPPED, name="rocky")
    (folder / "icon.svg").write_text("<svg/>")
    state.root.mkdir()
    return OwnMachines(state=state, folders=[folder.parent], by="admin")


def kind_of_trouble(error: pytest.ExceptionInfo[CatalogueError]) -> str:
    return error.value.trouble


def test_a_machine_is_added_and_offered_to_nobody_yet(own: OwnMachines, state: StatePaths) -> None:
    entry = own.add("alma", describe_new(name='"<b>Alma\\', image_format="qcow2", url="https://x.org/a"))

    machine = load_all_machines(state, own.folders).machines["alma"]
    assert (machine.name, machine.hidden, machine.image.url) == ('"<b>Alma\\', True, "https://x.org/a")
    assert entry.folder == state.machines / "alma"


def test_what_is_written_every_account_may_read(own: OwnMachines, state: StatePaths) -> None:
    """Sessions are another account's, and so are the hub's other programs."""
    folder = own.add("alma", describe_new(name="Alma", image_format="raw")).folder

    modes = [stat.S_IMODE(path.stat().st_mode) for path in (state.machines, folder, folder / "machine.toml")]
    assert modes == [0o755, 0o755, 0o644]


@pytest.mark.parametrize("name", ["", "Alma", "../x", "a b", "a" * 41, "1a", "alma\n"])
def test_an_id_is_a_plain_name(own: OwnMachines, state: StatePaths, name: str) -> None:
    with pytest.raises(CatalogueError) as error:
        own.add(name, describe_new(name="Alma", image_format="raw"))

    assert kind_of_trouble(error) == "invalid"
    assert list(state.machines.iterdir()) == []


def test_an_id_is_given_once(own: OwnMachines) -> None:
    with pytest.raises(CatalogueError, match="There is a machine 'rocky' already") as error:
        own.add("rocky", SHIPPED)

    assert kind_of_trouble(error) == "exists"


def test_a_machine_of_another_folder_is_changed_by_a_copy_that_counts(
    own: OwnMachines, state: StatePaths
) -> None:
    shipped = own.find("rocky")

    changed = own.change("rocky", {"name": "Rocky 10"}, digest=shipped.digest)

    assert (shipped.is_own, changed.is_own) == (False, True)
    catalogue = load_all_machines(state, own.folders)
    assert catalogue.machines["rocky"].name == "Rocky 10"
    assert catalogue.problems == ()
    assert (shipped.folder / "machine.toml").read_text() == SHIPPED
    assert (changed.folder / "icon.svg").exists()


def test_keys_are_set_with_comments_left_where_they_are(own: OwnMachines) -> None:
    values = {"name": "Rocky 10", "cpus.default": 2, "allow.groups": ["it's", "<b>"], "icon": None}

    text = own.change("rocky", values, digest=own.find("rocky").digest).text

    assert text == (
        SHIPPED.replace('"Rocky 9"', '"Rocky 10"').replace("default = 1", "default = 2")
        .replace('icon = "icon.svg"\n', "")
        + '\n[allow]\ngroups = ["it\'s", "<b>"]\n'
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "line", "key"),
    [
        ('name = "Rocky 9"', "name = 3", 2, "name"),
        ('name = "Rocky 9"', 'name = "Rocky 9', 2, ""),
        ("offered = [1, 2]", "offered = [1, 0]", 11, "cpus.offered[1]"),
        ('format = "raw"', 'format = "zip"', 7, "image.format"),
        ('file = "disk.raw"\n', "", 5, "image.file"),
        ('"icon.svg"', '"none.svg"', 3, "icon"),
        ("[cpus]", "[cpuses]", 9, "cpuses"),
    ],
)
def test_a_broken_text_is_refused_by_line_and_nothing_is_saved(
    own: OwnMachines, state: StatePaths, before: str, after: str, line: int, key: str
) -> None:
    digest = own.find("rocky").digest

    with pytest.raises(InvalidMachineError) as error:
        own.save("rocky", SHIPPED.replace(before, after), digest=digest)

    (problem,) = error.value.problems
    assert (problem.line, problem.key) == (line, key)
    assert f"line {line}" in error.value.message
    assert list(state.machines.iterdir()) == []


def test_a_text_of_megabytes_is_refused(own: OwnMachines) -> None:
    with pytest.raises(InvalidMachineError, match="larger than 256 KiB"):
        own.save("rocky", SHIPPED + "#" * 300_000, digest=own.find("rocky").digest)


@pytest.mark.parametrize("value", [1.5, {"a": None}, [[[[[1]]]]], None.__class__])
def test_values_that_toml_has_not_are_refused(own: OwnMachines, value: object) -> None:
    with pytest.raises(CatalogueError) as error:
        own.change("rocky", {"cpus.default": value}, digest=own.find("rocky").digest)

    assert kind_of_trouble(error) == "invalid"


def test_who_did_not_see_the_last_change_does_not_overwrite_it(own: OwnMachines) -> None:
    seen = own.find("rocky").digest
    own.change("rocky", {"name": "Mine"}, digest=seen)

    with pytest.raises(CatalogueError, match="was changed by admin since you opened it") as error:
        own.change("rocky", {"name": "Yours"}, digest=seen)

    assert kind_of_trouble(error) == "changed"
    assert own.find("rocky").machine.name == "Mine"  # type: ignore[union-attr]


def test_of_many_changes_at_once_one_wins(own: OwnMachines) -> None:
    seen = own.find("rocky").digest
    results: list[str] = []

    def change(number: int) -> None:
        try:
            own.change("rocky", {"name": f"By {number}"}, digest=seen)
            results.append("saved")
        except CatalogueError as exc:
            results.append(exc.trouble)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(results) == ["changed"] * 7 + ["saved"]
    assert [one.what for one in own.versions("rocky")] == ["edit", "found"]


def test_the_history_says_who_did_what(own: OwnMachines) -> None:
    hostile = structs_replace(own, by='x"}\n# <b>')
    own.change("rocky", {"hidden": True}, digest=own.find("rocky").digest, what="hide")
    hostile.change("rocky", {"name": "R"}, digest=own.find("rocky").digest)

    versions = own.versions("rocky")

    told = [(one.number, one.by, one.what) for one in versions]
    assert told == [(3, 'x"}\n# <b>', "edit"), (2, "admin", "hide"), (1, "", "found")]
    assert versions[0].digest == own.find("rocky").digest


def structs_replace(own: OwnMachines, **changes: str) -> OwnMachines:
    return OwnMachines(**{**vars(own), **changes})


def test_a_change_by_hand_is_noted_too(own: OwnMachines) -> None:
    entry = own.change("rocky", {"name": "One"}, digest=own.find("rocky").digest)
    (entry.folder / "machine.toml").write_text(entry.text.replace("One", "Two"))

    own.change("rocky", {"name": "Three"}, digest=own.find("rocky").digest)

    assert [one.what for one in own.versions("rocky")] == ["edit", "found", "edit", "found"]


def test_the_last_change_is_undone_and_the_undoing_too(own: OwnMachines) -> None:
    own.change("rocky", {"name": "Changed"}, digest=own.find("rocky").digest)

    undone = own.undo("rocky", digest=own.find("rocky").digest)
    redone = own.undo("rocky", digest=undone.digest)

    assert undone.text == SHIPPED
    assert redone.machine is not None
    assert redone.machine.name == "Changed"


def test_going_back_to_a_version_by_number(own: OwnMachines) -> None:
    for name in ("One", "Two", "Three"):
        own.change("rocky", {"name": name}, digest=own.find("rocky").digest)

    entry = own.undo("rocky", digest=own.find("rocky").digest, number=2)

    assert entry.machine is not None
    assert entry.machine.name == "One"
    with pytest.raises(CatalogueError, match="has no version 99"):
        own.undo("rocky", digest=entry.digest, number=99)


def test_what_was_never_changed_cannot_be_undone(own: OwnMachines) -> None:
    with pytest.raises(CatalogueError, match="nothing can be undone"):
        own.undo("rocky", digest=own.find("rocky").digest)


def test_fifty_versions_are_kept(own: OwnMachines) -> None:
    for number in range(55):
        own.change("rocky", {"name": f"Name {number}"}, digest=own.find("rocky").digest)

    numbers = [one.number for one in own.versions("rocky")]

    assert (len(numbers), numbers[0]) == (50, 56)


def test_a_copy_is_hidden_and_has_the_image(own: OwnMachines, state: StatePaths) -> None:
    image = state.images / "rocky" / "disk.raw"
    image.parent.mkdir(parents=True)
    image.write_text("an image")

    entry = own.copy("rocky", "rocky-test", name="Try")

    copied = state.images / "rocky-test" / "disk.raw"
    assert entry.machine is not None
    assert (entry.machine.hidden, entry.machine.name, entry.machine.image.file) == (True, "Try", str(copied))
    assert copied.read_text() == "an image"
    assert copied.stat().st_ino == image.stat().st_ino
    assert (entry.folder / "icon.svg").exists()
    assert [one.what for one in own.versions("rocky-test")] == ["copy of rocky"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (SHIPPED.replace('"disk.raw"', '"/etc/shadow"'), "image.file"),
        (SHIPPED.replace('[image]', '[image]\nurl = "file:///etc/shadow"'), "image.url"),
        (SHIPPED.replace('[image]', f'[image]\n{URL}checksums = "file:///etc/shadow"'), "image.checksums"),
        (SHIPPED.replace('[image]', f'[image]\n{URL}mirrors = ["file:///etc/shadow"]'), "image.mirrors"),
        (SHIPPED.replace('[image]', f'[image]\n{URL}{SIGNED}'), "image.keyring"),
        (BUILT + RECIPE, "build"),
        (BUILT.replace('"k"', '"/boot/vmlinuz"'), "image.kernel"),
    ],
)  # fmt: skip
def test_on_the_hub_nobody_reaches_for_the_host(own: OwnMachines, text: str, key: str) -> None:
    digest = own.find("rocky").digest

    with pytest.raises(InvalidMachineError) as error:
        own.save("rocky", text, digest=digest)

    assert [problem.key for problem in error.value.problems] == [key]
    on_host = OwnMachines(state=own.state, folders=own.folders, by="root", is_host_admin=True)
    assert on_host.save("rocky", text, digest=digest).text == text


def test_what_the_host_allowed_stays_when_something_else_is_changed(own: OwnMachines) -> None:
    on_host = OwnMachines(state=own.state, folders=own.folders, by="root", is_host_admin=True)
    entry = on_host.save("rocky", BUILT.replace('"k"', '"/boot/vmlinuz"'), digest=own.find("rocky").digest)

    own.change("rocky", {"name": "Other"}, digest=entry.digest)

    assert 'kernel = "/boot/vmlinuz"' in own.find("rocky").text


def test_a_broken_machine_can_be_repaired(own: OwnMachines) -> None:
    entry = own.change("rocky", {"name": "One"}, digest=own.find("rocky").digest)
    (entry.folder / "machine.toml").write_text("name = ")

    broken = own.find("rocky")
    repaired = own.save("rocky", SHIPPED, digest=broken.digest)

    assert broken.machine is None
    assert [problem.line for problem in broken.problems] == [1]
    assert repaired.machine is not None


def test_a_draft_that_a_crash_left_is_no_machine_and_goes(own: OwnMachines, state: StatePaths) -> None:
    remains = state.machines / ".draft-x" / "alma"
    remains.mkdir(parents=True)
    (remains / "machine.toml").write_text(SHIPPED)

    assert [entry.id for entry in own.list()] == ["rocky"]
    own.change("rocky", {"name": "One"}, digest=own.find("rocky").digest)
    assert not remains.exists()


def test_a_folder_of_another_account_is_said_so(own: OwnMachines, state: StatePaths) -> None:
    """Here a file is in its place, which root cannot write into either."""
    state.machines.write_text("")

    with pytest.raises(CatalogueError, match="cannot be changed: Not a directory") as error:
        own.add("alma", describe_new(name="Alma", image_format="raw"))

    assert kind_of_trouble(error) == "denied"


def test_a_version_that_a_crash_cut_off_is_none(own: OwnMachines) -> None:
    entry = own.change("rocky", {"name": "One"}, digest=own.find("rocky").digest)
    (entry.folder / ".history" / "000009.toml").write_text("# {")

    assert [one.number for one in history.list_versions(entry.folder)] == [2, 1]


# Icons


def png(width: int, height: int, *, noise: bool = False) -> bytes:
    made = io.BytesIO()
    pixels = os.urandom(width * height * 4) if noise else bytes(width * height * 4)
    Image.frombytes("RGBA", (width, height), pixels).save(made, "PNG")
    return made.getvalue()


def test_an_icon_is_made_small_and_can_be_taken_back(own: OwnMachines) -> None:
    """Also of the busiest picture; the machine of another folder is changed by a copy."""
    before = own.find("rocky")

    first = own.set_icon("rocky", png(400, 300, noise=True), digest=before.digest)
    second = own.set_icon("rocky", png(10, 10), digest=first.digest)
    back = own.undo("rocky", digest=second.digest)

    assert first.machine is not None
    assert back.machine is not None
    assert first.is_own
    assert first.machine.icon == back.machine.icon
    assert Image.open(first.folder / first.machine.icon).size == (96, 72)
    assert back.problems == ()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"", "The picture is no PNG file."),
        (b"<svg/>", "The picture is no PNG file."),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "The picture is no PNG file."),
        (png(64, 64, noise=True)[:-2000], "The picture is no PNG file."),
        (b"x" * ((1 << 20) + 1), "The picture is too large for an icon."),
        (png(5000, 4000), "The picture is too large for an icon."),
    ],
    ids=["empty", "SVG", "rubbish", "cut off", "many bytes", "many pixels"],
)
def test_a_picture_that_is_no_icon_changes_nothing(own: OwnMachines, picture: bytes, message: str) -> None:
    before = own.find("rocky")

    with pytest.raises(CatalogueError) as error:
        own.set_icon("rocky", picture, digest=before.digest)

    assert error.value.message == message
    assert own.find("rocky") == before
