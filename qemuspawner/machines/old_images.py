"""Images that were replaced and that kept desktops still stand on.

The disk of a suspended desktop or a checkpoint holds what differs from its base image: over another one it
is rubbish. Before an image is replaced its files get a second name in `old-INODE/` beside it, which costs
nothing but the room that would else become free; what nobody stands on goes with the next build.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import SessionError
from qemuspawner.locks import find_holder
from qemuspawner.machine import Image, Machine
from qemuspawner.machines.uses import load_spec, session_folders
from qemuspawner.machines.versions import files_of_version
from qemuspawner.paths import DIGESTS, SessionPaths
from qemuspawner.qemu.saving import image_identity, is_image, place_identity
from qemuspawner.saved import list_saved

log = logging.getLogger(__name__)

_PREFIX = "old-"


def machine_of_saved(machine: Machine, identity: str) -> Machine:
    """`machine` with the image files that a saved VM stands on, whose fingerprint has `identity`.

    The machine as it is where none of the kept files are those: the fingerprints then say what differs.
    """
    for image in (machine.image, *_kept_images(machine)):
        with contextlib.suppress(OSError):
            if is_image(image, identity):
                return structs.replace(machine, image=image)
    return machine


def keep_image(machine: Machine, sessions: Path) -> None:
    """Keep the present image where a desktop stands on it, and delete older ones that none stands on.

    Raises:
        OSError: The files could not be kept.
    """
    users = _Users(machine, sessions)
    try:
        present = place_identity(machine.image)
    except OSError:
        present = ""  # there is none to be replaced
    if present and users.stand_on(machine.image):
        _keep(machine.image)
    for kept in _kept_images(machine):
        folder = Path(kept.file).parent
        with contextlib.suppress(OSError):
            if place_identity(kept) != present and not users.stand_on(
                kept, replaced_at=folder.stat().st_mtime
            ):
                shutil.rmtree(folder)


def delete_unused(machine: Machine, images: Sequence[Image], sessions: Path) -> None:
    """Delete those images of the machine that no desktop stands on, and that it does not start from now."""
    users = _Users(machine, sessions)
    for image in images:
        with contextlib.suppress(OSError):
            if image.file != machine.image.file and not users.stand_on(image):
                for path in files_of_version(image):
                    path.unlink(missing_ok=True)


def _keep(image: Image) -> None:
    file = Path(image.file)
    folder = file.parent / f"{_PREFIX}{file.stat().st_ino}"
    draft = folder.with_name(f".{folder.name}")
    if folder.exists():
        return
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    draft.chmod(0o755)
    for name in (image.file, image.kernel, image.initrd):
        if name:
            os.link(name, draft / Path(name).name)
    with contextlib.suppress(FileNotFoundError):
        # Of the same files, so it counts there, too.
        shutil.copy(file.with_name(DIGESTS), draft)
    draft.rename(folder)


def _kept_images(machine: Machine) -> list[Image]:
    image = machine.image
    folders = sorted(Path(image.file).parent.glob(f"{_PREFIX}*"))
    return [
        structs.replace(
            image,
            file=str(folder / Path(image.file).name),
            kernel=str(folder / Path(image.kernel).name) if image.kernel else "",
            initrd=str(folder / Path(image.initrd).name) if image.initrd else "",
        )
        for folder in folders
    ]


class _Users:
    """Who stands on images of a machine, as far as this account may look."""

    def __init__(self, machine: Machine, sessions: Path) -> None:
        self._images: set[str] = set()  # of what is saved, and of sessions that run, which may be saved yet
        # An image in place now may not be the one that was there when a session began.
        self._started_at: list[float] = []
        for root in session_folders(sessions):
            paths = SessionPaths(root=root)
            self._images |= {saved.fingerprint.image for saved in list_saved(paths.saved)}
            # ValueError: a file's name, which anybody may have written, may hold a NUL.
            with contextlib.suppress(OSError, SessionError, ValueError):
                spec, started_at = load_spec(paths.spec)
                if spec.machine.id == machine.id and find_holder(paths.lock) is not None:
                    self._started_at.append(started_at)
                    # It may have begun later than that, from a checkpoint on an image replaced long ago.
                    self._images.add(image_identity(spec.machine.image))

    def stand_on(self, image: Image, *, replaced_at: float = float("inf")) -> bool:
        """Whether anybody does, or may: a session that began before the image was replaced.

        Raises OSError where it is missing.
        """
        return any(is_image(image, identity) for identity in self._images) or any(
            moment <= replaced_at for moment in self._started_at
        )
