"""Disk images that reach for other files, lie about themselves, or are made to break who reads them."""

import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import guests
from baits import WAYS, Bait

from qemuspawner.machine import ImageFormat

Make = Callable[[Path, Bait], object]


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """`make` writes it at a path; `image_format` is what its machine.toml says."""

    name: str
    image_format: ImageFormat
    make: Make


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def patched(image_format: str, *patches: tuple[int, bytes]) -> Make:
    """An honest image but for these bytes; an offset below 0 counts from its end."""

    def make(path: Path, _bait: Bait) -> None:
        disk = guests.make_disk(path, image_format)
        disk.chmod(0o600)
        data = bytearray(disk.read_bytes())
        for offset, new in patches:
            at = offset if offset >= 0 else len(data) + offset
            data[at : at + len(new)] = new
        disk.write_bytes(data)

    return make


def qcow2_field(form: str, offset: int, value: int) -> Make:
    return patched("qcow2", (offset, struct.pack(form, value)))


def qcow2_extension(kind: int, length: int) -> Make:
    """With this in the place of its first header extension."""
    return patched("qcow2", (112, struct.pack(">II", kind, length)))


def qcow2_made(*options: str, size: str = "1M") -> Make:
    return lambda path, _bait: qemu_img("create", "-q", "-f", "qcow2", *options, path, size)


def backed(image_format: str, way: str) -> Make:
    def make(path: Path, bait: Bait) -> None:
        name = bait.name(way)
        qemu_img("create", "-q", "-f", image_format, "-u", "-b", name, "-F", "raw", path, "1M")

    return make


def qcow2_with_data_file(path: Path, bait: Bait) -> None:
    """What qemu-img would write into the bait goes into a file of that name's length, which it then names."""
    own = bait.file.with_name("s" * len(bait.file.name))
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={own},data_file_raw=on", path, "1M")
    own.unlink()
    path.write_bytes(path.read_bytes().replace(os.fsencode(own), os.fsencode(bait.file)))


def qcow2_with_snapshot(path: Path, _bait: Bait) -> None:
    guests.make_disk(path, "qcow2").chmod(0o600)
    qemu_img("snapshot", "-c", "before", path)


def vmdk_flat(path: Path, bait: Bait) -> None:
    path.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        f'RW 8 FLAT "{bait.file}" 0\n'
    )


def vmdk_with_parent(path: Path, _bait: Bait) -> None:
    disk = guests.make_disk(path, "vmdk")
    disk.chmod(0o600)
    disk.write_bytes(disk.read_bytes().replace(b"parentCID=ffffffff", b"parentCID=12345678"))


ONE_FILE = 'createType="monolithicSparse"'


def vmdk_described(*lines: str, capacity: int = 2048, sector: int = 1, sectors: int = 20) -> Make:
    """A VMDK in one file whose description says something else than it should; {bait} is the bait's file."""

    def make(path: Path, bait: Bait) -> None:
        disk = guests.make_disk(path, "vmdk")
        disk.chmod(0o600)
        data = bytearray(disk.read_bytes())
        struct.pack_into("<Q", data, 12, capacity)
        struct.pack_into("<QQ", data, 28, sector, sectors)
        text = "\n".join(("# Disk DescriptorFile", *lines, "")).replace("{bait}", str(bait.file))
        data[512 : 512 + 10240] = text.encode().ljust(10240, b"\0")
        disk.write_bytes(data)

    return make


def honest(image_format: str) -> Make:
    """For who claims it to be something else."""
    return lambda path, _bait: guests.make_disk(path, image_format)


def raw_that_begins_as(image_format: str) -> Make:
    """What a guest can write to its raw disk: a header that names the bait."""

    def make(path: Path, bait: Bait) -> None:
        with path.open("wb") as file:
            file.truncate(1 << 20)
        header = path.with_name("header")
        (vmdk_flat if image_format == "vmdk" else backed(image_format, "path"))(header, bait)
        with path.open("r+b") as file:
            file.write(header.read_bytes()[: 1 << 16])

    return make


def iso_that_begins_as_qcow2(path: Path, bait: Bait) -> None:
    """Both at once: an ISO's own words lie behind its first 32 KiB, which are for others."""
    guests.make_disk(path, "iso").chmod(0o600)
    header = path.with_name("header")
    backed("qcow2", "path")(header, bait)
    with path.open("r+b") as file:
        file.write(header.read_bytes()[: 1 << 15])


