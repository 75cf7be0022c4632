"""What the hub asks of its fork server, and how the two speak: messages of JSON on a socket pair.

A session's environment holds its token. It goes by in a file in memory that only the session reads, so that
the server, whose memory every later session inherits, never knows it.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

# Well below a socket's buffer of 208 KiB.
_MAX_MESSAGE_BYTES = 128 * 1024

_Message = TypeVar("_Message", bound=msgspec.Struct)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The account that a session takes on."""

    uid: int
    gid: int
    groups: tuple[int, ...]  # all of them, `gid` included


class WantedTemplates(msgspec.Struct, frozen=True, kw_only=True):
    """Which templates the session may start from."""

    state_dir: str
    machine_id: str
    cpus: int
    memory_mib: int


class ForkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Start a session; with it go the descriptors of its environment and of the socket it listens on."""

    identity: Identity | None = None  # None: the session stays who the server is
    templates: WantedTemplates | None = None


class ForkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    pid: int = 0
    error: str = ""  # why there is no process; a sentence for the log


def write_environment(environment: Mapping[str, str]) -> int:
    """The descriptor of a file in memory that holds `environment`; the caller closes it.

    Raises:
        ValueError: Something in it is not text.
    """
    content = msgspec.json.encode(msgspec.convert(dict(environment), dict[str, str]))
    descriptor = os.memfd_create("qemuspawner-environment", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_environment(descriptor: int) -> dict[str, str]:
    """What `write_environment` wrote; closes the descriptor."""
    with open(descriptor, "rb") as file:
        file.seek(0)
        return msgspec.json.decode(file.read(), type=dict[str, str])


def send(connection: socket.socket, message: msgspec.Struct, *, descriptors: Sequence[int] = ()) -> None:
    """Send one message; OSError where nobody reads it, or where it is too long."""
    socket.send_fds(connection, [msgspec.json.encode(message)], list(descriptors))


def receive(
    connection: socket.socket, kind: type[_Message], *, descriptors: int = 0
) -> tuple[_Message, list[int]] | None:
    """The next message with its descriptors, which are the caller's to close; None at the end.

    Raises:
        ValueError: Something else was sent, or not `descriptors` descriptors.
        OSError: The connection broke, or its time is over.
    """
    data, received, flags, _ = socket.recv_fds(
        connection, _MAX_MESSAGE_BYTES, descriptors, socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(received) != descriptors:
            raise ValueError("The message was cut off, or its descriptors were.")
        return msgspec.json.decode(data, type=kind), received
    except ValueError:
        for descriptor in received:
            os.close(descriptor)
        raise
