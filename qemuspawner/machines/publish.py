"""A user's desktop that sleeps becomes a machine that others can start, or such a machine's next version.

The new image stands alone, and only then a machine.toml names it: whatever fails before leaves all as it was.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import structs

from qemuspawner.errors import CatalogueError
from qemuspawner.machine import Allow, Image, Machine
from qemuspawner.machines.asleep import Asleep
from qemuspawner.machines.changes import Changes, compare
from qemuspawner.machines.edits import set_keys
from qemuspawner.machines.image_files import Progress, Step, check_room, draft_of, put_in_place
from qemuspawner.machines.old_images import delete_unused
from qemuspawner.machines.own import Entry, OwnMachines, copy_images
from qemuspawner.machines.versions import files_of_version, list_images, next_version, version_of
from qemuspawner.machines.writing import locked_folder, make_folder
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.convert import convert_disk
from qemuspawner.qemu.image import read_disk_mib
from qemuspawner.qemu.vm import Disk
from qemuspawner.texts import Text

# Versions to which one can go back. What a desktop stands on stays longer.
KEPT_VERSIONS = 5
_CHANGES_FOLDER = ".changes"


def publish(
    own: OwnMachines,
    asleep: Asleep,
    machine_id: str,
    *,
    name: str = "",
    allow: Allow | None = None,
    hidden: bool | None = None,
    progress: Progress,
) -> Entry:
    """Make the desktop the machine, or its next version where it was published under this id before.

    What is None stays as it is; of a new machine it is "its user, hidden".

    Raises:
        CatalogueError: The id is another machine's, or cannot be one.
        MachineError, ImageError: The image cannot be made.
    """
    before = _find_before(own, machine_id, asleep.user)
    folder = own.state.images / machine_id
    number = next_version(before.machine if before else None, folder)
    machine = _plan(asleep, machine_id, folder, number, own.state)
    changes: dict[str, object] = {"version": str(number), **_image_keys(machine.image, own.state)}
    if name:
        changes["name"] = name
    if allow is None and before is None:
        allow = Allow(users=(asleep.user,))
    if allow is not None:
        changes |= {"allow.users": list(allow.users), "allow.groups": list(allow.groups)}
    if hidden is not None or before is None:
        changes["hidden"] = hidden is not False
    if before is None:
        changes |= {"owner": asleep.user, "build": None}
    text = set_keys((before or asleep.entry).text, changes)
    if before is None:
        own.check_like(asleep.entry, machine_id, text)

    with draft_of(machine, own.state) as draft:
        if Path(machine.image.file).exists():
            # Somebody was quicker, between our look and the lock of the folder.
            raise CatalogueError(
                "changed",
                Text("Version {number} of '{machine}' is there already.", number=number, machine=machine_id),
                hint=Text("Do it again, for the next one."),
            )
        draft.unlink(missing_ok=True)
        with asleep.copied(draft.parent, progress=progress) as disk:
            _write(disk, draft, "qcow2", machine, progress)
        copy_images(structs.replace(asleep.machine.image, file=""), machine.image)
        put_in_place(machine, draft, state=own.state, progress=progress, convert=False)
    what = f"version {number}, of a desktop of {asleep.user}"
    try:
        if before is None:
            entry = own.add_like(asleep.entry, machine_id, text, what=what)
        else:
            entry = own.save(machine_id, text, digest=before.digest, what=what)
    except BaseException:
        for path in files_of_version(machine.image):
            path.unlink(missing_ok=True)
        raise
    if entry.machine is not None:
        delete_unused(entry.machine, list_images(entry.machine)[KEPT_VERSIONS:], own.state.sessions)
    return entry


def find_changes(own: OwnMachines, asleep: Asleep, *, progress: Progress) -> Changes:
    """What differs between the desktop and the machine that it began from.

    Raises:
        MachineError, ImageError: The desktop cannot be read.
    """
    if asleep.machine.image.format == "iso":
        return Changes(unknown=Text("It began from a CD."))
    with _changes_folder(own.state) as folder:
        before, after = folder / "before.raw", folder / "after.raw"
        with asleep.copied(folder, progress=progress) as disk:
            _write(disk, after, "raw", asleep.machine, progress)
            _write(disk, before, "raw", asleep.machine, progress, below=True)
        progress(Step(step="comparing"))
        return compare(before, after)


def _find_before(own: OwnMachines, machine_id: str, user: str) -> Entry | None:
    """The machine whose next version it is; None where there is none of this id."""
    found = [entry for entry in own.list() if entry.id == machine_id]
    if not found:
        return None
    (entry,) = found
    machine = entry.machine
    if machine is None or not entry.is_own or machine.owner != user or not version_of(machine.image):
        raise CatalogueError(
            "exists",
            Text("There is a machine '{machine}' already.", machine=machine_id),
            hint=Text("Only who published a machine gives it a next version. Choose another id."),
        )
    return entry


def _plan(asleep: Asleep, machine_id: str, folder: Path, number: int, state: StatePaths) -> Machine:
    """The machine with the names that its new files have."""
    image = asleep.machine.image
    names = {"file": str(folder / f"v{number}-disk.qcow2")}
    old = version_of(image)
    for key in ("kernel", "initrd", "drivers"):
        path = Path(getattr(image, key))
        # What lies elsewhere is the administrator's, and named as it is.
        if path.is_relative_to(state.images):
            names[key] = str(folder / f"v{number}-{path.name.removeprefix(f'v{old}-')}")
    return structs.replace(
        asleep.machine, id=machine_id, build=None, image=structs.replace(image, format="qcow2", **names)
    )


def _image_keys(image: Image, state: StatePaths) -> dict[str, object]:
    """What machine.toml says of it."""
    keys: dict[str, object] = {
        "image.format": "qcow2",
        "image.url": None,
        "image.digest": None,
        "image.disk": None,
    }
    for key in ("file", "kernel", "initrd", "drivers"):
        path = Path(getattr(image, key))
        if getattr(image, key):
            keys[f"image.{key}"] = path.name if path.is_relative_to(state.images) else str(path)
    return keys


def _write(
    disk: Disk,
    target: Path,
    driver: Literal["qcow2", "raw"],
    machine: Machine,
    progress: Progress,
    *,
    below: bool = False,
) -> None:
    total = read_disk_mib(disk.path) << 20

    def tell(share: float) -> None:
        # What it will take nobody knows: the guest chose what is in the disk.
        check_room(machine, target.parent, 0)
        progress(Step(step="converting", done=round(share * total), total=total))

    convert_disk(disk, target, target=driver, on_part=tell, below=below)


@contextlib.contextmanager
def _changes_folder(state: StatePaths) -> Iterator[Path]:
    """Where whole disks are compared, one at a time; nobody else may read them."""
    folder = state.images / _CHANGES_FOLDER
    make_folder(state.images)
    folder.mkdir(mode=0o700, exist_ok=True)
    with locked_folder(folder, wait=True):
        _empty(folder)
        try:
            yield folder
        finally:
            _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
