"""Images on their way from an administrator's browser: drafts beside the machine's image, and nothing else.

An upload's name holds its size, and its file's length says how far it is: it goes on after the hub, or the
browser, was started again.
"""

import errno
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import CatalogueError, QemuSpawnerError
from qemuspawner.machines.writing import locked_folder, make_folder
from qemuspawner.paths import StatePaths
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

_FOLDER = ".uploads"
_TOKEN = re.compile(r"[0-9a-f]{32}-([0-9]{1,15})", re.ASCII)
_KEEP_S = 7 * 86400
_MAX_AT_ONCE = 4
_SPARE_BYTES = 256 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WrongOffsetError(QemuSpawnerError):
    """The upload is at another place than the part that came."""


class FullError(QemuSpawnerError):
    """The host's disk has no room for it."""


@dataclass(frozen=True, kw_only=True)
class Uploads:
    """Of one machine."""

    state: StatePaths
    machine_id: str

    @property
    def folder(self) -> Path:
        return self.state.images / self.machine_id / _FOLDER

    def begin(self, size: int) -> str:
        """A new one of so many bytes; its token.

        Raises:
            FullError: There is no room for it.
            CatalogueError: There are too many, or the folder cannot be written.
        """
        try:
            make_folder(self.folder.parent)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with locked_folder(self.folder, wait=True):
                self._sweep()
                if len(list(self.folder.iterdir())) >= _MAX_AT_ONCE:
                    raise CatalogueError(
                        "used",
                        Text(
                            "'{machine}' has {count} uploads already that were not finished.",
                            machine=self.machine_id,
                            count=_MAX_AT_ONCE,
                        ),
                        hint=Text("Go on with one of them, or give them up."),
                    )
                free = shutil.disk_usage(self.folder).free
                if size + _SPARE_BYTES > free:
                    raise FullError(
                        Text(
                            "The image has {size}; {free} are free on the host's disk.",
                            size=render_mib(-(-size >> 20)),
                            free=render_mib(free >> 20),
                        )
                    )
                token = f"{secrets.token_hex(16)}-{size}"
                (self.folder / token).touch(mode=0o600, exist_ok=False)
        except OSError as exc:
            raise _denied(exc) from exc
        return token

    def size(self, token: str) -> int:
        """How many bytes it shall have; raises CatalogueError where there is no such upload."""
        match = _TOKEN.fullmatch(token)
        if match is None or not (self.folder / token).is_file():
            raise _missing()
        return int(match[1])

    def offset(self, token: str) -> int:
        """How many bytes have come; raises CatalogueError where there is no such upload."""
        self.size(token)
        try:
            return (self.folder / token).stat().st_size
        except FileNotFoundError as exc:
            raise _missing() from exc

    def append(self, token: str, data: bytes, *, offset: int) -> int:
        """Write a part; how many bytes are there now.

        Raises:
            WrongOffsetError: It does not begin where the upload ends, or is too long.
            FullError: The disk is full; what came of the part is taken back.
            CatalogueError: There is no such upload, or it cannot be written.
        """
        size = self.size(token)
        try:
            with (
                locked_folder(self.folder, wait=True),
                (self.folder / token).open("r+b", buffering=0) as file,
            ):
                there = file.seek(0, os.SEEK_END)
                if there != offset:
                    raise WrongOffsetError(
                        Text("The upload has {there} bytes, and not {offset}.", there=there, offset=offset)
                    )
                if offset + len(data) > size:
                    raise WrongOffsetError(
                        Text("The upload has {size} bytes; there would be more.", size=size)
                    )
                try:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                except OSError as exc:
                    file.truncate(offset)
                    if exc.errno in _FULL:
                        raise FullError(
                            Text("The host's disk is full."), hint=Text("Make room; then go on.")
                        ) from exc
                    raise
        except FileNotFoundError as exc:
            raise _missing() from exc
        except OSError as exc:
            raise _denied(exc) from exc
        return offset + len(data)

    def give_up(self, token: str) -> None:
        """Raises CatalogueError where there is no such upload."""
        self.size(token)
        (self.folder / token).unlink(missing_ok=True)

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            if path.stat().st_mtime < time.time() - _KEEP_S:
                path.unlink()


def _missing() -> CatalogueError:
    return CatalogueError("missing", Text("There is no such upload any more."), hint=Text("Begin it again."))


def _denied(exc: OSError) -> CatalogueError:
    return CatalogueError(
        "denied",
        Text("The image cannot be written: {reason}.", reason=exc.strerror),
        hint=Text("The folder images/ of the state folder must belong to the hub's account."),
    )
