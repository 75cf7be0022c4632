"""Images that are not what they claim to be, or that reach for other files, never get to QEMU."""

import json
import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from random import Random

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


def overwritten(folder: Path, form: str, offset: int, value: int) -> Path:
    """An honest qcow2 but for one field of its header."""
    disk = guests.make_disk(folder / "x", "qcow2")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    struct.pack_into(form, data, offset, value)
    disk.write_bytes(data)
    return disk


def hostile_qcow2_clusters_of_a_gigabyte(folder: Path) -> Path:
    return overwritten(folder, ">I", 20, 30)


def hostile_qcow2_l1_table_of_gigabytes(folder: Path) -> Path:
    return overwritten(folder, ">I", 36, 0x7FFFFFFF)


def hostile_qcow2_l1_table_too_short(folder: Path) -> Path:
    return overwritten(folder, ">Q", 24, 1 << 40)


def hostile_qcow2_l1_table_outside(folder: Path) -> Path:
    return overwritten(folder, ">Q", 40, 1 << 40)


def hostile_qcow2_l1_table_over_the_header(folder: Path) -> Path:
    return overwritten(folder, ">Q", 40, 0)


def hostile_qcow2_refcounts_of_gigabytes(folder: Path) -> Path:
    return overwritten(folder, ">I", 56, 0xFFFFFF)


def hostile_qcow2_refcounts_outside(folder: Path) -> Path:
    return overwritten(folder, ">Q", 48, (1 << 63) - (1 << 16))


def hostile_qcow2_refcounts_too_wide(folder: Path) -> Path:
    return overwritten(folder, ">I", 96, 40)


def hostile_qcow2_header_without_end(folder: Path) -> Path:
    return overwritten(folder, ">I", 100, 0xFFFFFFF8)


def hostile_qcow2_corrupt(folder: Path) -> Path:
    return overwritten(folder, ">Q", 72, 2)


def hostile_qcow2_snapshots(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "qcow2")
    disk.chmod(0o600)
    qemu_img("snapshot", "-c", "before", disk)
    return disk


def extended(folder: Path, kind: int, length: int) -> Path:
    """With this in the place of its first header extension."""
    disk = overwritten(folder, ">I", 112, kind)
    data = bytearray(disk.read_bytes())
    struct.pack_into(">I", data, 116, length)
    disk.write_bytes(data)
    return disk


def hostile_qcow2_names_a_data_file(folder: Path) -> Path:
    """Without the feature that would make QEMU open it."""
    return extended(folder, 0x44415441, 8)


def hostile_qcow2_names_a_cipher(folder: Path) -> Path:
    return extended(folder, 0x0537BE77, 16)


def hostile_qcow2_unknown_extension(folder: Path) -> Path:
    return extended(folder, 0x12345678, 8)


def hostile_qcow2_extension_without_end(folder: Path) -> Path:
    return extended(folder, 0x6803F857, 0xFFFFFFF0)


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


def described(folder: Path, description: str, *, capacity: int = 2048, sector: int = 1) -> Path:
    """A VMDK in one file whose description says something else than it should."""
    disk = guests.make_disk(folder / "x", "vmdk")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    struct.pack_into("<Q", data, 12, capacity)
    struct.pack_into("<Q", data, 28, sector)
    data[512 : 512 + 10240] = f"# Disk DescriptorFile\n{description}\n".encode().ljust(10240, b"\0")
    disk.write_bytes(data)
    return disk


ONE_FILE = 'createType="monolithicSparse"'


def hostile_vmdk_without_size_lists_files(folder: Path) -> Path:
    """QEMU takes the first word of its kind, also in a comment, and opens the extent."""
    return described(
        folder, f'# createType="monolithicFlat"\n{ONE_FILE}\nRW 2 FLAT "/etc/passwd" 0', capacity=0
    )


def hostile_vmdk_two_kinds(folder: Path) -> Path:
    return described(folder, f'{ONE_FILE}\n#createType="vmfs"')


def hostile_vmdk_parent_by_name_alone(folder: Path) -> Path:
    return described(folder, f'parentCID=ffffffff\n{ONE_FILE}\nparentFileNameHint="/etc/passwd"')


def hostile_vmdk_parent_beyond_the_description(folder: Path) -> Path:
    """The header says one sector, and QEMU reads twenty."""
    disk = described(folder, f'{ONE_FILE}\n{"#" * 600}\nparentFileNameHint="/etc/passwd"')
    data = bytearray(disk.read_bytes())
    struct.pack_into("<Q", data, 36, 1)
    disk.write_bytes(data)
    return disk


