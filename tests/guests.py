"""Guests small enough to write down: a boot sector that paints the screen, on any kind of disk."""

import shutil
import subprocess
from pathlib import Path

# Mode 13h, the whole screen green; each key turns it red and back. A real guest that boots in 0.2 s.
_PAINTER = bytes.fromhex(
    "b81300"  # mov ax, 13h      320x200, 256 colours
    "cd10"  # int 10h
    "6800a0 07"  # push a000h; pop es
    "b002"  # mov al, 2          green
    "31ff b900fa f3aa"  # again: fill 64000 pixels with al
    "50 b400 cd16 58"  # wait for a key, al kept
    "3406"  # xor al, 6          green <-> red
    "ebef"  # jmp again
)
GREEN = (0, 168, 0)
RED = (168, 0, 0)

BOOT_SECTOR = _PAINTER.ljust(510, b"\0") + b"\x55\xaa"

_QEMU_FORMATS = {"vhd": "vpc"}


def make_disk(path: Path, image_format: str = "raw") -> Path:
    """Write a bootable disk of 1 MiB, readable by everybody, in a format of the catalogue."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
    if image_format == "raw":
        raw.rename(path)
    elif image_format == "iso":
        make_iso(path)
    else:
        target = _QEMU_FORMATS.get(image_format, image_format)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", target, str(raw), str(path)], check=True)
    path.chmod(0o444)
    return path


def make_iso(path: Path) -> None:
    """A CD that boots the painter without emulating a floppy (El Torito)."""
    folder = path.with_suffix(".content")
    folder.mkdir()
    (folder / "boot.bin").write_bytes(BOOT_SECTOR.ljust(2048, b"\0"))
    subprocess.run(
        ["genisoimage", "-quiet", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4",
         "-o", str(path), str(folder)],
        check=True,
    )  # fmt: skip
    shutil.rmtree(folder)
