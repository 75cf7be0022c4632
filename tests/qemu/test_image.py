"""Images that are not what they claim to be, or that reach for other files, never get to QEMU."""

import json
import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import guests
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuspawner.errors import ImageError
from qemuspawner.machine import Image, Mib
from qemuspawner.qemu.image import check_image, create_overlay

FORMATS = ["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed", "iso"]


def image(path: Path, image_format: str) -> Image:
    return Image(file=str(path), format=image_format)  # type: ignore[arg-type]


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


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


def hostile_qcow2_backing(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", folder / "x", "1M")
    return folder / "x"


def hostile_qcow2_data_file(folder: Path) -> Path:
    secret = folder / "secret"
    secret.write_bytes(b"s" * (1 << 20))
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", folder / "x", "1M")
    return folder / "x"


def hostile_qcow2_encrypted(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "qcow2")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    # crypt_method: LUKS. qemu-img itself times its key derivation, and fails on a busy host.
    struct.pack_into(">I", data, 32, 2)
    disk.write_bytes(data)
    return disk


def hostile_qcow2_huge(folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=2M", folder / "x", "17T")
    return folder / "x"


def hostile_qcow2_unknown_feature(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "qcow2")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    struct.pack_into(">Q", data, 72, 1 << 40)
    disk.write_bytes(data)
    return disk


def hostile_vmdk_flat(folder: Path) -> Path:
    (folder / "x").write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        'RW 8 FLAT "/etc/passwd" 0\n'
    )
    return folder / "x"


def hostile_vmdk_parent(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "vmdk")
    disk.chmod(0o600)
    disk.write_bytes(disk.read_bytes().replace(b"parentCID=ffffffff", b"parentCID=12345678"))
    return disk


def hostile_vdi_difference(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "vdi")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    data[0x1A8:0x1B8] = b"p" * 16
    disk.write_bytes(data)
    return disk


def hostile_vhd_difference(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "vhd")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    struct.pack_into(">I", data, len(data) - 512 + 60, 4)
    disk.write_bytes(data)
    return disk


def hostile_qed_backing(folder: Path) -> Path:
    qemu_img("create", "-f", "qed", "-u", "-b", "/etc/passwd", "-F", "raw", folder / "x", "1M")
    return folder / "x"


def hostile_raw_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x")
    return folder / "x"


def hostile_raw_folder(folder: Path) -> Path:
    (folder / "x").mkdir()
    return folder / "x"


def hostile_raw_missing(folder: Path) -> Path:
    return folder / "x"


HOSTILE = [value for name, value in globals().items() if name.startswith("hostile_")]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__.removeprefix("hostile_"))
def test_a_hostile_image_is_refused_by_name(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The sentence names the file and says what is wrong with it."""
    image_format = make.__name__.split("_")[1]

    with pytest.raises(ImageError, match=r"The disk image 'x' (is|cannot be) "):
        check_image(image(make(tmp_path), image_format))


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


@cache
def honest_header(image_format: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return guests.make_disk(Path(folder) / "disk", image_format).read_bytes()[: 1 << 17]


@settings(max_examples=300, deadline=None)
@given(
    image_format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=5),
    length=st.integers(0, 1 << 17),
)
def test_a_mangled_image_is_accepted_or_refused_but_never_crashes(
    image_format: str, changes: list[tuple[int, int]], length: int
) -> None:
    """Headers cut anywhere and with any bytes overwritten."""
    content = bytearray(honest_header(image_format))
    for offset, value in changes:
        content[offset] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content[:length])

        try:
            check_image(image(path, image_format))
        except ImageError as exc:
            assert "'x'" in exc.message
