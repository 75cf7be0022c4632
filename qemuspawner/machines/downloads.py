"""Images that users take home: where they lie for a day, and when they go.

`downloads/KEY/NAME.qcow2`, KEY of a user or a machine: there is one at a time of each, so that nobody fills
the host's disk with them. Who may read one the hub decides; no other account can.
"""

import hashlib
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.errors import CatalogueError
from qemuspawner.machine import Machine
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.texts import Text

KEEP_S = 86400


@dataclass(frozen=True, kw_only=True)
class Packed:
    """An image that can be taken."""

    path: Path
    made: float  # Unix seconds
    size_bytes: int

    @property
    def left_s(self) -> float:
        """For how long it is still there."""
        return self.made + KEEP_S - time.time()

    @property
    def machine_id(self) -> str:
        """The machine that a desktop began from."""
        return self.path.stem.partition("-")[2]


def check_allowed(machine: Machine | None) -> None:
    """Raises CatalogueError where the machine, if it is still there, does not say `download = true`."""
    if machine is None:
        raise CatalogueError("missing", Text("The machine that it began from is not there any more."))
    if not machine.download:
        raise CatalogueError(
            "denied",
            Text("Images of '{machine}' are not for taking home.", machine=machine.name),
            hint=Text("The site's staff decide that for each machine."),
        )


def desktop_file(state: StatePaths, *, user: str, server: str, machine_id: str) -> Path:
    """Where the image of a desktop lies, once it is made; the machine is the one that it began from."""
    return _folder_of(state, user) / f"{session_id(user, server)}-{machine_id}.qcow2"


def find_desktop_file(state: StatePaths, *, user: str, server: str) -> Packed | None:
    """The image of a user's desktop."""
    for path in _folder_of(state, user).glob(f"{session_id(user, server)}-*.qcow2"):
        if found := find_file(path):
            return found
    return None


def _folder_of(state: StatePaths, user: str) -> Path:
    return state.downloads / f"user-{hashlib.sha256(user.encode()).hexdigest()[:20]}"


def machine_file(state: StatePaths, machine: Machine) -> Path:
    """Where the packed image of the machine lies, once it is made; another one of its next image.

    Raises:
        CatalogueError: Its image is not there.
    """
    try:
        status = Path(machine.image.file).stat()
    except OSError as exc:
        raise CatalogueError(
            "missing", Text("The image of '{machine}' is not there.", machine=machine.name)
        ) from exc
    return state.downloads / f"machine-{machine.id}" / f"{status.st_mtime_ns:x}-{status.st_size:x}.qcow2"


def find_file(path: Path) -> Packed | None:
    """One that is there, and whose day is not over."""
    try:
        status = path.lstat()
    except OSError:
        return None
    found = Packed(path=path, made=status.st_mtime, size_bytes=status.st_size)
    return found if stat.S_ISREG(status.st_mode) and found.left_s > 0 else None


def sweep(state: StatePaths) -> int:
    """Delete those whose day is over, and drafts that nobody has written to for so long; how many."""
    swept = 0
    for path in state.downloads.glob("*/*"):
        try:
            if path.lstat().st_mtime + KEEP_S <= time.time():
                path.unlink()
                swept += 1
        except OSError:
            continue  # somebody else was quicker
    return swept
