"""Guests small enough to write down: a boot sector that paints the screen or plays a tone, on any disk."""

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

# Computes for ever, and never looks at the keyboard.
SPINNER = bytes.fromhex("ebfe")  # jmp to itself
# Reads the second sector of its disk for ever.
READER = bytes.fromhex(
    "31c0 8ec0"  # es = 0
    "bb007e"  # mov bx, 7e00h
    "b80102"  # again: read one sector,
    "b90200"  # cylinder 0, sector 2,
    "ba8000"  # of the first hard disk, head 0
    "cd13"
    "ebf3"  # jmp again
)
# Fills its disk from the first MiB on, 8 KiB at a time, with what lies in the firmware.
WRITER = bytes.fromhex(
    "31c0 8ed8"  # ds = 0
    "be307c"  # mov si, 7c30h
    "b80043"  # again: write sectors,
    "b280"  # to the first hard disk,
    "cd13"  # as the packet at ds:si says
    "8306387c10"  # 16 sectors on: add word [7c38h], 16
    "83163a7c00"  # adc word [7c3ah], 0
    "ebed"  # jmp again
).ljust(0x30, b"\0") + bytes.fromhex("1000 1000 00e000f0 0008000000000000")
# Fills its disk from the first MiB on, 8 KiB at a time: each sector with its own number, 128 times. The first
# error, as at the disk's end, stops it.
NUMBERER = bytes.fromhex(
    "31c0 8ed8 8ec0 fc"  # ds = es = 0; cld
    "bf0080"  # again: mov di, 8000h
    "66a1687c"  # mov eax, [7c68h]   the first sector's number
    "b91000 51"  # mov cx, 16; next: push cx
    "b98000 66f3ab"  # 128 times eax
    "6640 59 e2f4"  # inc eax; pop cx; loop next
    "be607c b80043"  # write sectors,
    "b280 cd13"  # to the first hard disk, as the packet at 7c60h says
    "72fe"  # an error: jump here
    "8306687c10"  # 16 sectors on: add word [7c68h], 16
    "83166a7c00"  # adc word [7c6ah], 0
    "ebd2"  # jmp again
).ljust(0x60, b"\0") + bytes.fromhex("1000 1000 00800000 0008000000000000")
# Writes to its serial port for ever.
CHATTERER = bytes.fromhex(
    "bafd03"  # again: mov dx, 3fdh
    "ec a820 74fb"  # until it takes a byte
    "baf803 b041 ee"  # mov dx, 3f8h; out dx, "A"
    "ebf0"  # jmp again
)
# Waits for a key, then says on its serial port as the clipboard's agent (VDAgent) that a text of 4 GiB comes,
# and sends it in pieces of 1984 bytes.
COPIER = (
    bytes.fromhex(
        "31c0 8ed8"  # ds = 0
        "cd16"  # wait for a key
        "be407c b92800 e81400"  # the announcement at 7c40h: send 40 bytes
        "be387c b90800 e80b00"  # again: a piece's head at 7c38h: send 8
        "be007c b9c007 e80200 ebec"  # 1984 bytes of anything; jmp again
        "bafd03 ec a820 74fb"  # send: until the port takes a byte
        "baf803 ac ee e2f1 c3"  # lodsb; out dx, al; loop; ret
    ).ljust(0x38, b"\0")
    + bytes.fromhex("01000000 c0070000")
    + bytes.fromhex("01000000 20000000 01000000 04000000 0000000000000000 00f0ffff").ljust(40, b"\0")
)
# Its system says by the panic device that it has crashed, as often as it can.
PANICKER = bytes.fromhex(
    "ba0505"  # mov dx, 505h
    "b001 ee"  # again: out dx, 1
    "ebfb"  # jmp again
)
# Waits for a key, then writes to every page of its memory up to 496 MiB. The high ones are reached by fs,
# which keeps its limit after a moment in protected mode.
EATER = (
    bytes.fromhex(
        "31c0 8ed8"  # ds = 0
        "cd16"  # wait for a key
        "fa 0f0116407c"  # cli; lgdt [7c40h]
        "0f20c0 0c01 0f22c0"  # protected mode
        "bb0800 8ee3"  # mov fs, 8         4 GiB from 0
        "24fe 0f22c0"  # and back
        "66bf00001000"  # mov edi, 100000h
        "6764668907"  # again: mov [fs:edi], eax
        "6681c700100000"  # add edi, 1000h
        "6681ff0000001f 72eb"  # cmp edi, 1f000000h; jb again
        "ebfe"
    ).ljust(0x40, b"\0")
    + bytes.fromhex("0f00 487c0000 0000")  # the table of segments: 16 bytes at 7c48h
    + bytes.fromhex("0000000000000000 ffff00000092cf00")  # writable data, 4 GiB
)


