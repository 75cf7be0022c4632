"""Machines that were removed: kept with their images for some days, and put back on request."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from qemuspawner.errors import CatalogueError
from qemuspawner.machines.catalogue import load_catalogue
from qemuspawner.machines.own import Entry, OwnMachines
from qemuspawner.machines.uses import Uses
from qemuspawner.machines.writing import locked_folder, make_folder, replace_file
from qemuspawner.paths import MACHINE_FILE, StatePaths
from qemuspawner.saved import delete_saved, disk_usage
from qemuspawner.texts import Text

KEEP_S = 7 * 86400

_ABOUT = "removed.json"
_MACHINE, _IMAGES = "machine", "images"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}-[0-9]{10,14}", re.ASCII)


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """`removed.json`."""

    name: str  # the folder's
    id: str
    title: str
    at: float  # Unix seconds
    by: str
    has_images: bool


def remove_machine(own: OwnMachines, machine_id: str, *, digest: str, uses: Uses | None) -> Removed | None:
    """Take a machine out of the catalogue; its templates are deleted, and its image is kept for some days.

    None where the machine of another folder, of which it was a changed copy, comes to light again.

    Raises:
        CatalogueError: It is in use, was changed since, or is not ours to remove; everything is as it was.
    """
    _check_own(own.find(machine_id))
    with _told(own.state), locked_folder(own.state.machines, wait=True):
        entry = own.find(machine_id)
        if digest != entry.digest:
            raise CatalogueError(
                "changed",
                Text("'{machine}' was changed since you opened it; it was not removed.", machine=machine_id),
                hint=Text("Look at it once more."),
            )
        below = any((folder / machine_id / MACHINE_FILE).exists() for folder in _others(own))
        if not below and uses is not None and (sentence := uses.sentence()):
            raise CatalogueError(
                "used",
                Text(
                    "'{machine}' has desktops, which would be lost with it: {uses}.",
                    machine=machine_id,
                    uses=sentence,
                ),
                hint=Text("Hide it, so that nobody starts a new one, and remove it when they are gone."),
            )
        if not below:
            _check_unshared(own, machine_id)
        removed = _move(own, entry, with_images=not below)
        sweep_removed(own.state)
    if below:
        return None
    for template in uses.templates if uses is not None else ():
        delete_saved(own.state.templates / template)
    return removed


def list_removed(state: StatePaths) -> list[Removed]:
    """The last one first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in state.removed_machines.iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                removed = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=Removed)
                if removed.name == folder.name:
                    found.append(removed)
    return sorted(found, key=lambda removed: removed.at, reverse=True)


def restore_machine(own: OwnMachines, name: str) -> Entry:
    """Put a machine back where it was.

    Raises:
        CatalogueError: It is not kept any more, or its place is taken.
    """
    removed = next((one for one in list_removed(own.state) if one.name == name), None)
    if removed is None or not _NAME.fullmatch(name):
        raise CatalogueError("missing", Text("This machine is not kept any more."))
    kept = own.state.removed_machines / name
    target, images = own.state.machines / removed.id, own.state.images / removed.id
    with _told(own.state), locked_folder(own.state.machines, wait=True):
        if target.exists() or (removed.has_images and images.exists()):
            raise CatalogueError(
                "exists",
                Text("There is another machine '{machine}' by now, or its image folder.", machine=removed.id),
                hint=Text("Remove that one first."),
            )
        # Not the machine before its images: somebody might start it.
        if removed.has_images:
            (kept / _IMAGES).rename(images)
        (kept / _MACHINE).rename(target)
        shutil.rmtree(kept)
    return own.find(removed.id)


def sweep_removed(state: StatePaths, *, keep_s: float = KEEP_S) -> Sequence[str]:
    """Delete for good what was removed longer ago; the names."""
    old = [removed.name for removed in list_removed(state) if removed.at < time.time() - keep_s]
    for name in old:
        shutil.rmtree(state.removed_machines / name, ignore_errors=True)
    return old


def size_of_removed(state: StatePaths, name: str) -> int:
    """Bytes on the disk."""
    return disk_usage(state.removed_machines / name)


def _move(own: OwnMachines, entry: Entry, *, with_images: bool) -> Removed:
    state = own.state
    make_folder(state.removed_machines)
    images = state.images / entry.id
    removed = Removed(
        name=f"{entry.id}-{time.time_ns() // 1_000_000}",
        id=entry.id,
        title=entry.machine.name if entry.machine is not None else entry.id,
        at=time.time(),
        by=own.by,
        has_images=with_images and images.is_dir(),
    )
    kept = state.removed_machines / removed.name
    kept.mkdir(mode=0o755)
    replace_file(kept / _ABOUT, msgspec.json.encode(removed))
    entry.folder.rename(kept / _MACHINE)
    if removed.has_images:
        try:
            images.rename(kept / _IMAGES)
        except OSError:
            # Such as another disk's.
            (kept / _MACHINE).rename(entry.folder)
            shutil.rmtree(kept)
            raise
    return removed


def _check_own(entry: Entry) -> None:
    if not entry.is_own:
        raise CatalogueError(
            "denied",
            Text(
                "'{machine}' lies in {folder}, which is only read here.",
                machine=entry.id,
                folder=entry.folder,
            ),
            hint=Text("Hide it, or remove that folder on the host."),
        )


def _check_unshared(own: OwnMachines, machine_id: str) -> None:
    """Refuse where another machine names files in the image folder of this one."""
    images = own.state.images / machine_id
    for machine in load_catalogue([own.state.machines, *_others(own)], own.state.images).machines.values():
        names = (machine.image.file, machine.image.kernel, machine.image.initrd)
        if machine.id != machine_id and any(name and Path(name).is_relative_to(images) for name in names):
            raise CatalogueError(
                "used",
                Text(
                    "The machine '{other}' starts from an image of '{machine}'.",
                    other=machine.id,
                    machine=machine_id,
                ),
                hint=Text("Give '{machine}' an image of its own first.", machine=machine.id),
            )


def _others(own: OwnMachines) -> list[Path]:
    return [folder for folder in own.folders if folder != own.state.machines]


@contextlib.contextmanager
def _told(state: StatePaths) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise CatalogueError(
            "denied",
            Text("The machine cannot be moved: {reason}.", reason=exc.strerror),
            hint=Text(
                "Folders below {folder} must belong to the account that makes the change, on one disk.",
                folder=state.root,
            ),
        ) from exc
