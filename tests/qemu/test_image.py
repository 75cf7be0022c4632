"""Images that are not what they claim to be, or that reach for other files, never get to QEMU."""

import json
import struct
import subprocess
from pathlib import Path

import guests
import pytest
from baits import laid_bait
from hostile_images import qcow2_with_data_file, qemu_img
from mutated_images import FORMATS

from qemuspawner.errors import ImageError
from qemuspawner.machine import Image, Mib
from qemuspawner.qemu.image import check_image, create_overlay, repair_layer

CLUSTER = 65536  # bytes of a qcow2, as qemu-img makes it


def image(path: Path, image_format: str) -> Image:
    return Image(file=str(path), format=image_format)  # type: ignore[arg-type]


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_honest_image_is_accepted(image_format: str, tmp_path: Path) -> None:
    check_image(image(guests.make_disk(tmp_path / "disk", image_format), image_format))


@pytest.mark.parametrize("claimed", FORMATS)
@pytest.mark.parametrize("real", ["qcow2", "vmdk", "raw"])
def test_an_image_in_another_format_is_refused(claimed: str, real: str, tmp_path: Path) -> None:
    """Also a raw disk whose first bytes a guest has turned into a qcow2 header."""
    disk = guests.make_disk(tmp_path / "disk", real)
    if claimed == real:
        check_image(image(disk, claimed))
        return

    with pytest.raises(ImageError, match=f"machine.toml says {claimed}"):
        check_image(image(disk, claimed))


def test_the_disk_grows_to_what_machine_toml_asks_for(tmp_path: Path) -> None:
    base = Image(file=str(guests.make_disk(tmp_path / "disk", "vdi")), format="vdi", disk=Mib(64))

    create_overlay(tmp_path / "overlay", base)

    info = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(tmp_path / "overlay")],
        capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(info.stdout)["virtual-size"] == 64 << 20


def test_a_disk_smaller_than_the_image_is_refused_with_both_sizes(tmp_path: Path) -> None:
    """qemu-img would cut the image off without a word."""
    qemu_img("create", "-f", "qcow2", tmp_path / "disk", "8M")
    base = Image(file=str(tmp_path / "disk"), format="qcow2", disk=Mib(4))

    with pytest.raises(ImageError, match="disk of 4 MiB, and the image's own has 8 MiB"):
        create_overlay(tmp_path / "overlay", base)


@pytest.mark.parametrize(
    "options",
    [
        ["compat=0.10"],
        ["compat=1.1", "cluster_size=512"],
        ["cluster_size=2M"],
        ["refcount_bits=1"],
        ["refcount_bits=64"],
        ["compression_type=zstd"],
        ["extended_l2=on", "cluster_size=128k"],
        ["lazy_refcounts=on"],
        ["preallocation=metadata"],
    ],
)
def test_a_qcow2_of_every_kind_that_qemu_makes_is_accepted(options: list[str], tmp_path: Path) -> None:
    for size in ("0", "1M", "100G"):
        if "preallocation=metadata" in options and size == "100G":
            continue
        path = tmp_path / size
        qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join(options), path, size)

        check_image(image(path, "qcow2"))


def test_a_qcow2_with_bitmaps_of_a_backup_program_is_accepted(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "x", "1M")
    qemu_img("bitmap", "--add", tmp_path / "x", "monday")

    check_image(image(tmp_path / "x", "qcow2"))


def test_an_image_that_qemu_cannot_open_is_refused_by_name(tmp_path: Path) -> None:
    """With QEMU's own reason, and no word of where it lies."""
    disk = guests.make_disk(tmp_path / "disk", "vdi")
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        # Blocks of another size than a mebibyte.
        file.seek(0x178)
        file.write(b"\xff\xff")

    with pytest.raises(ImageError) as refused:
        create_overlay(tmp_path / "overlay", image(disk, "vdi"))

    assert refused.value.message == (
        "The disk image 'disk' is refused: QEMU cannot open it (unsupported VDI image (block size 1114111 is "
        "not 1048576))."
    )


def test_what_a_killed_qemu_had_taken_of_a_disk_is_given_back(tmp_path: Path) -> None:
    """A cluster that is counted and that nothing refers to; what the disk holds is left alone."""
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", disk, "16M")
    clusters = -(-disk.stat().st_size // CLUSTER) + 1
    content = bytearray(disk.read_bytes().ljust(clusters * CLUSTER, b"\0"))
    (table,) = struct.unpack_from(">Q", content, 48)
    (block,) = struct.unpack_from(">Q", content, table)
    struct.pack_into(">H", content, block + 2 * (clusters - 1), 1)
    disk.write_bytes(content)
    assert subprocess.run(["qemu-img", "check", disk], capture_output=True).returncode == 3

    repair_layer(disk)

    assert subprocess.run(["qemu-img", "check", disk], capture_output=True).returncode == 0


def test_a_disk_that_reaches_for_other_files_is_not_repaired(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    with laid_bait(tmp_path / "bait") as bait:
        qcow2_with_data_file(disk, bait)

    with pytest.raises(ImageError, match="refused"):
        repair_layer(disk)
