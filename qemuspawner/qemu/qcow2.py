"""The header of a qcow2, read before QEMU sees the file: what reaches for other files, or lies, is refused.

Every table that QEMU would load at once must lie in the file and be no larger than QEMU itself allows.
Source: QEMU docs/interop/qcow2.txt; the bounds are those of block/qcow2.h.
"""

import struct
from dataclasses import dataclass

from qemuspawner.texts import Text
from qemuspawner.units import render_mib

MAX_DISK_BYTES = 16 * 1024**4
_CLUSTER_BITS = range(9, 22)
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
_MAX_REFCOUNT_ORDER = 6
_V2_HEADER_BYTES, _V3_HEADER_BYTES = 72, 104

# Incompatible features.
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_FEATURES = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2

# Header extensions.
_END = 0
_ENCRYPTION, _DATA_FILE_NAME = 0x0537BE77, 0x44415441
# The backing file's format, names of features, bitmaps of backup programs: none of them leads anywhere.
_HARMLESS = {0xE2792ACA, 0x6803F857, 0x23852875}


@dataclass(frozen=True, kw_only=True)
class _Header:
    version: int
    backing_offset: int
    cluster_bits: int
    size_bytes: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    features: int = 0
    refcount_order: int = 4
    length: int = _V2_HEADER_BYTES

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits


def find_qcow2_problem(head: bytes, *, file_bytes: int, is_layer: bool = False) -> str:
    """Why the image with this beginning is refused; empty where it is not.

    A layer has a backing file, in whose place whoever opens it names another one, or none.

    Raises:
        struct.error: The header is cut off.
    """
    (version,) = struct.unpack_from(">I", head, 4)
    if version not in (2, 3):
        return Text("qcow2 version {version} is not known.", version=version)
    header = _read(head, version)
    return (
        _find_in_header(header, is_layer=is_layer)
        or _find_in_tables(header, file_bytes)
        or _find_in_extensions(head, header, file_bytes)
    )


def _read(head: bytes, version: int) -> _Header:
    backing, _, cluster_bits, size, encryption = struct.unpack_from(">QIIQI", head, 8)
    l1_entries, l1_offset, refcount_offset, refcount_clusters, snapshots = struct.unpack_from(
        ">IQQII", head, 36
    )
    more = {}
    if version == 3:
        (features,) = struct.unpack_from(">Q", head, 72)
        refcount_order, length = struct.unpack_from(">II", head, 96)
        more = {"features": features, "refcount_order": refcount_order, "length": length}
    return _Header(
        version=version,
        backing_offset=backing,
        cluster_bits=cluster_bits,
        size_bytes=size,
        encryption=encryption,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        refcount_offset=refcount_offset,
        refcount_clusters=refcount_clusters,
        snapshots=snapshots,
        **more,
    )


def _find_in_header(header: _Header, *, is_layer: bool) -> str:
    if header.backing_offset and not is_layer:
        return Text("it has a backing file.")
    if header.encryption:
        return Text("it is encrypted.")
    if header.size_bytes > MAX_DISK_BYTES:
        return Text("its disk of {size} is larger than 16 TiB.", size=render_mib(header.size_bytes >> 20))
    if header.features & _DATA_FILE:
        return Text("it keeps its data in another file.")
    if header.features & ~_KNOWN_FEATURES:
        return Text("it uses features of qcow2 that are not known here.")
    if header.features & _CORRUPT:
        return Text("it is marked as corrupt.")
    if header.snapshots:
        return Text("it has snapshots inside.")
    return ""


def _find_in_tables(header: _Header, file_bytes: int) -> str:
    cluster = header.cluster_bytes if header.cluster_bits in _CLUSTER_BITS else 0
    l1_bytes = header.l1_entries * 8
    refcount_bytes = header.refcount_clusters * cluster
    length = header.length
    # An L1 entry stands for a cluster of L2 entries, of 8 bytes or, with subclusters, 16.
    entry_bytes = 16 if header.features & _EXTENDED_L2 else 8
    sound = (
        cluster > 0
        and header.refcount_order <= _MAX_REFCOUNT_ORDER
        and (length == _V2_HEADER_BYTES if header.version == 2 else length >= _V3_HEADER_BYTES)
        and length % 8 == 0
        and length <= cluster
        and l1_bytes <= _MAX_L1_BYTES
        and header.l1_entries * (cluster // entry_bytes) * cluster >= header.size_bytes
        and _lies_in(header.l1_offset, l1_bytes, cluster=cluster, file_bytes=file_bytes)
        and 0 < refcount_bytes <= _MAX_REFCOUNT_TABLE_BYTES
        and _lies_in(header.refcount_offset, refcount_bytes, cluster=cluster, file_bytes=file_bytes)
    )
    return "" if sound else Text("its tables do not lie in the file, or are larger than they may be.")


def _lies_in(offset: int, size: int, *, cluster: int, file_bytes: int) -> bool:
    """An empty table lies anywhere; the header's own cluster holds none."""
    if not size:
        return True
    return offset >= cluster and offset % cluster == 0 and offset + size <= file_bytes


def _find_in_extensions(head: bytes, header: _Header, file_bytes: int) -> str:
    at, end = header.length, min(header.cluster_bytes, file_bytes, len(head))
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _END:
            return ""
        if kind == _DATA_FILE_NAME:
            return Text("it keeps its data in another file.")
        if kind == _ENCRYPTION:
            return Text("it is encrypted.")
        if kind not in _HARMLESS:
            return Text("it uses features of qcow2 that are not known here.")
        # Each is padded to 8 bytes.
        at += 8 + -(-length // 8) * 8
    # The whole cluster may be taken, to its last byte; what we have not read may hold anything.
    return "" if at == header.cluster_bytes else Text("its header does not end.")
