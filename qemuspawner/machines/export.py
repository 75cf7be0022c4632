"""A whole machine in a folder, to be taken elsewhere: machine.toml, what lies beside it, and its image."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import MachineError
from qemuspawner.machine import ImageFormat, Machine
from qemuspawner.machines.catalogue import missing_files, read_text
from qemuspawner.machines.edits import set_keys
from qemuspawner.machines.image_files import Progress, Step, check_room, copy_file
from qemuspawner.paths import MACHINE_FILE
from qemuspawner.qemu.convert import convert_image, measure
from qemuspawner.qemu.image import check_image

IMAGES = "images"
DIGESTS = "SHA256SUMS"


def export_machine(
    machine: Machine, folder: Path, *, image_format: ImageFormat | None, progress: Progress
) -> None:
    """Write the machine into the new `folder`, its image in another format where one is given.

    Raises:
        MachineError, ImageError: It cannot be; nothing is left of it.
    """
    if missing := missing_files(machine):
        raise MachineError(f"'{machine.id}' cannot be exported: {missing[0]} is missing.")
    if folder.exists():
        raise MachineError(f"{folder} is there already.", hint="Name a folder that is not.")
    with _draft_of(folder) as draft:
        images = draft / IMAGES
        images.mkdir()
        file = _export_image(machine, images, image_format, progress)
        for name in filter(None, (machine.image.kernel, machine.image.initrd)):
            copy_file(machine, Path(name), images / Path(name).name, progress=progress)
        _copy_beside(Path(machine.folder), draft)
        keys: dict[str, object] = {"image.file": file.name}
        if image_format is not None and image_format != machine.image.format:
            # What was published is another file.
            keys |= {"image.format": image_format, "image.digest": None, "image.url": None}
            keys |= {f"image.{key}": None for key in ("mirrors", "checksums", "signature", "keyring")}
        text = set_keys(read_text(Path(machine.folder)), keys)
        (draft / MACHINE_FILE).write_text(text)
        (draft / DIGESTS).write_text("".join(_digests(images)))
        size = sum(path.stat().st_size for path in images.iterdir())
        draft.rename(folder)
    progress(Step(step="done", done=size, total=size))


def _export_image(
    machine: Machine, images: Path, image_format: ImageFormat | None, progress: Progress
) -> Path:
    image = machine.image
    source = Path(image.file)
    check_image(image)
    if image_format in (None, image.format):
        target = images / source.name
        copy_file(machine, source, target, progress=progress)
        return target
    assert image_format is not None
    target = images / f"{source.stem}.{'img' if image_format == 'raw' else image_format}"
    size = measure(image, target=image_format, folder=images)
    check_room(machine, images, size.file_bytes)

    def tell(part: float) -> None:
        progress(Step(step="converting", done=int(part * size.disk_bytes), total=size.disk_bytes))

    convert_image(image, target, target=image_format, size=size, on_part=tell)
    return target


def _copy_beside(source: Path, target: Path) -> None:
    """What a recipe or an icon needs; histories and drafts stay."""
    for path in source.iterdir():
        if path.name.startswith(".") or path.name == MACHINE_FILE:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, symlinks=True)
        else:
            shutil.copy2(path, target / path.name, follow_symlinks=False)


def _digests(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {IMAGES}/{path.name}\n"


@contextlib.contextmanager
def _draft_of(folder: Path) -> Iterator[Path]:
    """A folder beside it that becomes it, or goes."""
    draft = folder.with_name(f".{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        yield draft
    except OSError as exc:
        raise MachineError(f"{folder} cannot be written: {exc.strerror}.") from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
