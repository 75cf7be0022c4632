"""Images of other formats become what machine.toml says, in the jail; bombs and liars become nothing."""

import bz2
import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guests
import pytest

from qemuspawner.errors import ImageError, MachineError, QemuSpawnerError
from qemuspawner.machine import Image, Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.machines.image_files import Step, import_image
from qemuspawner.paths import DIGESTS, StatePaths
from qemuspawner.qemu import convert
from qemuspawner.qemu.convert import measure

TEXT = '\nname = "Alma"\n[image]\nfile = "disk"\nformat = "{}"\n'


@pytest.fixture
def make(tmp_path: Path, write_machine: Callable[..., Path]) -> Callable[[str], Machine]:
    def run(image_format: str) -> Machine:
        return load_machine(write_machine(TEXT.format(image_format), name="alma"), tmp_path / "images")

    return run


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., list[Step]]:
    def run(machine: Machine, file: Path, **more: Any) -> list[Step]:
        steps: list[Step] = []
        state = StatePaths(root=tmp_path)
        import_image(machine, file, state=state, progress=steps.append, convert=True, **more)
        return steps

    return run


def disk_in(machine: Machine, folder: Path) -> bytes:
    """What a guest would read."""
    raw = folder / "read.raw"
    command = ["qemu-img", "convert", "-f", machine.image.format, "-O", "raw", machine.image.file, str(raw)]
    subprocess.run(command, check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("target", ["qcow2", "raw"])
@pytest.mark.parametrize("source", ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed"])
def test_every_format_becomes_another_one(
    source: str,
    target: str,
    make: Callable[[str], Machine],
    bring: Callable[..., list[Step]],
    tmp_path: Path,
) -> None:
    machine = make(target)

    steps = bring(machine, guests.make_disk(tmp_path / "there", source))

    assert disk_in(machine, tmp_path).startswith(guests.BOOT_SECTOR)
    assert ("converting" in {step.step for step in steps}) is (source != target)
    assert {path.name for path in Path(machine.image.file).parent.iterdir()} == {"disk", DIGESTS}


def test_a_compressed_image_of_vmware_is_converted(
    make: Callable[[str], Machine], bring: Callable[..., list[Step]], tmp_path: Path
) -> None:
    """As it lies in an OVA."""
    raw = guests.make_disk(tmp_path / "raw")
    options = ["-o", "subformat=streamOptimized"]
    there = tmp_path / "there"
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", *options, str(raw), str(there)], check=True)
    machine = make("qcow2")

    bring(machine, there)

    assert disk_in(machine, tmp_path).startswith(guests.BOOT_SECTOR)


def test_nothing_is_converted_into_a_format_of_others(
    make: Callable[[str], Machine], bring: Callable[..., list[Step]], tmp_path: Path
) -> None:
    with pytest.raises(MachineError, match=r"in the format qcow2, and nothing is converted into vdi"):
        bring(make("vdi"), guests.make_disk(tmp_path / "there", "qcow2"))


@pytest.mark.parametrize("kind", ["backing file", "flat", "parent", "snapshots"])
def test_what_reaches_for_other_files_is_not_even_shown_to_the_tool(
    kind: str, make: Callable[[str], Machine], bring: Callable[..., list[Step]], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    match kind:
        case "backing file":
            create = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw"]
            subprocess.run([*create, str(there), "1M"], check=True)
        case "flat":
            there.write_text(
                '# Disk DescriptorFile\ncreateType="monolithicFlat"\nRW 8 FLAT "/etc/passwd" 0\n'
            )
        case "parent":
            guests.make_disk(there, "vmdk").chmod(0o600)
            there.write_bytes(
                there.read_bytes().replace(b"version=1\n", b'parentFileNameHint="/etc/passwd"\n')
            )
        case "snapshots":
            guests.make_disk(there, "qcow2").chmod(0o600)
            subprocess.run(["qemu-img", "snapshot", "-c", "one", str(there)], check=True)
    machine = make("raw")
    Path(machine.image.file).parent.mkdir(parents=True)
    Path(machine.image.file).write_text("old")

    with pytest.raises(ImageError, match=r"The disk image 'disk' is refused: it "):
        bring(machine, there)

    assert Path(machine.image.file).read_text() == "old"


@pytest.mark.parametrize(
    ("tool", "pack"), [("gzip", gzip.compress), ("xz", lzma.compress), ("bzip2", bz2.compress)]
)
def test_a_packed_image_is_not_taken_for_a_raw_disk(
    tool: str,
    pack: Callable[[bytes], bytes],
    make: Callable[[str], Machine],
    bring: Callable[..., list[Step]],
    tmp_path: Path,
) -> None:
    (tmp_path / "there").write_bytes(pack(guests.BOOT_SECTOR))

    with pytest.raises(ImageError, match=f"The image of 'alma' is packed by {tool}"):
        bring(make("raw"), tmp_path / "there")


def test_a_disk_of_terabytes_that_takes_no_room_is_refused_where_it_would(
    make: Callable[[str], Machine], bring: Callable[..., list[Step]], tmp_path: Path
) -> None:
    """A sparse bomb: a qcow2 of kilobytes, as raw 15 TiB."""
    there = tmp_path / "there"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(there), "15T"], check=True)

    with pytest.raises(MachineError, match=r"takes 15 TiB more; .* are free"):
        bring(make("raw"), there)


def test_a_disk_larger_than_disks_may_be_is_refused(tmp_path: Path) -> None:
    """Of a VHDX the size lies deep in its tables, where only the tool looks."""
    there = tmp_path / "there"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", str(there), "20T"], check=True)

    with pytest.raises(ImageError, match="20 TiB is larger than 16 TiB"):
        measure(Image(file=str(there), format="vhdx"), target="qcow2", folder=tmp_path)


def test_a_damaged_image_is_refused_in_the_tools_words(
    make: Callable[[str], Machine], bring: Callable[..., list[Step]], tmp_path: Path
) -> None:
    there = guests.make_disk(tmp_path / "there", "vdi")
    there.chmod(0o600)
    data = bytearray(there.read_bytes())
    struct.pack_into("<I", data, 0x178, 12345)  # the size of its blocks
    there.write_bytes(data)

    with pytest.raises(ImageError, match=r"in the format vdi cannot be converted: .*block size"):
        bring(make("qcow2"), there)


def test_a_disk_that_fills_while_it_is_converted_leaves_the_old_image(
    make: Callable[[str], Machine],
    bring: Callable[..., list[Step]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit of what may be written takes the disk's place."""
    raw = tmp_path / "raw"
    raw.write_bytes(guests.BOOT_SECTOR + b"x" * (8 << 20))
    there = tmp_path / "there"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(there)], check=True)
    machine = make("raw")
    Path(machine.image.file).parent.mkdir(parents=True)
    Path(machine.image.file).write_text("old")
    # 4 MiB, of 8.
    monkeypatch.setattr(convert, "_SPARE_MIB", -4)
    with pytest.raises(
        QemuSpawnerError, match=r"cannot be converted: .*(File too large|error while writing)"
    ):
        bring(machine, there)

    assert Path(machine.image.file).read_text() == "old"
