"""A small Linux that no kernel ever started: ext4 in a partition, and a desktop that changed it."""

import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import vms

from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.saving import image_identity
from qemuspawner.saved import Fingerprint, Saved, write_manifest

START = 1 << 20
_STATUS = "Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: {version}\n\n"
_TEXT = """
name = "Base"
icon = "icon.svg"
[image]
file = "disk.raw"
format = "raw"
"""


@dataclass(frozen=True, kw_only=True)
class World:
    state: StatePaths
    machines: Path

    @property
    def machine(self) -> Machine:
        return load_machine(self.machines / "base", self.state.images)


def make_world(root: Path) -> World:
    """The machine "base" with a small ext4 system on it."""
    world = World(state=StatePaths(root=root / "state"), machines=root / "machines")
    add_base(world, root)
    return world


def add_base(world: World, root: Path) -> None:
    """Put the machine there; what it is made from lies in `root`."""
    world.state.sessions.mkdir(parents=True, exist_ok=True)
    (world.machines / "base").mkdir(parents=True)
    (world.machines / "base/machine.toml").write_text(_TEXT)
    (world.machines / "base/icon.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    folder = world.state.images / "base"
    folder.mkdir(parents=True)
    tree = root / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "var/lib/dpkg").mkdir(parents=True)
    (tree / "etc/motd").write_text("hello\n")
    (tree / "etc/issue").write_text("Base\n")
    (tree / "etc/many").mkdir()
    # More than a block has names for.
    for number in range(300):
        (tree / f"etc/many/a-file-with-a-long-name-{number}").touch()
    (tree / "var/lib/dpkg/status").write_text(
        _STATUS.format(name="bash", version="5.2") + _STATUS.format(name="vim", version="9.0")
    )
    make_ext4(folder / "disk.raw", tree)
    (folder / "disk.raw").chmod(0o444)


def make_ext4(disk: Path, tree: Path) -> None:
    """A disk of 17 MiB with one partition, which holds `tree`."""
    inner = disk.with_suffix(".ext4")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(inner), "16M"], check=True)
    sector = bytearray(START)
    sector[0x1BE:0x1CE] = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", START // 512, (16 << 20) // 512)
    sector[510:512] = b"\x55\xaa"
    disk.write_bytes(bytes(sector) + inner.read_bytes())
    inner.unlink()


def edit_ext4(disk: Path, *commands: str) -> None:
    """Change the file system of such a disk with debugfs."""
    inner = disk.with_suffix(".ext4")
    inner.write_bytes(disk.read_bytes()[START:])
    for command in commands:
        subprocess.run(["debugfs", "-w", "-R", command, str(inner)], check=True, capture_output=True)
    disk.write_bytes(disk.read_bytes()[:START] + inner.read_bytes())
    inner.unlink()


def suspend(world: World, changed: Path, *, server: str = "", name: str = "19a0000000") -> SavedPaths:
    """A desktop of alice's that sleeps, whose disk is what the raw disk `changed` holds."""
    machine = world.machine
    spec = vms.make_spec(world.state.root, machine, server_name=server)
    paths = world.state.session(spec.session_id)
    folder = SavedPaths(root=paths.saved / name)
    folder.root.mkdir(parents=True, exist_ok=True)
    paths.lock.touch(0o600)
    driver = "qcow2" if machine.image.format == "qcow2" else "raw"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-B", machine.image.file, "-F", driver]
    subprocess.run([*command, str(changed), str(folder.layer(0))], check=True)
    saved = Saved(
        kind="suspended",
        name=name,
        saved_at=time.time(),
        fingerprint=Fingerprint(
            qemu="7.2",
            accelerator="tcg",
            cpu="max",
            machine="",
            image=image_identity(machine.image),
            cpus=1,
            memory_mib=64,
        ),
        memory="streamed",
        layers=1,
        files={},
        size_bytes=0,
        machine_id=machine.id,
        spec=spec,
    )
    write_manifest(folder.root, saved)
    return folder


def change_disk(world: World, target: Path) -> Path:
    """The base's disk, after its user installed, changed and removed something."""
    shutil.copyfile(world.machine.image.file, target)
    target.chmod(0o644)
    status, motd = target.with_suffix(".status"), target.with_suffix(".motd")
    status.write_text(
        _STATUS.format(name="bash", version="5.3") + _STATUS.format(name="pymca", version="5.8.1")
    )
    motd.write_text("changed\n")
    edit_ext4(
        target,
        "rm /var/lib/dpkg/status",
        f"write {status} /var/lib/dpkg/status",
        "rm /etc/motd",
        f"write {motd} /etc/motd",
        "rm /etc/issue",
        "mkdir /opt",
        f"write {motd} /opt/tool",
    )
    return target
