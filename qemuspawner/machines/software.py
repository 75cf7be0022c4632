"""The software of a built image, as its own package database says it."""

import configparser
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from qemuspawner.machines.recipe import Recipe

# Beside the image.
SOFTWARE = "software.json"

# Packages that are named in a recipe to make a system of it: nobody looks for them.
_SYSTEM = {
    "admin", "fonts", "gnome", "kernel", "libs", "localization", "net", "perl", "shells", "sound", "utils",
    "x11",
}  # fmt: skip
_MAX_SUMMARY = 200


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    section: str
    summary: str


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A program with a place in the desktop's menu, or a package that the recipe names."""

    name: str
    version: str
    summary: str
    package: str


def list_software(root: Path, recipe: Recipe) -> list[Program]:
    """What is installed below the root folder of an image, by name.

    Of the packages only those that the recipe asks for: what these need is nobody's reason to choose it.
    """
    packages = _read_packages(root)
    found = {program.name.casefold(): program for program in _find_applications(root, packages)}
    shown = {program.package for program in found.values()}
    for name in recipe.packages:
        package = packages.get(name)
        if package is None or name in shown or package.section.rpartition("/")[2] in _SYSTEM:
            continue
        found.setdefault(name.casefold(), _program(name, package))
    return [found[name] for name in sorted(found)]


def write_software(folder: Path, software: list[Program]) -> None:
    """Note it beside the image."""
    draft = folder / f".{SOFTWARE}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(software)) + b"\n")
    draft.chmod(0o444)
    draft.replace(folder / SOFTWARE)


def load_software(folder: Path) -> tuple[Program, ...]:
    """What was noted; nothing where the image was not built here."""
    path = folder / SOFTWARE
    try:
        status = path.stat()
    except OSError:
        return ()
    return _load(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _load(path: Path, _mtime_ns: int, _size: int) -> tuple[Program, ...]:
    """Read once as long as it does not change: the form is shown often."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Program, ...])
    except (OSError, msgspec.DecodeError):
        return ()


def _read_packages(root: Path) -> dict[str, _Package]:
    """What is installed; nothing where there is no package database."""
    fields = r"${binary:Package}\t${Version}\t${Section}\t${binary:Summary}\n"
    lines = _ask_dpkg(root, "--show", f"--showformat={fields}")
    packages = (_Package(*line.split("\t", 3)) for line in lines)
    return {package.name.partition(":")[0]: package for package in packages}


def _ask_dpkg(root: Path, *arguments: str) -> list[str]:
    command = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", *arguments]
    # Also where it finds nothing it has an exit code of its own.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.splitlines()


def _program(name: str, package: _Package, summary: str = "") -> Program:
    said = (summary or package.summary)[:_MAX_SUMMARY]
    owner = package.name.partition(":")[0]
    return Program(name=name, version=package.version, summary=said, package=owner)


def _find_applications(root: Path, packages: dict[str, _Package]) -> Iterator[Program]:
    """What desktops have in their menus: https://specifications.freedesktop.org/desktop-entry-spec/."""
    owners = _owners_of_applications(root)
    for path in sorted((root / "usr/share/applications").glob("*.desktop")):
        package = packages.get(owners.get(path.name, ""))
        entry = _read_entry(path)
        if package is None or entry is None:
            continue
        yield _program(entry["Name"], package, entry.get("Comment", ""))


def _read_entry(path: Path) -> configparser.SectionProxy | None:
    """The entry of an application that is shown; None for others, and for what cannot be read."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
        entry = parser["Desktop Entry"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        return None
    is_shown = entry.get("Type") == "Application" and entry.get("NoDisplay", "false") != "true"
    # The desktop's own settings are nobody's reason either.
    is_shown = is_shown and "Settings" not in entry.get("Categories", "").split(";")
    return entry if is_shown and entry.get("Name") else None


def _owners_of_applications(root: Path) -> dict[str, str]:
    """The package of each file in the menus' folder."""
    owners = {}
    for line in _ask_dpkg(root, "--search", "/usr/share/applications/*.desktop"):
        package, _, path = line.partition(": ")
        owners[Path(path).name] = package.partition(",")[0].partition(":")[0]
    return owners
