"""A desktop that sleeps, as an administrator's command takes it: its disk copied out of the session's folder.

That folder is the account's of the session, and of its disk the guest has written what it likes. So what is
read later is a copy of ours; it stands on the image that the catalogue has, not on what the session names.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from qemuspawner.errors import CatalogueError, MachineError
from qemuspawner.locks import find_holder, try_lock
from qemuspawner.machine import Image, Machine
from qemuspawner.machines.image_files import Progress, Step, check_room
from qemuspawner.machines.old_images import machine_of_saved
from qemuspawner.machines.own import Entry, OwnMachines
from qemuspawner.machines.versions import list_images
from qemuspawner.paths import SavedPaths, SessionPaths, session_id
from qemuspawner.qemu.image import check_layer
from qemuspawner.qemu.saving import is_image
from qemuspawner.qemu.vm import DRIVERS, Disk
from qemuspawner.saved import Saved, find_suspended
from qemuspawner.texts import Text

_MAX_LAYERS = 64
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Asleep:
    """A user's suspended desktop."""

    user: str
    paths: SessionPaths
    saved: Saved
    entry: Entry  # of its machine
    machine: Machine  # the same, with the image that the desktop stands on

    @contextlib.contextmanager
    def copied(self, folder: Path, *, progress: Progress) -> Iterator[Disk]:
        """Its disk, for as long as the files in `folder` stay, which are deleted in the end.

        Raises:
            MachineError, ImageError: It runs, cannot be read, or reaches for other files.
        """
        saved = SavedPaths(root=self.paths.saved / self.saved.name)
        copies = [folder / f"layer-{depth}.qcow2" for depth in range(self.saved.layers)]
        try:
            with _not_running(self.paths):
                for depth, copy in enumerate(copies):
                    self._copy(saved.layer(depth), copy, progress)
            for copy in copies:
                check_layer(copy)
            image = self.machine.image
            yield Disk(
                id="disk0",
                path=copies[-1],
                driver="qcow2",
                layers=tuple(copies[:-1]),
                backing=None if image.format == "iso" else Path(image.file),
                backing_driver=DRIVERS[image.format],
            )
        finally:
            for copy in copies:
                copy.unlink(missing_ok=True)

    def _copy(self, source: Path, copy: Path, progress: Progress) -> None:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file, copy.open("wb") as out:
            status = os.fstat(descriptor)
            # A folder on the way may be a link, to where we may read and they may not.
            if not stat.S_ISREG(status.st_mode) or status.st_uid != self.paths.root.lstat().st_uid:
                raise MachineError(f"The desktop's disk '{source.name}' is not its own.")
            check_room(self.machine, copy.parent, status.st_size)
            done = 0
            while piece := file.read(min(_PIECE_BYTES, status.st_size - done)):
                out.write(piece)
                done += len(piece)
                progress(Step(step="copying", done=done, total=status.st_size))


def find_asleep(own: OwnMachines, *, user: str, server: str, name: str = "") -> Asleep:
    """The desktop that is kept of a user's server; `name` is that of the saved one that is meant.

    Raises:
        CatalogueError: It runs, there is none, it is another one by now, or its image is not there any more.
    """
    paths = own.state.session(session_id(user, server))
    desktop = f"{user}/{server}" if server else user
    saved = find_suspended(paths)
    if saved is None or saved.spec is None or saved.spec.user != user:
        raise CatalogueError(
            "missing",
            Text("No desktop of '{desktop}' sleeps on this host.", desktop=desktop),
            hint=Text("A desktop is published while it is suspended."),
        )
    if name and saved.name != name:
        raise CatalogueError(
            "changed",
            Text("The desktop of '{desktop}' has gone on since that was asked for.", desktop=desktop),
            hint=Text("Its user has to ask again, for what it is now."),
        )
    if not 0 < saved.layers <= _MAX_LAYERS:
        raise CatalogueError("invalid", Text("The desktop of '{desktop}' has no disk.", desktop=desktop))
    entry = own.find(saved.machine_id)
    machine = _machine_below(entry, saved.fingerprint.image)
    if machine is None:
        raise CatalogueError(
            "missing",
            Text(
                "The image of '{machine}' that the desktop of '{desktop}' began from is not there any more.",
                machine=entry.id,
                desktop=desktop,
            ),
        )
    return Asleep(user=user, paths=paths, saved=saved, entry=entry, machine=machine)


def _machine_below(entry: Entry, identity: str) -> Machine | None:
    if entry.machine is None:
        return None
    for image in (entry.machine.image, *list_images(entry.machine)):
        found = machine_of_saved(structs.replace(entry.machine, image=image), identity)
        if _is(found.image, identity):
            return found
    return None


def _is(image: Image, identity: str) -> bool:
    try:
        return is_image(image, identity)
    except OSError:
        return False


@contextlib.contextmanager
def _not_running(paths: SessionPaths) -> Iterator[None]:
    """Keep the session from being started meanwhile: shared, so that we are not taken for its owner."""
    runs = CatalogueError(
        "used", Text("The desktop is running."), hint=Text("A desktop is published while it is suspended.")
    )
    if find_holder(paths.lock) is not None:
        raise runs
    descriptor = -1
    try:
        descriptor = os.open(paths.lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not try_lock(descriptor, shared=True):
            raise runs
        yield
    except OSError as exc:
        raise MachineError(
            f"The desktop's disk cannot be copied: {exc.strerror}.",
            hint="This needs the account of the session, or root, and room on the disk.",
        ) from exc
    finally:
        if descriptor >= 0:
            os.close(descriptor)
