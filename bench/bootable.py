"""The demo machine's disk with a boot loader, so that it starts wherever a disk does: DARTS has nothing else.

A partition for syslinux, the kernel and its initial RAM disk, and one that is the demo machine's file system;
the initial RAM disk also knows IDE disks. Made without mounting anything. Needs syslinux, mtools and debugfs.
"""

import gzip
import struct
import subprocess
from pathlib import Path

_SECTOR = 512
_BOOT_AT, _BOOT_BYTES = 2**20, 32 * 2**20
_MODULES = ("ata_piix", "sd_mod")
_OWN_LIST = ("virtio_pci", "virtio_blk", "crc32c-intel", "crc32c_generic", "ext4")
_MBR = Path("/usr/lib/syslinux/mbr/mbr.bin")
# As the demo machine starts, by emulation too; the disk is found by its file system, however it is attached.
_OPTIONS = "rw quiet mitigations=off net.ifnames=0 vt.global_cursor_default=0 norandmaps"


def make_bootable(image: Path, disk: Path, work: Path) -> None:
    """Write the raw `disk` from the folder `image` of the demo machine; `work` is for what lies between."""
    root = work / "root.raw"
    _run("qemu-img", "convert", "-O", "raw", image / "disk.qcow2", root)
    uuid = _run("blkid", "-p", "-s", "UUID", "-o", "value", root).strip()
    table = work / "fstab"
    table.write_text(f"UUID={uuid} / ext4 rw,noatime 0 0\n")
    _debugfs(root, "rm /etc/fstab", f"write {table} /etc/fstab")
    ramdisk = work / "initrd"
    # Linux looks for the next archive at a multiple of four.
    ramdisk.write_bytes(_to_four((image / "initrd").read_bytes()) + _archive(_modules(root, work)))
    config = work / "syslinux.cfg"
    config.write_text(
        f"DEFAULT linux\nLABEL linux\n KERNEL vmlinuz\n INITRD initrd\n APPEND root=UUID={uuid} {_OPTIONS}\n"
    )
    root_at = _BOOT_AT + _BOOT_BYTES
    _write_table(disk, root.stat().st_size)
    drive = f"{disk}@@{_BOOT_AT}"
    _run("mformat", "-i", drive, "-T", str(_BOOT_BYTES // _SECTOR), "-H", str(_BOOT_AT // _SECTOR), "::")
    _run("mcopy", "-i", drive, config, ramdisk, image / "vmlinuz", "::")
    _run("syslinux", "--install", "--offset", str(_BOOT_AT), disk)
    _run("dd", f"if={root}", f"of={disk}", "bs=1M", f"seek={root_at // 2**20}", "conv=sparse,notrunc")
    root.unlink()


def _write_table(disk: Path, root_bytes: int) -> None:
    """A master boot record with the two partitions; the first one is started from."""
    entries = b""
    for active, kind, at, size in (
        (0x80, 0x0E, _BOOT_AT, _BOOT_BYTES),
        (0, 0x83, _BOOT_AT + _BOOT_BYTES, root_bytes),
    ):
        # Cylinders, heads and sectors are all ones: too large for them, see the numbers behind.
        chs = b"\xfe\xff\xff"
        entries += struct.pack("<B3sB3sII", active, chs, kind, chs, at // _SECTOR, size // _SECTOR)
    with disk.open("wb") as file:
        file.write(_MBR.read_bytes().ljust(446, b"\0") + entries.ljust(64, b"\0") + b"\x55\xaa")
        file.truncate(_BOOT_AT + _BOOT_BYTES + root_bytes)


def _modules(root: Path, work: Path) -> dict[str, bytes]:
    """What the initial RAM disk is given beside its own: the modules of IDE disks, and the list of all."""
    listed = _debugfs(root, "ls -p /usr/lib/modules").splitlines()
    (version,) = (name for line in listed if line and (name := line.split("/")[5])[0].isdigit())
    folder = f"/usr/lib/modules/{version}"
    needs = dict(line.split(":") for line in _debugfs(root, f"cat {folder}/modules.dep").splitlines())
    by_name = {Path(path).stem: path for path in needs}
    files: dict[str, bytes] = {}
    for name in (*_OWN_LIST, *_MODULES):
        path = by_name[name]
        for needed in [*reversed(needs[path].split()), path]:
            copy = work / "module"
            _debugfs(root, f"dump {folder}/{needed} {copy}")
            files.setdefault(Path(needed).name, copy.read_bytes())
    return files | {"modules": "".join(f"/{name}\n" for name in files).encode()}


def _archive(files: dict[str, bytes]) -> bytes:
    """An initial RAM disk (cpio, "newc"), which Linux unpacks over the one before it."""
    packed = b""
    for number, (name, data) in enumerate({**files, "TRAILER!!!": b""}.items(), 1):
        fields = (number, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        packed += _to_four(head) + _to_four(data)
    return gzip.compress(packed)


def _to_four(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _debugfs(root: Path, *requests: str) -> str:
    return "".join(_run("debugfs", "-w", "-R", request, root) for request in requests)


def _run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
