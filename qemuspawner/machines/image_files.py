"""A machine's image taken from elsewhere: checked as a draft, then put in the place of the old one.

Until the last rename the old image stays, whatever fails. What desktops stand on is kept beside the new one.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msgspec import structs

from qemuspawner.errors import ImageError, MachineError
from qemuspawner.machine import ImageFormat, Machine
from qemuspawner.machines.old_images import keep_image
from qemuspawner.machines.writing import locked_folder, make_folder, sync_folder
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.convert import TARGETS, convert_image, measure
from qemuspawner.qemu.digests import note_digest
from qemuspawner.qemu.image import check_image, recognise_format
from qemuspawner.units import render_mib

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DRAFT_FOLDER = ".draft"
# Where the words of archives lie, and what they are. No boot sector begins so.
_PACKED = {
    "gzip": (0, b"\x1f\x8b\x08"),
    "xz": (0, b"\xfd7zXZ\0"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
    "bzip2": (0, b"BZh"),
    "zip": (0, b"PK\x03\x04"),
    "tar, as an OVA is": (257, b"ustar"),
}
_HEAD_BYTES = 512
_PIECE_BYTES = 4 << 20
# What the host's disk shall have left when an image is there.
SPARE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far it is; `total` is 0 where nobody knows."""

    step: Literal["fetching", "copying", "checking", "converting", "comparing", "done"]
    done: int = 0  # bytes
    total: int = 0


Progress = Callable[[Step], None]


@contextlib.contextmanager
def draft_of(machine: Machine, state: StatePaths) -> Iterator[Path]:
    """Where to write the machine's new image, in a folder that stays until the image is in place.

    Raises:
        MachineError: It has a recipe, an image elsewhere, another is being made, or the disk is full.
    """
    _check_place(machine, state)
    file = Path(machine.image.file)
    try:
        make_folder(file.parent)
        with locked_folder(file.parent):
            folder = file.parent / _DRAFT_FOLDER
            draft = folder / file.name
            make_draft_folder(draft)
            try:
                yield draft
            except OSError as exc:
                if exc.errno in _FULL:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except BlockingIOError as exc:
        raise MachineError(
            f"The image of '{machine.id}' is being made already.", hint="Wait until that is done."
        ) from exc
    except OSError as exc:
        raise MachineError(
            f"The image of '{machine.id}' cannot be written: {exc.strerror}.",
            hint=f"Images lie in {state.images}, which this account must be allowed to write.",
        ) from exc


def check_room(machine: Machine, folder: Path, needed_bytes: int) -> None:
    """Raises MachineError where so much more would fill the disk."""
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise MachineError(
            f"The image of '{machine.id}' takes {render_mib(-(-needed_bytes >> 20))} more; "
            f"{render_mib(free >> 20)} are free at {folder.parent}.",
            hint="Make room on the host's disk.",
        )


def make_draft_folder(draft: Path) -> None:
    """What is half there nobody but us may read."""
    draft.parent.mkdir(mode=0o700, exist_ok=True)


def check_draft(machine: Machine, draft: Path, *, digest: str, progress: Progress, convert: bool) -> None:
    """Raises ImageError where what came is not what it shall be, or reaches for other files; it is deleted.

    With `convert` it may be in another format than machine.toml says.
    """
    image = structs.replace(machine.image, file=str(draft))
    try:
        if packed := _find_packing(draft):
            raise ImageError(
                f"The image of '{machine.id}' is packed by {packed}.",
                hint="Unpack it, and import the image in it.",
            )
        check_image(structs.replace(image, format=recognise_format(draft)) if convert else image)
        if digest and (found := digest_of(draft, like=digest, progress=progress)) != digest:
            raise ImageError(
                f"The image of '{machine.id}' has the digest {found}, and not {digest}.",
                hint="It was changed on its way, or there is a newer one by now; compare with who offers it.",
            )
    except ImageError:
        shutil.rmtree(draft.parent)
        raise


