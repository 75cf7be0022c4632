"""What an image is made from: a machine's [build] table, on top of those that it names as its base."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qemuspawner.errors import MachineError
from qemuspawner.machine import Build, Machine, encode_unit
from qemuspawner.machines.container import PACKAGE, split_tag

# Counts up when the steps of a build change what they make of the same recipe.
_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One machine's part of a recipe."""

    folder: Path
    build: Build

    @property
    def files(self) -> Path | None:
        """The folder that is laid over the root."""
        return self.folder / self.build.files if self.build.files else None

    @property
    def script(self) -> Path | None:
        return self.folder / self.build.script if self.build.script else None

    @property
    def first_boot(self) -> Path | None:
        return self.folder / self.build.first_boot if self.build.first_boot else None

    @property
    def container(self) -> Path | str:
        """A layout or archive beside machine.toml, or where else it comes from; "" where there is none."""
        text = self.build.container
        return self.folder / split_tag(text)[0] if text and not text.startswith("docker://") else text

    def list_files(self) -> list[Path]:
        """Everything that a build reads, but machine.toml."""
        files = [path for path in (self.script, self.first_boot) if path]
        folders = [self.files] if self.files else []
        if isinstance(self.container, Path):
            folders.append(self.container)
        for folder in folders:
            found = folder.rglob("*") if folder.is_dir() else [folder]
            files += [path for path in found if path.is_file()]
        return sorted(files)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Its layers, the lowest first; the last one is the machine's own, and decides on suite and disk."""

    machine: Machine
    layers: tuple[Layer, ...]

    @property
    def build(self) -> Build:
        return self.layers[-1].build

    @property
    def packages(self) -> list[str]:
        names = [name for layer in self.layers for name in layer.build.packages]
        if self.has_container:
            names.append(PACKAGE)
        return list(dict.fromkeys(names))

    @property
    def has_container(self) -> bool:
        return any(layer.build.container for layer in self.layers)

    @property
    def exclude(self) -> list[str]:
        return list(dict.fromkeys(pattern for layer in self.layers for pattern in layer.build.exclude))

    @property
    def outputs(self) -> tuple[Path, ...]:
        image = self.machine.image
        return tuple(Path(name) for name in (image.file, image.kernel, image.initrd) if name)

    def digest(self) -> str:
        """Of everything that a build reads.

        What Debian's mirror offers on the day is no part of it: rebuild with force for updates.
        """
        digest = hashlib.sha256()
        names = [path.name for path in self.outputs]
        for layer in self.layers:
            told = [_VERSION, layer.build, self.machine.image.format, names]
            digest.update(msgspec.json.encode(told, enc_hook=encode_unit))
            for path in layer.list_files():
                content = path.read_bytes()
                digest.update(f"\0{path.relative_to(layer.folder)}\0{len(content)}\0".encode())
                digest.update(content)
        return f"sha256:{digest.hexdigest()}"


def find_recipe(machine: Machine, machines: Mapping[str, Machine]) -> Recipe:
    """The recipe of `machine`, whose bases are among `machines`.

    Raises:
        MachineError: It or a base has no [build] table, or the bases go round in a circle.
    """
    return Recipe(machine=machine, layers=tuple(_layers_of(machine, machines))[::-1])


def _layers_of(machine: Machine, machines: Mapping[str, Machine]) -> Iterator[Layer]:
    """From the machine's own down."""
    seen: list[str] = []
    current = machine
    while True:
        if current.build is None:
            what = f"'{current.id}' has no [build] table"
            if not seen:
                hint = "Put its image into the machine's image folder by hand, or add the table."
                raise MachineError(f"{what}.", hint=hint)
            raise MachineError(f"{what}, and '{seen[-1]}' names it as build.base.", hint=_HINT)
        yield Layer(folder=Path(current.folder), build=current.build)
        seen.append(current.id)
        base = current.build.base
        if not base:
            return
        if base in seen:
            circle = " -> ".join([*seen[seen.index(base) :], base])
            raise MachineError(f"build.base of '{machine.id}' goes round in a circle: {circle}.", hint=_HINT)
        if base not in machines:
            raise MachineError(
                f"There is no machine '{base}', which '{current.id}' names as build.base.", hint=_HINT
            )
        current = machines[base]


_HINT = "Name a machine with a [build] table, or leave build.base out."
