"""What a session gets that is a job of a batch system: on a descriptor, not in a stored environment."""

import os
from collections.abc import Mapping

import msgspec

_MAX_BYTES = 1 << 20
# What a job takes beside its guest's memory: QEMU, the session, and what the kernel counts for them.
_LEAST_OVERHEAD_MIB = 512
_OVERHEAD_PART = 10
# The session ends by its own clock. The batch system's limit comes later, and half a minute or more too late.
SPARE_S = 600


class JobDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The environment that a session has elsewhere from its parent, the hub's token among it."""

    environment: Mapping[str, str]
    files: Mapping[str, str] = {}  # texts; each becomes a file whose path is a variable of this name


def write_document(document: JobDocument) -> str:
    """One line of JSON."""
    return msgspec.json.encode(document).decode()


def read_document(descriptor: int) -> JobDocument:
    """The document that lies on `descriptor`, which is closed.

    Raises:
        msgspec.DecodeError: It is none.
    """
    with os.fdopen(descriptor, "rb") as file:
        return msgspec.json.decode(file.read(_MAX_BYTES), type=JobDocument)


def job_memory_mib(memory_mib: int) -> int:
    """What a job has to ask for whose guest has so much."""
    return memory_mib + max(_LEAST_OVERHEAD_MIB, memory_mib // _OVERHEAD_PART)