def put_in_place(
    machine: Machine, draft: Path, *, state: StatePaths, progress: Progress, convert: bool
) -> None:
    """Let the draft that was checked be the machine's image.

    Raises:
        MachineError, ImageError: It cannot be converted; the draft stays.
    """
    folder = draft.parent
    if convert and (found := recognise_format(draft)) != machine.image.format:
        draft = _convert_draft(machine, draft, found, progress=progress)
    size = draft.stat().st_size
    held = digest_of(draft, like="sha256:", progress=progress)
    draft.chmod(0o444)
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    keep_image(machine, state.sessions)
    draft.replace(machine.image.file)
    note_digest(Path(machine.image.file), held)
    sync_folder(Path(machine.image.file).parent)
    shutil.rmtree(folder)
    progress(Step(step="done", done=size, total=size))


def _find_packing(draft: Path) -> str:
    """What it would have to be unpacked with; else it would pass for a raw disk."""
    with draft.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for name, (offset, magic) in _PACKED.items():
        if head[offset : offset + len(magic)] == magic:
            return name
    return ""


def import_image(
    machine: Machine,
    source: Path,
    *,
    state: StatePaths,
    progress: Progress,
    digest: str = "",
    move: bool = False,
    convert: bool = False,
) -> None:
    """Make a file of this host the machine's image; with `move` it is gone from where it was.

    With `convert` it may be in another format, and is converted into that of machine.toml.

    Raises:
        MachineError, ImageError: It cannot be; the old image is still in place.
    """
    with draft_of(machine, state) as draft:
        draft.unlink(missing_ok=True)
        if move and source.is_file():
            with contextlib.suppress(OSError):
                source.rename(draft)
        if not draft.exists():
            copy_file(machine, source, draft, progress=progress)
            if move:
                source.unlink()
        check_draft(machine, draft, digest=digest or machine.image.digest, progress=progress, convert=convert)
        put_in_place(machine, draft, state=state, progress=progress, convert=convert)


def copy_file(machine: Machine, source: Path, draft: Path, *, progress: Progress) -> None:
    """Raises MachineError where it is no file that can be read, OSError where it cannot be written."""
    try:
        # A FIFO in its place must not hang us.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise MachineError(f"The file {source} cannot be opened: {exc.strerror}.") from exc
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise MachineError(f"{source} is not a file.")
    with os.fdopen(descriptor, "rb") as file:
        total = status.st_size
        check_room(machine, draft.parent, total)
        done = 0
        with draft.open("wb") as out:
            while piece := file.read(_PIECE_BYTES):
                out.write(piece)
                done += len(piece)
                progress(Step(step="copying", done=done, total=total))


def _check_place(machine: Machine, state: StatePaths) -> None:
    if machine.build is not None:
        raise MachineError(
            f"The image of '{machine.id}' is made by its recipe, and not taken from elsewhere.",
            hint=f"Run 'qemuspawner machines build {machine.id}', or remove its [build] table.",
        )
    if Path(machine.image.file).parent != state.images / machine.id:
        raise MachineError(
            f"The image of '{machine.id}' lies at {machine.image.file}, which is only read.",
            hint="Give a name without '/' as image.file.",
        )


def digest_of(path: Path, *, like: str, progress: Progress) -> str:
    """The file's digest, by the same algorithm as the digest `like`."""
    algorithm = like.partition(":")[0]
    digest = hashlib.new(algorithm)
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            done += len(piece)
            progress(Step(step="checking", done=done, total=size))
    return f"{algorithm}:{digest.hexdigest()}"


def _convert_draft(machine: Machine, draft: Path, found: ImageFormat, *, progress: Progress) -> Path:
    """The draft in the format of machine.toml, another file beside it; raises MachineError or ImageError."""
    if machine.image.format not in TARGETS:
        raise MachineError(
            f"The image of '{machine.id}' is in the format {found}, and nothing is converted into "
            f"{machine.image.format}.",
            hint=f"Set image.format to one of {', '.join(TARGETS)}, or to {found}.",
        )
    source = structs.replace(machine.image, file=str(draft), format=found)
    path = draft.with_name("converted")
    size = measure(source, target=machine.image.format, folder=draft.parent)
    check_room(machine, draft.parent, size.file_bytes)

    def tell(part: float) -> None:
        progress(Step(step="converting", done=int(part * size.disk_bytes), total=size.disk_bytes))

    convert_image(source, path, target=machine.image.format, size=size, on_part=tell)
    return path
