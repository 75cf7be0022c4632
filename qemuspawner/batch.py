"""What a session gets that is a job of a batch system: on a descriptor, not in a stored environment."""

import os
from collections.abc import Mapping

import msgspec

_MAX_BYTES = 1 << 20


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
