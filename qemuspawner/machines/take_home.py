"""The image of a sleeping desktop, or of a machine, as a file that its user takes home.

It is one compressed qcow2 that stands alone: QEMU starts it, and others after `qemu-img convert`.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from qemuspawner.errors import CatalogueError, MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines.asleep import Asleep
from qemuspawner.machines.downloads import check_allowed, desktop_file, machine_file, sweep
from qemuspawner.machines.image_files import SPARE_BYTES, Progress, Step
from qemuspawner.machines.own import OwnMachines
from qemuspawner.machines.writing import locked_folder, make_folder
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.convert import convert_disk, convert_image, measure
from qemuspawner.qemu.image import check_image, read_disk_mib
from qemuspawner.texts import Text
from qemuspawner.units import render_mib


def pack_desktop(own: OwnMachines, asleep: Asleep, *, server: str, progress: Progress) -> Path:
    """Pack the disk of a desktop; the file.

    Raises:
        CatalogueError: Its machine does not allow that.
        MachineError, ImageError: It cannot be read, or there is no room.
    """
    check_allowed(asleep.entry.machine)
    target = desktop_file(own.state, user=asleep.user, server=server, machine_id=asleep.entry.id)
    with _draft_of(target, own.state) as draft:
        layers = _layers_bytes(asleep)
        # The layers are copied first, and none of their bytes may get smaller.
        _check_room(draft.parent, 2 * layers + _size(Path(asleep.machine.image.file)))
        with asleep.copied(draft.parent, progress=progress) as disk:
            tell = _teller(draft.parent, read_disk_mib(disk.path) << 20, progress)
            convert_disk(disk, draft, target="qcow2", on_part=tell, compressed=True)
    progress(Step(step="done", done=_size(target), total=_size(target)))
    return target


def pack_machine(machine: Machine, *, state: StatePaths, progress: Progress) -> Path:
    """Pack the image of a machine; the file.

    Raises:
        CatalogueError: The machine does not allow that, or starts from a CD.
        MachineError, ImageError: It cannot be read, or there is no room.
    """
    check_allowed(machine)
    if machine.image.format == "iso":
        raise CatalogueError(
            "invalid", Text("'{machine}' starts from a CD, which is no disk.", machine=machine.name)
        )
    target = machine_file(state, machine)
    with _draft_of(target, state) as draft:
        check_image(machine.image)
        size = measure(machine.image, target="qcow2", folder=draft.parent)
        _check_room(draft.parent, size.file_bytes)
        tell = _teller(draft.parent, size.disk_bytes, progress)
        convert_image(machine.image, draft, target="qcow2", size=size, on_part=tell, compressed=True)
    progress(Step(step="done", done=_size(target), total=_size(target)))
    return target


@contextlib.contextmanager
def _draft_of(target: Path, state: StatePaths) -> Iterator[Path]:
    """Where to write it; what was in its folder before goes, and all of a draft that fails."""
    sweep(state)
    folder = target.parent
    try:
        make_folder(state.root)
        state.downloads.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with locked_folder(folder):
            _empty(folder)
            draft = folder / "draft"
            try:
                yield draft
                draft.chmod(0o400)
                descriptor = os.open(draft, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except BaseException:
                _empty(folder)
                raise
            draft.replace(target)
    except BlockingIOError as exc:
        raise MachineError(Text("This image is being packed already.")) from exc
    except OSError as exc:
        raise MachineError(
            Text("The image cannot be packed: {reason}.", reason=exc.strerror),
            hint=Text("Try again later, or tell the site's staff."),
        ) from exc


def _teller(folder: Path, total: int, progress: Progress) -> Callable[[float], None]:
    def tell(share: float) -> None:
        # How well it can be compressed, nobody knows.
        _check_room(folder, 0)
        progress(Step(step="converting", done=round(share * total), total=total))

    return tell


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Raises MachineError where so much more would fill the disk; without a path, as its user reads that."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise MachineError(
            Text(
                "Packing the image may take {size}; {free} are free on the host's disk.",
                size=render_mib(-(-(needed_bytes + SPARE_BYTES) >> 20)),
                free=render_mib(free >> 20),
            ),
            hint=Text("Try again later, or tell the site's staff."),
        )


def _layers_bytes(asleep: Asleep) -> int:
    saved = SavedPaths(root=asleep.paths.saved / asleep.saved.name)
    return sum(_size(saved.layer(depth)) for depth in range(asleep.saved.layers))


def _size(path: Path) -> int:
    return path.lstat().st_size


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
