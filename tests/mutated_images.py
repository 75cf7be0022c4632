"""Images of every format of which some bytes are others, always the same ones: each can be looked at."""

import os
import struct
import subprocess
from pathlib import Path
from random import Random

import guests
from baits import WAYS, Bait

from qemuspawner.machine import ImageFormat

FORMATS: tuple[ImageFormat, ...] = ("raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "qed", "iso")

_BYTES = (0, 1, 4, 0x7F, 0xFF)
# Where headers and tables lie, of which most is zero, and so is the painter's disk behind its first sector.
_HEAD_BYTES = 1 << 20
_VMDK_WORDS = (
    'createType="monolithicFlat"',
    '#createType="vmfs"',
    'createType="streamOptimized"',
    'parentFileNameHint="{bait}"',
    "parentCID=12345678",
    'RW 2 FLAT "{bait}" 0',
)


class Mutants:
    """Those of one format."""

    def __init__(self, image_format: ImageFormat, folder: Path, bait: Bait) -> None:
        self.image_format = image_format
        self._bait = bait
        folder.mkdir()
        whole = guests.make_disk(folder / "whole", image_format)
        if image_format == "vhdx":
            # Half as large as it would be, of which most is a log.
            small = ["-O", "vhdx", "-o", "block_size=1M", str(whole), str(folder / "small")]
            subprocess.run(["qemu-img", "convert", "-f", "vhdx", *small], check=True)
            whole = folder / "small"
        self._whole = whole.read_bytes()
        head = self._whole[: 600 if image_format == "raw" else _HEAD_BYTES]
        # What says something, and a little around it; of a raw disk the bytes that others take for a header.
        told = (n for n, byte in enumerate(head) if byte) if image_format != "raw" else range(len(head))
        self._told = tuple(told)

    def write(self, path: Path, number: int) -> None:
        """The mutant `number` in the file's place."""
        random = Random(f"{self.image_format} {number}")
        content = bytearray(self._whole)
        for _ in range(random.randint(0, 3)):
            at = random.choice(self._told) + random.randrange(8)
            content[at] = random.choice((*_BYTES, random.randrange(256)))
        if random.random() < 0.4:
            self._lead_elsewhere(content, random)
        if random.random() < 0.05:
            del content[random.randrange(len(content)) :]
        path.write_bytes(content)

    def _lead_elsewhere(self, content: bytearray, random: Random) -> None:
        """Name the bait where the format has a place for that, or where a reader might see one."""
        name = os.fsencode(self._bait.name(random.choice(WAYS)))
        match self.image_format:
            case "qcow2":
                _put(content, 0x400, name)
                if random.random() < 0.5:
                    struct.pack_into(">QI", content, 8, 0x400, len(name))
                else:
                    # As a data file, with or without the feature that says so.
                    content[72:80] = struct.pack(">Q", random.choice((0, 4)))
                    _put(content, 112, struct.pack(">II", 0x44415441, len(name)) + name)
            case "qed":
                _put(content, 0x400, name)
                struct.pack_into("<Q", content, 16, random.choice((0, 1, 5)))
                struct.pack_into("<II", content, 56, 0x400, len(name))
            case "vmdk":
                self._describe(content, random)
            case "vhd":
                # A difference, by the footer or by its copy, whose parent's name is in the second header.
                at = random.choice((0, len(content) - 512))
                struct.pack_into(">I", content, at + 60, 4)
                _put(content, 512 + 64, name.decode().encode("utf-16-be"))
            case "vdi":
                _put(content, 0x1A8, random.randbytes(random.choice((16, 32))))
            case _:
                _put(content, random.randrange(1 << 16), name)

    def _describe(self, content: bytearray, random: Random) -> None:
        if random.random() < 0.3:
            struct.pack_into("<Q", content, random.choice((12, 28, 36)), random.choice((0, 1, 2, 21)))
        lines = bytes(content[512:10752]).split(b"\0")[0].split(b"\n")
        for word in random.sample(_VMDK_WORDS, random.choice((1, 1, 2))):
            words = word.replace("{bait}", str(self._bait.file)).encode()
            lines.insert(random.randrange(len(lines)), words)
        if random.random() < 0.2:
            lines.insert(random.randrange(len(lines)), b"#" * 600)
        content[512:10752] = b"\n".join(lines).ljust(10240, b"\0")[:10240]


def _put(content: bytearray, offset: int, new: bytes) -> None:
    content[offset : offset + len(new)] = new
