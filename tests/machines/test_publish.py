"""`qemuspawner machines changes` and `publish`: of a desktop that sleeps, by the command."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import guests
import hubs
import published
import pytest
import vms

from qemuspawner.cli import main
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import DIGESTS, SavedPaths

Run = Callable[..., tuple[int, str, str]]
FOR_ALL = ("--for-all",)


@pytest.fixture
def world() -> Iterator[published.World]:
    """In a folder with a short name: QEMU's sockets lie in it."""
    with hubs.state_folder() as folder:
        yield published.make_world(folder)


@pytest.fixture
def asleep(world: published.World, tmp_path: Path) -> SavedPaths:
    """A desktop of alice's that changed its disk, and sleeps."""
    return published.suspend(world, published.change_disk(world, tmp_path / "changed.raw"))


@pytest.fixture
def run(world: published.World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `qemuspawner machines`; exit code, output and errors."""
    monkeypatch.setenv("SUDO_USER", "carol")

    def machines(*arguments: str) -> tuple[int, str, str]:
        where = ["--state", str(world.state.root), "--machines", str(world.machines)]
        with pytest.raises(SystemExit) as caught:
            main([*where, "machines", *arguments])
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, said.out, said.err

    return machines


def load(world: published.World, machine_id: str) -> Machine:
    return load_machine(world.state.machines / machine_id, world.state.images)


def content(machine: Machine, folder: Path) -> bytes:
    """Everything on its disk, read by somebody who follows no backing file."""
    target = folder / "whole.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", machine.image.file, str(target)], check=True)
    return target.read_bytes()


def left_over(world: published.World) -> list[str]:
    names = [path.name for path in world.state.images.rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in ("disk.raw", DIGESTS))


# What has changed


@pytest.mark.usefixtures("asleep")
def test_packages_and_files_that_changed_are_listed(run: Run) -> None:
    code, out, err = run("changes", "alice", "--json")

    assert (code, err) == (0, "")
    changes = json.loads(out.splitlines()[-1])["changes"]
    assert changes["unknown"] == ""
    assert changes["packages"] == [
        {"name": "bash", "before": "5.2", "after": "5.3"},
        {"name": "pymca", "before": "", "after": "5.8.1"},
        {"name": "vim", "before": "9.0", "after": ""},
    ]
    found = {one["path"]: one for one in changes["folders"]}
    assert found["/etc"] == {
        "path": "/etc",
        "added": 0,
        "changed": 1,
        "removed": 1,
        "files": ["~ /etc/motd", "- /etc/issue"],
    }
    assert found["/opt"]["files"] == ["+ /opt", "+ /opt/tool"]


@pytest.mark.usefixtures("asleep")
def test_the_same_for_people(run: Run, world: published.World) -> None:
    out = run("changes", "alice")[1]

    assert "package pymca: not there -> 5.8.1\n" in out
    assert "/etc: +0 ~1 -1\n  ~ /etc/motd\n" in out
    assert left_over(world) == []


def test_a_desktop_that_changed_nothing(run: Run, world: published.World) -> None:
    published.suspend(world, Path(world.machine.image.file))

    assert run("changes", "alice")[1].endswith("It has changed nothing.\n")


def test_a_disk_that_cannot_be_read_is_said(run: Run, world: published.World, tmp_path: Path) -> None:
    disk = tmp_path / "other.raw"
    disk.write_bytes(guests.BOOT_SECTOR.ljust(17 << 20, b"\0"))
    published.suspend(world, disk)

    assert "is not known: It has no ext4 file system" in run("changes", "alice")[1]


@pytest.mark.parametrize(
    ("at", "damage"),
    [
        (1024 + 0x28, b"\1\0\0\0"),  # one inode in each group
        (1024 + 0x58, b"\xff\xff"),  # inodes of 64 KiB
        (1024 + 0xFE, b"\1\0"),  # a group's description of one byte
        (1024 + 0x18, b"\xff\0\0\0"),  # blocks of 2^265 bytes
        (2048, b"\xff" * 2048),  # the groups lie nowhere
        (4096, b"\xff" * 64),
    ],
    ids=("inodes", "inode-size", "description-size", "block-size", "groups", "bitmaps"),
)
def test_a_damaged_file_system_ends_in_a_sentence(
    run: Run, world: published.World, tmp_path: Path, at: int, damage: bytes
) -> None:
    disk = published.change_disk(world, tmp_path / "changed.raw")
    with disk.open("r+b") as file:
        file.seek(published.START + at)
        file.write(damage)
    published.suspend(world, disk)

    code, out, err = run("changes", "alice")

    assert (code, err) == (0, "")
    assert "is not known:" in out or "/etc" in out


def test_a_folder_that_holds_itself_is_looked_at_once(
    run: Run, world: published.World, tmp_path: Path
) -> None:
    disk = published.change_disk(world, tmp_path / "changed.raw")
    published.edit_ext4(disk, "link /etc /etc/loop", "link /etc /loop")
    published.suspend(world, disk)

    out = run("changes", "alice")[1]

    assert "+ /etc/loop\n" in out
    assert "/etc/loop/" not in out


# Publishing


@pytest.mark.usefixtures("asleep")
def test_a_desktop_becomes_a_machine_that_stands_alone(
    run: Run, world: published.World, tmp_path: Path
) -> None:
    code, out, err = run("publish", "alice", "pymca", "--name", "PyMca")

    assert (code, err) == (0, "")
    assert "'pymca' is version 1" in out
    machine = load(world, "pymca")
    assert (machine.name, machine.version, machine.owner) == ("PyMca", "1", "alice")
    assert (machine.hidden, machine.allow.users) == (True, ("alice",))
    assert machine.image.format == "qcow2"
    assert content(machine, tmp_path) == (tmp_path / "changed.raw").read_bytes()
    assert left_over(world) == ["v1-disk.qcow2"]
    assert Path(machine.image.file).stat().st_mode & 0o777 == 0o444
    assert "backing" not in subprocess.check_output(["qemu-img", "info", machine.image.file], text=True)
    assert json.loads(run("history", "pymca", "--json")[1])[0] | {"at": 0, "digest": ""} == {
        "number": 1,
        "at": 0,
        "by": "carol (host)",
        "what": "version 1, of a desktop of alice",
        "digest": "",
    }


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize(
    ("options", "users", "groups"),
    [
        (("--for-user", "bob", "--for-user", "alice"), ("bob", "alice"), ()),
        (("--for-group", "beamline"), (), ("beamline",)),
        (FOR_ALL, (), ()),
    ],
)
def test_for_whom_it_is(
    run: Run,
    world: published.World,
    options: tuple[str, ...],
    users: tuple[str, ...],
    groups: tuple[str, ...],
) -> None:
    assert run("publish", "alice", "pymca", *options)[0] == 0

    machine = load(world, "pymca")
    assert (machine.hidden, machine.allow.users, machine.allow.groups) == (False, users, groups)


def test_published_again_it_has_a_next_version_and_can_go_back(
    run: Run, world: published.World, asleep: SavedPaths, tmp_path: Path
) -> None:
    run("publish", "alice", "pymca", "--name", "PyMca", *FOR_ALL)
    run("edit", "pymca", "--set", "description=of the curator")
    first = content(load(world, "pymca"), tmp_path)
    published.edit_ext4(tmp_path / "changed.raw", "mkdir /srv")
    asleep.manifest.unlink()
    published.suspend(world, tmp_path / "changed.raw", name="19a0000001")

    assert run("publish", "alice", "pymca")[0] == 0

    second = load(world, "pymca")
    assert (second.version, second.hidden, second.description) == ("2", False, "of the curator")
    assert content(second, tmp_path) != first
    assert run("undo", "pymca")[0] == 0
    again = load(world, "pymca")
    assert again.version == "1"
    assert content(again, tmp_path) == first
    # What comes then takes the place of none.
    assert run("publish", "alice", "pymca")[0] == 0
    assert load(world, "pymca").version == "3"


@pytest.mark.usefixtures("asleep")
def test_old_versions_go_and_not_the_one_that_counts(run: Run, world: published.World) -> None:
    for _ in range(7):
        assert run("publish", "alice", "pymca", *FOR_ALL)[0] == 0

    assert left_over(world) == [f"v{number}-disk.qcow2" for number in range(3, 8)]


@pytest.mark.usefixtures("asleep")
def test_the_kernel_beside_the_image_comes_along(run: Run, world: published.World) -> None:
    (world.state.images / "base/vmlinuz").write_text("kernel")
    text = (world.machines / "base/machine.toml").read_text()
    text = text.replace("[image]", 'firmware = "direct"\n[image]\nkernel = "vmlinuz"')
    (world.machines / "base/machine.toml").write_text(text)
    saved = published.suspend(world, Path(world.machine.image.file), server="direct")

    code, _, err = run("publish", "alice/direct", "mine")

    assert (code, err) == (0, ""), saved
    machine = load(world, "mine")
    assert Path(machine.image.kernel).name == "v1-vmlinuz"
    assert Path(machine.image.kernel).read_text() == "kernel"


async def test_a_guest_runs_as_one(run: Run, world: published.World, tmp_path: Path) -> None:
    folder = world.state.images / "painter"
    folder.mkdir()
    guests.make_disk(folder / "disk.raw")
    (world.machines / "painter").mkdir()
    (world.machines / "painter/machine.toml").write_text(
        'name = "Painter"\n[image]\nfile = "disk.raw"\nformat = "raw"\n'
    )
    machine = load_machine(world.machines / "painter", world.state.images)
    async with vms.running_guest(vms.make_spec(world.state.root, machine)) as (guest, prepared):
        await vms.suspend(guest, prepared)

    code, _, err = run("publish", "alice", "green")
    assert (code, err) == (0, "")
    # The base is not needed any more.
    (folder / "disk.raw").unlink()

    spec = vms.make_spec(world.state.root, load(world, "green"), server_name="new")
    async with vms.running_guest(spec) as (guest, _):
        async with asyncio.timeout(30):
            while (await vms.screen(guest)).getpixel((9, 9)) != guests.GREEN:
                pass


@pytest.mark.usefixtures("asleep")
def test_removed_and_restored_it_has_all_its_versions(run: Run, world: published.World) -> None:
    run("publish", "alice", "pymca", *FOR_ALL)
    run("publish", "alice", "pymca")

    code, out, err = run("remove", "pymca")
    assert (code, err) == (0, "")
    assert left_over(world) == []
    assert run("restore", json.loads(run("removed", "--json")[1])[0]["name"])[0] == 0, out
    assert left_over(world) == ["v1-disk.qcow2", "v2-disk.qcow2"]
    assert load(world, "pymca").version == "2"


# Refused, with everything as it was


@pytest.mark.usefixtures("asleep")
def test_not_while_it_runs(run: Run, world: published.World, asleep: SavedPaths) -> None:
    lock = asleep.root.parent.parent / "lock"
    script = "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX)"
    script += "; print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        code, _, err = run("publish", "alice", "pymca")
        holder.kill()

    assert (code, err.splitlines()[0]) == (1, "error: The desktop is running.")
    assert left_over(world) == []


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bob", "pymca"), "No desktop of 'bob' sleeps on this host."),
        (("alice/other", "pymca"), "No desktop of 'alice/other' sleeps"),
        (("alice", "base"), "There is a machine 'base' already."),
        (("alice", "Not An Id"), "'Not An Id' cannot be a machine's id."),
        (("alice", "../up"), "'../up' cannot be a machine's id."),
        (("alice", "pymca", "--saved", "19a0000009"), "has gone on since that was asked for."),
    ],
)
def test_what_cannot_be_published(
    run: Run, world: published.World, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = run("publish", *arguments)

    assert code == 1
    assert said in err
    assert left_over(world) == []


@pytest.mark.usefixtures("asleep")
def test_nobody_gives_anothers_machine_a_version(run: Run, world: published.World) -> None:
    run("publish", "alice", "pymca")
    run("edit", "pymca", "--set", "owner=bob")

    assert "There is a machine 'pymca' already." in run("publish", "alice", "pymca")[2]
    assert left_over(world) == ["v1-disk.qcow2"]


def test_a_disk_that_names_a_data_file_is_refused(
    run: Run, world: published.World, asleep: SavedPaths, tmp_path: Path
) -> None:
    """QEMU would write what lies there into everybody's machine."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(1 << 20))
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on"]
    asleep.layer(0).unlink()
    subprocess.run([*command, str(asleep.layer(0)), "1M"], check=True)

    code, _, err = run("publish", "alice", "pymca")

    assert code == 1
    assert "it keeps its data in another file" in err
    assert not (world.state.machines / "pymca").exists()


def test_a_backing_file_in_the_disk_is_not_followed(
    run: Run, world: published.World, asleep: SavedPaths, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(17 << 20))
    asleep.layer(0).unlink()
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw"]
    subprocess.run([*command, str(asleep.layer(0))], check=True)

    assert run("publish", "alice", "pymca")[0] == 0
    assert content(load(world, "pymca"), tmp_path) == Path(world.machine.image.file).read_bytes()


def test_a_link_in_the_place_of_the_disk_is_not_followed(
    run: Run, world: published.World, asleep: SavedPaths, tmp_path: Path
) -> None:
    asleep.layer(0).rename(tmp_path / "elsewhere.qcow2")
    asleep.layer(0).symlink_to(tmp_path / "elsewhere.qcow2")

    code, _, err = run("publish", "alice", "pymca")

    assert code == 1
    assert "The desktop's disk cannot be copied" in err


def test_what_began_from_another_image_is_refused(
    run: Run, world: published.World, asleep: SavedPaths
) -> None:
    image = Path(world.machine.image.file)
    os.utime(image, (1, 1))

    code, _, err = run("publish", "alice", "pymca")

    assert code == 1
    assert "The image of 'base' that the desktop of 'alice' began from is not there any more." in err


@pytest.mark.usefixtures("asleep")
def test_a_full_disk_leaves_all_as_it_was(
    run: Run, world: published.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("publish", "alice", "pymca", *FOR_ALL)
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("qemuspawner.machines.image_files.shutil.disk_usage", lambda _path: usage)

    code, _, err = run("publish", "alice", "pymca")

    assert code == 1
    assert "1 MiB are free" in err
    assert load(world, "pymca").version == "1"
    assert left_over(world) == ["v1-disk.qcow2"]
