"""A VMDK's header and description, read as QEMU will read them: what names another file is refused.

QEMU takes the first "createType" that it finds, even in a comment, opens the files that are listed for a disk
without a size, and takes every "parentFileNameHint" for a backing file. It looks for that from the second
sector on, wherever the header says the description lies.
Source: VMware Virtual Disk Format 5.0; QEMU's block/vmdk.c.
"""

import re
import struct

from qemuspawner.texts import Text

_SECTOR = 512
_DESCRIPTION_SECTOR = 1
# As much of the description as QEMU reads, whatever its header says.
_LEAST_SECTORS, _MOST_SECTORS = 20, 128
HEAD_BYTES = (_DESCRIPTION_SECTOR + _MOST_SECTORS) * _SECTOR
_KIND = re.compile(rb'createType="([^"]*)"')
_ONE_FILE = (b"monolithicSparse", b"streamOptimized")
_NO_PARENT = b"ffffffff"


def find_vmdk_problem(head: bytes) -> str:
    """Why the image with this beginning, of `HEAD_BYTES`, is refused; empty where it is not.

    Raises:
        struct.error: The header is cut off.
    """
    if not head.startswith(b"KDMV"):
        return Text("it is a text that names other files.")
    (capacity,) = struct.unpack_from("<Q", head, 12)
    sector, sectors = struct.unpack_from("<QQ", head, 28)
    if not capacity:
        # QEMU would open what the description names instead.
        return Text("it is a text that names other files.")
    if sector != _DESCRIPTION_SECTOR or not 0 < sectors <= _MOST_SECTORS:
        return Text("its description is missing.")
    end = (_DESCRIPTION_SECTOR + max(sectors, _LEAST_SECTORS)) * _SECTOR
    text = head[_DESCRIPTION_SECTOR * _SECTOR : end].split(b"\0")[0]
    kinds = _KIND.findall(text)
    if not kinds or len(kinds) != text.count(b"createType") or not set(kinds) <= set(_ONE_FILE):
        return Text("it is not a VMDK in one file.")
    parents = re.findall(rb"(?m)^\s*parentCID\s*=\s*([0-9a-fA-F]+)", text)
    if b"parentFileNameHint" in text or any(parent.lower() != _NO_PARENT for parent in parents):
        return Text("it has a parent image.")
    return ""
