"""The images of a machine that was made from desktops: one for each version, under names of their own.

So machine.toml names the version that counts, going back is a change of a text, and a desktop that stands on
an older version finds that where it was.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import structs

from qemuspawner.machine import Image, Machine

_NAME = re.compile(r"v([0-9]{1,6})-disk\.qcow2", re.ASCII)
_FILES = ("file", "kernel", "initrd", "drivers")


def version_of(image: Image) -> int:
    """Its number; 0 where it was not made from a desktop."""
    match = _NAME.fullmatch(Path(image.file).name)
    return int(match[1]) if match else 0


def list_images(machine: Machine) -> list[Image]:
    """Those of all versions, the newest first; none of a machine that was not made from a desktop."""
    number = version_of(machine.image)
    folder = Path(machine.image.file).parent
    with contextlib.suppress(OSError):
        found = [int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [_renamed(machine.image, number, other) for other in sorted(found, reverse=True) if number]
    return []


def next_version(machine: Machine | None, folder: Path) -> int:
    """A number that no image has, also none that machine.toml does not name."""
    used = [0, version_of(machine.image) if machine else 0]
    with contextlib.suppress(OSError):
        used += [int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return max(used) + 1


def files_of_version(image: Image) -> Iterator[Path]:
    """Those files that this version has for itself."""
    prefix = f"v{version_of(image)}-"
    paths = (Path(getattr(image, key)) for key in _FILES)
    return (path for path in paths if path.name.startswith(prefix))


def _renamed(image: Image, number: int, other: int) -> Image:
    """The same names with another number; a file without one is the same for all versions."""
    names = {}
    for key in _FILES:
        path = Path(getattr(image, key))
        if path.name.startswith(f"v{number}-"):
            names[key] = str(path.with_name(f"v{other}-{path.name.removeprefix(f'v{number}-')}"))
    return structs.replace(image, **names)