def boot_sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"


BOOT_SECTOR = boot_sector(_PAINTER)

# 440 Hz from an Intel HDA card without any driver; each key stops it, or starts it again. The card's
# registers lie high: fs reaches them, which keeps its limit after a moment in protected mode.
_TONE = bytes.fromhex(
    "b803b1 66b900030400 31f6 cd1a"  # PCI BIOS: find class 040300h; bx = bus and device
    "b80cb1 b90600 bf0400 cd1a"  # command register: memory and DMA
    "b80ab1 bf1000 cd1a"  # ecx = BAR 0
    "80e1f0 6689ce fa"  # mov esi, ecx & ~0fh; cli
    "0f0116c87c"  # lgdt [7cc8h]
    "0f20c0 0c01 0f22c0"  # protected mode
    "bb0800 8ee3"  # mov fs, 8         4 GiB from 0
    "24fe 0f22c0 fb"  # and back; sti
    "b80009 8ec0 31ff fc"  # mov es, 900h; xor di, di; cld
    "ba4000"  # mov dx, 64        periods of 109 frames at 48 kHz:
    "66b800200020 b93600 66f3ab"  # 54 high, both channels
    "66b800e000e0 b93700 66f3ab"  # 55 low
    "4a 75e5"  # dec dx; jnz
    "6467c6460801"  # GCTL: out of reset
    "66b810062700 e84200"  # verb: converter 2 plays stream 1
    "66b811002200 e83900"  # verb: 48 kHz, 16 bits, 2 channels
    "6681c600010000"  # add esi, 100h     the first output stream
    "646766c74618007d0000"  # BDPL = 7d00h
    "646766c7460800da0000"  # CBL = twice 27904 bytes
    "6467c6460c01"  # LVI = 1
    "6467c746121100"  # FMT: as the converter's
    "6467c6460210"  # stream 1
    "6467803602"  # again: xor byte [SDCTL], 2   run, stop
    "b400 cd16 ebf5"  # wait for a key; jmp again
    "646766894660 6467c6466801 c3"  # verb: by the immediate command registers
).ljust(0xC8, b"\0") + bytes.fromhex(
    "0f00 d07c0000 0000"  # the table of segments: 16 bytes at 7cd0h
    "0000000000000000"
    "ffff00000092cf00"  # writable data, 4 GiB
).ljust(0x38, b"\0") + bytes.fromhex(
    "00900000 00000000 006d0000 00000000"  # 7d00h: the buffer descriptors, both 27904 bytes at 9000h
    "00900000 00000000 006d0000 00000000"
)  # fmt: skip
TONE_SECTOR = _TONE.ljust(510, b"\0") + b"\x55\xaa"
TONE_HZ = 440

_QEMU_FORMATS = {"vhd": "vpc"}


def make_disk(path: Path, image_format: str = "raw", *, sector: bytes = BOOT_SECTOR) -> Path:
    """Write a bootable disk of 1 MiB, readable by everybody, in a format of the catalogue."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(sector.ljust(1 << 20, b"\0"))
    if image_format == "raw":
        raw.rename(path)
    elif image_format == "iso":
        make_iso(path, sector)
    else:
        target = _QEMU_FORMATS.get(image_format, image_format)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", target, str(raw), str(path)], check=True)
    path.chmod(0o444)
    return path


def make_iso(path: Path, sector: bytes) -> None:
    """A CD that boots a sector without emulating a floppy (El Torito)."""
    folder = path.with_suffix(".content")
    folder.mkdir()
    (folder / "boot.bin").write_bytes(sector.ljust(2048, b"\0"))
    subprocess.run(
        ["genisoimage", "-quiet", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4",
         "-o", str(path), str(folder)],
        check=True,
    )  # fmt: skip
    shutil.rmtree(folder)