def _all(image_format: ImageFormat, makes: dict[str, Make]) -> Sequence[Hostile]:
    return [
        Hostile(name=f"{image_format}: {name}", image_format=image_format, make=make)
        for name, make in makes.items()
    ]


HOSTILE: Sequence[Hostile] = (
    *_all(
        "qcow2",
        {
            **{f"backing file by {way}": backed("qcow2", way) for way in WAYS},
            "data file": qcow2_with_data_file,
            # qemu-img itself times its key derivation, and fails on a busy host.
            "encrypted": qcow2_field(">I", 32, 2),
            "17 TiB": qcow2_made("-o", "cluster_size=2M", size="17T"),
            "unknown feature": qcow2_field(">Q", 72, 1 << 40),
            "clusters of a gigabyte": qcow2_field(">I", 20, 30),
            "L1 table of gigabytes": qcow2_field(">I", 36, 0x7FFFFFFF),
            "L1 table too short": qcow2_field(">Q", 24, 1 << 40),
            "L1 table outside": qcow2_field(">Q", 40, 1 << 40),
            "L1 table over the header": qcow2_field(">Q", 40, 0),
            "refcounts of gigabytes": qcow2_field(">I", 56, 0xFFFFFF),
            "refcounts outside": qcow2_field(">Q", 48, (1 << 63) - (1 << 16)),
            "refcounts too wide": qcow2_field(">I", 96, 40),
            "header without end": qcow2_field(">I", 100, 0xFFFFFFF8),
            "corrupt": qcow2_field(">Q", 72, 2),
            "snapshots": qcow2_with_snapshot,
            # Without the feature that would make QEMU open it.
            "names a data file": qcow2_extension(0x44415441, 8),
            "names a cipher": qcow2_extension(0x0537BE77, 16),
            "unknown extension": qcow2_extension(0x12345678, 8),
            "extension without end": qcow2_extension(0x6803F857, 0xFFFFFFF0),
            "is raw": honest("raw"),
        },
    ),
    *_all(
        "vmdk",
        {
            "flat": vmdk_flat,
            "parent": vmdk_with_parent,
            # QEMU takes the first word of its kind, also in a comment, and opens the extent.
            "without size lists files": vmdk_described(
                '# createType="monolithicFlat"', ONE_FILE, 'RW 2 FLAT "{bait}" 0', capacity=0
            ),
            "two kinds": vmdk_described(ONE_FILE, '#createType="vmfs"'),
            "parent by name alone": vmdk_described(
                "parentCID=ffffffff", ONE_FILE, 'parentFileNameHint="{bait}"'
            ),
            # The header says one sector, and QEMU reads twenty.
            "parent beyond the description": vmdk_described(
                ONE_FILE, "#" * 600, 'parentFileNameHint="{bait}"', sectors=1
            ),
            # QEMU looks for a parent at the second sector, wherever the header says it lies.
            "description elsewhere": vmdk_described(ONE_FILE, sector=2),
            "huge": vmdk_described(ONE_FILE, capacity=1 << 40),
            "is qcow2": backed("qcow2", "path"),
        },
    ),
    *_all(
        "vdi",
        {
            "huge": patched("vdi", (0x170, struct.pack("<Q", 1 << 60))),
            "difference": patched("vdi", (0x1A8, b"p" * 16)),
            "cut off in its blocks": patched("vdi", (0x180, struct.pack("<I", 0xFFFFFFF0))),
        },
    ),
    *_all(
        "vhd",
        {
            "difference": patched("vhd", (-512 + 60, struct.pack(">I", 4))),
            "huge": patched("vhd", (-512 + 48, struct.pack(">Q", 1 << 60))),
        },
    ),
    *_all("vhdx", {"no regions": patched("vhdx", (192 << 10, bytes(8)), (256 << 10, bytes(8)))}),
    *_all(
        "qed",
        {
            **{f"backing file by {way}": backed("qed", way) for way in WAYS},
            "huge": patched("qed", (48, struct.pack("<Q", 1 << 60))),
        },
    ),
    *_all("iso", {"begins as qcow2": iso_that_begins_as_qcow2, "is raw": honest("raw")}),
    *_all(
        "raw",
        {
            **{f"begins as {kind}": raw_that_begins_as(kind) for kind in ("qcow2", "qed", "vmdk")},
            "fifo": lambda path, _bait: os.mkfifo(path),
            "folder": lambda path, _bait: path.mkdir(),
            "device": lambda path, _bait: path.symlink_to("/dev/zero"),
            "missing": lambda _path, _bait: None,
        },
    ),
)
