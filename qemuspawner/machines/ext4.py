"""The files of an ext4 file system, read without mounting it: the kernel's driver is none for hostile disks.

Every structure is one that the guest may have written: all counts and sizes are bounded, and nothing is
followed twice. A journal that was not replayed is not looked at. Source: the kernel's
Documentation/filesystems/ext4.
"""

import itertools
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qemuspawner.errors import ImageError
from qemuspawner.texts import Text

MAX_FILES = 2_000_000
_MAX_FOLDER_BYTES = 64 << 20
_MAX_PATH_BYTES = 4096
_MAX_EXTENTS = 100_000
_MAX_DEPTH = 5

_MAGIC, _EXTENT_MAGIC = 0xEF53, 0xF30A
_ROOT = 2
_FILETYPE, _RECOVER, _EXTENTS, _64BIT, _MMP = 0x2, 0x4, 0x40, 0x80, 0x100
_FLEX_BG, _CSUM_SEED, _LARGE_DIR = 0x200, 0x2000, 0x4000
_NEEDED = _FILETYPE | _EXTENTS
_KNOWN = _NEEDED | _RECOVER | _64BIT | _MMP | _FLEX_BG | _CSUM_SEED | _LARGE_DIR
_EXTENTS_FLAG = 0x80000
# An extent of more blocks is one that nobody has written to yet.
_MAX_EXTENT_BLOCKS = 32768


@dataclass(frozen=True, slots=True)
class Node:
    """What an inode says, as far as it is compared."""

    mode: int
    owner: int
    group: int
    size: int  # bytes
    changed: int  # Unix seconds, of the content
    touched: int  # Unix seconds, of the content or what is said about it
    flags: int
    blocks: bytes  # the root of its tree of extents


class Ext4:
    """One file system, at `start` bytes in a raw disk.

    Raises:
        ImageError: It is damaged, or uses what is not known here.
    """

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._start = descriptor, start
        head = os.pread(descriptor, 1024, start + 1024)
        if len(head) < 1024:
            raise _damaged()
        (features,) = struct.unpack_from("<I", head, 0x60)
        (self._inodes,) = struct.unpack_from("<I", head, 0)
        (first_block, log_size) = struct.unpack_from("<II", head, 0x14)
        (self._per_group,) = struct.unpack_from("<I", head, 0x28)
        (self._inode_bytes,) = struct.unpack_from("<H", head, 0x58)
        (descriptor_bytes,) = struct.unpack_from("<H", head, 0xFE)
        if features & _NEEDED != _NEEDED or features & ~_KNOWN:
            raise ImageError(Text("The file system uses features that are not known here."))
        if log_size > 6 or not self._per_group or not 128 <= self._inode_bytes <= 4096:
            raise _damaged()
        self._block_bytes = 1024 << log_size
        self._descriptor_bytes = descriptor_bytes if features & _64BIT else 32
        if self._descriptor_bytes not in (32, 64):
            raise _damaged()
        self._groups_at = (first_block + 1) * self._block_bytes

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All files and folders by their paths, the folders above first; a damaged folder is an empty one."""
        folders = [(b"", _ROOT)]
        seen = {_ROOT}
        found = itertools.count(1)
        while folders:
            path, number = folders.pop()
            for name, child in self._list(self._load(number)):
                inner = b"%s/%s" % (path, name)
                if next(found) > MAX_FILES:
                    raise ImageError(Text("It has more than {most} files.", most=MAX_FILES))
                if len(inner) > _MAX_PATH_BYTES:
                    raise _damaged()
                node = self._load(child)
                yield inner, node
                if stat.S_ISDIR(node.mode) and child not in seen:
                    seen.add(child)
                    folders.append((inner, child))

    def find(self, path: str) -> Node | None:
        """What lies there; no link is followed."""
        node = self._load(_ROOT)
        for name in path.encode().strip(b"/").split(b"/"):
            number = next((child for found, child in self._list(node) if found == name), None)
            if number is None:
                return None
            node = self._load(number)
        return node

    def read(self, node: Node, *, max_bytes: int) -> bytes:
        """A file's content; raises ImageError where it has more than `max_bytes`."""
        if not node.flags & _EXTENTS_FLAG or node.size > max_bytes:
            raise _damaged()
        content = bytearray(node.size)
        for block, count, place in self._extents(node.blocks, depth=_MAX_DEPTH, budget=itertools.count()):
            at = block * self._block_bytes
            size = min(count * self._block_bytes, node.size - at)
            if size > 0:
                piece = self._pread(size, place * self._block_bytes)
                content[at : at + len(piece)] = piece
        return bytes(content)

    def _load(self, number: int) -> Node:
        if not 0 < number <= self._inodes:
            raise _damaged()
        group, index = divmod(number - 1, self._per_group)
        about = self._pread(self._descriptor_bytes, self._groups_at + group * self._descriptor_bytes)
        if len(about) < self._descriptor_bytes:
            raise _damaged()
        (table,) = struct.unpack_from("<I", about, 8)
        if self._descriptor_bytes == 64:
            table |= struct.unpack_from("<I", about, 0x28)[0] << 32
        inode = self._pread(128, table * self._block_bytes + index * self._inode_bytes)
        if len(inode) < 128:
            raise _damaged()
        mode, owner, low, _, touched, changed, _, group_id = struct.unpack_from("<HHIIIIIH", inode)
        (flags,) = struct.unpack_from("<I", inode, 0x20)
        (high,) = struct.unpack_from("<I", inode, 0x6C)
        owner_high, group_high = struct.unpack_from("<HH", inode, 0x78)
        return Node(
            mode=mode,
            owner=owner | owner_high << 16,
            group=group_id | group_high << 16,
            size=low | high << 32,
            changed=changed,
            touched=touched,
            flags=flags,
            blocks=inode[0x28:0x64],
        )

    def _list(self, folder: Node) -> Iterator[tuple[bytes, int]]:
        """Names in a folder, and their inodes. The index of a large one looks like deleted names."""
        if not stat.S_ISDIR(folder.mode):
            return
        content = self.read(folder, max_bytes=_MAX_FOLDER_BYTES)
        for begin in range(0, len(content), self._block_bytes):
            at, end = begin, min(begin + self._block_bytes, len(content))
            while at + 8 <= end:
                number, length, name_length = struct.unpack_from("<IHB", content, at)
                if length < 8:
                    break
                name = content[at + 8 : min(at + 8 + name_length, end)]
                if number and name and name not in (b".", b".."):
                    yield name, number
                at += length

    def _extents(self, node: bytes, *, depth: int, budget: Iterator[int]) -> Iterator[tuple[int, int, int]]:
        """The first block of each in the file, how many there are, and where they lie."""
        if len(node) < 12:
            raise _damaged()
        magic, entries, _, levels = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or levels > depth or 12 * (entries + 1) > len(node):
            raise _damaged()
        for number in range(1, entries + 1):
            if next(budget) > _MAX_EXTENTS:
                raise _damaged()
            if levels:
                _, low, high = struct.unpack_from("<IIH", node, 12 * number)
                inner = self._pread(self._block_bytes, (low | high << 32) * self._block_bytes)
                yield from self._extents(inner, depth=levels - 1, budget=budget)
            else:
                block, count, high, low = struct.unpack_from("<IHHI", node, 12 * number)
                if count <= _MAX_EXTENT_BLOCKS:
                    yield block, count, low | high << 32

    def _pread(self, size: int, at: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self._start + at)
        except (OSError, OverflowError) as exc:
            raise _damaged() from exc


