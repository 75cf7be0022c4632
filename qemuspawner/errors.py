"""Errors that may be shown to a person.

Each carries a message (what failed: the thing, the value, the bound) and a hint (what the reader can
do). They become text for people in three places only: the hub's spawner, the session's status and the
command line. Commands, host paths and traces belong in the log.
"""

from typing import Literal

from qemuspawner.texts import join_sentences


def printable(text: str) -> str:
    """Words of a guest or of QEMU in one line for a terminal, a log or a page, which they cannot command."""
    return "".join(char if char.isprintable() else " " for char in text)


class QemuSpawnerError(Exception):
    """Something failed in a way worth telling; `message` and `hint` are whole sentences."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def text(self) -> str:
        """Message and hint as one paragraph."""
        return join_sentences(self.message, self.hint)


class OptionsError(QemuSpawnerError):
    """The options of a start request cannot be accepted."""


class MachineError(QemuSpawnerError):
    """A machine of the catalogue cannot be read, built or started."""


CatalogueTrouble = Literal["missing", "exists", "changed", "used", "invalid", "denied"]


class CatalogueError(MachineError):
    """A machine cannot be changed as an administrator asks; `trouble` tells programs why."""

    def __init__(self, trouble: CatalogueTrouble, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.trouble = trouble


class ImageError(QemuSpawnerError):
    """A disk image is missing, not what it claims to be, or cannot be made."""


class HostError(QemuSpawnerError):
    """This host lacks something: QEMU, memory, disk, a wall around the guest."""


class VmError(QemuSpawnerError):
    """QEMU did not start, did not answer or died."""


FileTrouble = Literal["missing", "exists", "kind", "denied", "offset", "size", "name", "busy", "failed"]


class FilesError(QemuSpawnerError):
    """A file of the guest cannot be listed, read or written; `trouble` tells programs why."""

    def __init__(self, trouble: FileTrouble, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.trouble = trouble


class SessionError(QemuSpawnerError):
    """A session could not be prepared or kept running."""