def hostile_vmdk_description_elsewhere(folder: Path) -> Path:
    """QEMU looks for a parent at the second sector, wherever the header says it lies."""
    return described(folder, ONE_FILE, sector=2)


def hostile_vmdk_huge(folder: Path) -> Path:
    return described(folder, ONE_FILE, capacity=1 << 40)


def hostile_vdi_huge(folder: Path) -> Path:
    disk = guests.make_disk(folder / "x", "vdi")
    disk.chmod(0o600)
    data = bytearray(disk.read_bytes())
    struct.pack_into("<Q", data, 0x170, 1 << 60)
    disk.write_bytes(data)
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


_WORDS_OF_VMDK = (
    'createType="monolithicFlat"',
    '#createType="vmfs"',
    'createType="streamOptimized"',
    'parentFileNameHint="/etc/passwd"',
    "parentCID=12345678",
    'RW 2 FLAT "/etc/passwd" 0',
)


def mutate_vmdk(content: bytearray, random: Random) -> None:
    """A field of the header becomes another one, or its description says more."""
    if random.random() < 0.5:
        content[random.randrange(4, 80)] = random.choice((0, 1, 4, 0xFF, random.randrange(256)))
    if random.random() < 0.3:
        struct.pack_into("<Q", content, random.choice((12, 28, 36)), random.choice((0, 1, 2, 21)))
    lines = bytes(content[512:10752]).split(b"\0")[0].split(b"\n")
    for word in random.sample(_WORDS_OF_VMDK, random.choice((0, 0, 0, 1, 1, 2))):
        lines.insert(random.randrange(len(lines)), word.encode())
    if random.random() < 0.2:
        lines.insert(random.randrange(len(lines)), b"#" * 600)
    content[512:10752] = b"\n".join(lines).ljust(10240, b"\0")[:10240]


def test_of_mutated_vmdks_none_leads_qemu_elsewhere(tmp_path: Path) -> None:
    random = Random(7)
    whole = guests.make_disk(tmp_path / "whole", "vmdk").read_bytes()
    path = tmp_path / "mutant"
    opened = 0
    for _ in range(600):
        content = bytearray(whole)
        mutate_vmdk(content, random)
        path.write_bytes(content)
        try:
            check_image(image(path, "vmdk"))
        except ImageError:
            continue
        if opened < 60:
            opened += 1
            done = subprocess.run(
                ["qemu-img", "info", "-U", "-f", "vmdk", "--output=json", str(path)], capture_output=True
            )
            assert b"passwd" not in done.stdout + done.stderr
            assert done.returncode in (0, 1)
    assert opened == 60


MUTANTS = 2000
_FIELDS = (*range(4, 112), *range(112, 600))


def mutate(content: bytearray, random: Random) -> None:
    """A few bytes of header and extensions become others, some of them what does harm."""
    for _ in range(random.randint(1, 3)):
        offset = random.choice(_FIELDS)
        content[offset] = random.choice((0, 1, 4, 0x7F, 0xFF, random.randrange(256)))
    if random.random() < 0.2:
        name = b"/etc/passwd"
        content[0x400 : 0x400 + len(name)] = name
        struct.pack_into(">QI", content, 8, 0x400, len(name))


def test_of_two_thousand_mutated_images_none_leads_qemu_elsewhere(tmp_path: Path) -> None:
    """Of those that are accepted QEMU's own tool opens a sample: it never names another file, nor crashes."""
    # The same ones each time: a failure can be looked at.
    random = Random(6)
    honest = honest_header("qcow2")
    whole = guests.make_disk(tmp_path / "whole", "qcow2").read_bytes()
    path = tmp_path / "mutant"
    accepted = []
    for _ in range(MUTANTS):
        content = bytearray(honest)
        mutate(content, random)
        mutant = bytes(content) + whole[len(content) :]
        path.write_bytes(mutant)
        try:
            check_image(image(path, "qcow2"))
        except ImageError as exc:
            assert "'mutant'" in exc.message
        else:
            accepted.append(mutant)

    assert MUTANTS // 20 < len(accepted) < MUTANTS * 9 // 10
    for mutant in random.sample(accepted, 60):
        path.write_bytes(mutant)
        done = subprocess.run(
            ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(path)],
            capture_output=True, timeout=20,
        )  # fmt: skip
        assert done.returncode in (0, 1)
        if done.returncode == 0:
            info = json.loads(done.stdout)
            assert "backing-filename" not in info
            assert "data-file" not in info.get("format-specific", {}).get("data", {})


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