def find_root(descriptor: int) -> Ext4:
    """The file system of a raw disk that a system starts from: the first with a folder /etc.

    Raises:
        ImageError: There is none that can be read.
    """
    problem: ImageError | None = None
    for start in (0, *_partitions(descriptor)):
        if not _is_ext(descriptor, start):
            continue
        try:
            found = Ext4(descriptor, start)
            if found.find("/etc") is not None:
                return found
        except ImageError as exc:
            problem = exc
    raise problem or ImageError(Text("It has no ext4 file system with a system on it."))


def _partitions(descriptor: int) -> Iterator[int]:
    """Where partitions begin, in bytes: of a table by MBR or GPT (UEFI specification, chapter 5)."""
    head = os.pread(descriptor, 1024, 0)
    if len(head) < 1024 or head[510:512] != b"\x55\xaa":
        return
    if head[512:520] == b"EFI PART":
        (table,) = struct.unpack_from("<Q", head, 512 + 72)
        count, size = struct.unpack_from("<II", head, 512 + 80)
        if table > 1 << 40 or not 128 <= size <= 4096:
            return
        entries = os.pread(descriptor, min(count, 128) * size, table * 512)
        for at in range(0, len(entries) - 127, size):
            (first,) = struct.unpack_from("<Q", entries, at + 32)
            if entries[at : at + 16] != bytes(16) and first < 1 << 40:
                yield first * 512
        return
    for at in range(0x1BE, 0x1FE, 16):
        (first,) = struct.unpack_from("<I", head, at + 8)
        if head[at + 4] and first:
            yield first * 512


def _is_ext(descriptor: int, start: int) -> bool:
    return os.pread(descriptor, 2, start + 1024 + 0x38) == struct.pack("<H", _MAGIC)


def _damaged() -> ImageError:
    return ImageError(Text("The file system is damaged."))
