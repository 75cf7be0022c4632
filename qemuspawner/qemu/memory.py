"""Guest memory in files: a template's, which many VMs map copy-on-write.

QEMU 7.2 opens its memory's file for writing even where it maps it privately, so copies get a sealed memfd:
all of them share its pages, and the kernel refuses to change it, also to a QEMU that was broken into.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.texts import Text

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def make_memory(memory_mib: int) -> int:
    """The descriptor of empty memory that a template's VM works in."""
    descriptor = os.memfd_create("qemuspawner-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, memory_mib << 20)
    return descriptor


def save_memory(descriptor: int, path: Path) -> str:
    """Write memory to `path`, a sparse file; the digest of its content.

    Raises:
        OSError: Such as a full disk.
    """
    digest = hashlib.sha256()
    size = os.fstat(descriptor).st_size
    with path.open("wb") as file:
        os.ftruncate(file.fileno(), size)
        for offset, chunk in _chunks(descriptor):
            _update(digest, offset, chunk)
            os.pwrite(file.fileno(), chunk, offset)
        os.fsync(file.fileno())
    return f"sha256:{digest.hexdigest()}"


def load_memory(path: Path, *, digest: str) -> int:
    """The descriptor of a sealed copy in memory, for any number of VMs to map.

    Raises:
        VmError: The file is missing, or is not what was saved.
    """
    found = hashlib.sha256()
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise VmError(
            Text("The template's memory cannot be read: {strerror}.", strerror=exc.strerror)
        ) from exc
    descriptor = os.memfd_create("qemuspawner-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, os.fstat(source).st_size)
        for offset, chunk in _chunks(source):
            _update(found, offset, chunk)
            os.pwrite(descriptor, chunk, offset)
        if digest != f"sha256:{found.hexdigest()}":
            raise VmError(Text("The template's memory has been changed or cut off."))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException as exc:
        os.close(descriptor)
        if isinstance(exc, OSError):
            raise VmError(
                Text("The template's memory cannot be loaded: {strerror}.", strerror=exc.strerror)
            ) from exc
        raise
    finally:
        os.close(source)
    return descriptor


def _update(digest: "hashlib._Hash", offset: int, chunk: bytes) -> None:
    digest.update(offset.to_bytes(8))
    digest.update(chunk)


def _chunks(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every piece of 1 MiB, holes and zeros left out."""
    size = os.fstat(descriptor).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA) // _CHUNK * _CHUNK
        except OSError:
            return  # ENXIO: nothing but a hole up to the end
        chunk = os.pread(descriptor, min(_CHUNK, size - offset), offset)
        if chunk != _ZEROS[: len(chunk)]:
            yield offset, chunk
        offset += _CHUNK
