"""Read and check the machine.toml files of the catalogue.

The author of a machine need not be the administrator: a file is taken for text that may be wrong in any
way, every problem is reported with its file and key, and no machine hides another.
"""

import base64
import difflib
import hashlib
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from qemuspawner.errors import MachineError
from qemuspawner.machine import Build, Cpus, Image, Lifetime, Machine, Memory, Mib, Seconds, decode_unit
from qemuspawner.machines.container import find_container_problem, split_tag
from qemuspawner.machines.first_boot import find_first_boot_problem
from qemuspawner.machines.lines import find_line
from qemuspawner.machines.recipe import find_recipe
from qemuspawner.paths import MACHINE_FILE, StatePaths
from qemuspawner.units import render_mib, render_seconds

_ID = re.compile(r"[a-z][a-z0-9-]{0,39}")
_TOML_LINE = re.compile(r"\(at line ([0-9]+), column [0-9]+\)$")
_PORT_NAME = re.compile(r"[a-z][a-z0-9-]*")
MAX_FILE_BYTES = 256 * 1024
_MAX_ICON_BYTES = 64 * 1024
_PNG = b"\x89PNG\r\n\x1a\n"
_MIN_MEMORY = Mib(16)
_MIN_DURATION = Seconds(60)
_MAX_SHUTDOWN = Seconds(60)  # the hub kills what takes longer
_OWN_FIELDS = ("id", "folder")  # of Machine, and not of machine.toml


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong with a machine."""

    path: Path
    machine_id: str
    key: str  # dotted, such as "cpus.default"; "" for the file as a whole
    reason: str  # without a full stop
    line: int = 0  # counted from 1; 0 where it is not known

    def __str__(self) -> str:
        key = f", key '{self.key}'" if self.key else ""
        # The bytes of a file's name need not be text, and a page with such a name could not be sent.
        return f"{self.path}{key}: {self.reason}.".encode(errors="backslashreplace").decode()


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What can be started, by id and in the order of the names, and what is wrong with the rest."""

    machines: dict[str, Machine]
    problems: tuple[Problem, ...] = ()


def machine_folders(state: StatePaths, folders: Sequence[Path]) -> list[Path]:
    """Where machines are looked for: before `folders` what administrators add and change on the hub."""
    own = [state.machines] if state.machines.is_dir() else []
    return list(dict.fromkeys([*own, *folders]))


def load_all_machines(state: StatePaths, folders: Sequence[Path]) -> Catalogue:
    """The catalogue of a host; see `machine_folders`."""
    return load_catalogue(machine_folders(state, folders), state.images, replacing=state.machines)


def load_catalogue(folders: Sequence[Path], images: Path, *, replacing: Path | None = None) -> Catalogue:
    """All machines of `folders`; where two have the same id, the first one's folder wins.

    That is a problem, unless the first one is in the folder `replacing`, where it is meant. Quick enough to
    be called whenever the form is shown: a file that did not change is not parsed again.
    """
    machines: dict[str, Machine] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            found = list_machine_folders(folder)
        except OSError as exc:
            problems.append(Problem(path=folder, machine_id="", key="", reason=_os_reason(exc)))
            continue
        for path in found:
            machine, wrong = _load(path, images)
            problems += wrong
            if machine is None:
                continue
            if machine.id in machines:
                if Path(machines[machine.id].folder).parent == replacing:
                    continue
                reason = f"hidden by the machine of the same name in {machines[machine.id].folder}"
                problems.append(_problem(path, "", reason))
                continue
            machines[machine.id] = machine
    known = dict(machines)
    for machine in known.values():
        if machine.build is not None and machine.build.base:
            try:
                find_recipe(machine, known)
            except MachineError as exc:
                reason = _lower(exc.message.removesuffix("."))
                problems.append(_problem(Path(machine.folder), "build.base", reason))
                del machines[machine.id]
    by_name = sorted(machines.values(), key=lambda machine: (machine.name.casefold(), machine.id))
    return Catalogue(machines={machine.id: machine for machine in by_name}, problems=tuple(problems))


def load_machine(folder: Path, images: Path) -> Machine:
    """The machine in `folder`, its files made absolute.

    Raises:
        MachineError: Names the file, and of each problem the key and the reason.
    """
    machine, problems = _load(folder, images)
    if machine is None:
        raise MachineError(
            "\n".join(map(str, problems)), hint="docs/machines.md describes every key of machine.toml."
        )
    return machine


def list_machine_folders(folder: Path) -> list[Path]:
    """The machines of a folder of machines, also those that cannot be read; raises OSError."""
    return sorted(path for path in folder.iterdir() if _has_machine_file(path))


def is_machine_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


def check_text(text: str, folder: Path, images: Path) -> tuple[Machine | None, list[Problem]]:
    """The machine that this text in the machine.toml of `folder` makes; or None, and all that is wrong."""
    machine, problems = _load(folder, images, text)
    return machine, [
        replace(problem, line=problem.line or find_line(text, problem.key)) for problem in problems
    ]


def read_text(folder: Path) -> str:
    """The text of the machine.toml in `folder`; raises OSError or ValueError."""
    return _read(folder / MACHINE_FILE, max_bytes=MAX_FILE_BYTES).decode()


def missing_files(machine: Machine) -> list[Path]:
    """The image files that a session would need and that are not there."""
    image = machine.image
    paths = [Path(name) for name in (image.file, image.kernel, image.initrd, image.drivers) if name]
    return [path for path in paths if not _is_file(path)]


def digest_fits(machine: Machine) -> bool:
    """Whether the image is the one that machine.toml names by its digest; takes seconds a gigabyte.

    A machine without a digest takes any image.
    """
    if not machine.image.digest:
        return True
    algorithm, _, digits = machine.image.digest.partition(":")
    with Path(machine.image.file).open("rb") as file:
        return digits == hashlib.file_digest(file, algorithm).hexdigest()


def is_checked(image: Image) -> bool:
    """Whether what is fetched for it is held against something that its way cannot change."""
    return bool(image.digest or image.checksums or (image.signature and image.keyring))


def icon_uri(machine: Machine) -> str:
    """The icon as a data: URI for the `src` of an <img>; empty where there is none.

    Never put the SVG itself into a page: it may carry scripts. Inside an <img> they do not run.
    """
    if not machine.icon:
        return ""
    try:
        content = _read_icon(Path(machine.folder), machine.icon)
    except (OSError, ValueError, RuntimeError):
        return ""
    kind = "image/png" if machine.icon.endswith(".png") else "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _load(folder: Path, images: Path, text: str | None = None) -> tuple[Machine | None, list[Problem]]:
    """The machine in `folder`, or None and what is wrong with it; raises nothing.

    `text` stands for what machine.toml says.
    """
    try:
        return _load_unguarded(folder, images, text)
    except tomllib.TOMLDecodeError as exc:
        where = _TOML_LINE.search(str(exc))
        reason = str(exc).removesuffix(".")
        # Else it is at the end of the document.
        line = int(where[1]) if where else len((text or "").splitlines())
        return None, [replace(_problem(folder, "", reason), line=line)]
    except OSError as exc:
        reason = _os_reason(exc)
    except RecursionError:
        reason = "its values lie too deep in one another"
    except (ValueError, RuntimeError) as exc:
        reason = str(exc).removesuffix(".")
    return None, [_problem(folder, "", reason)]


def _load_unguarded(folder: Path, images: Path, text: str | None) -> tuple[Machine | None, list[Problem]]:
    """As `_load`.

    Raises:
        OSError, ValueError, RuntimeError: Something of it cannot be read or understood.
    """
    if not _ID.fullmatch(folder.name):
        reason = f"the folder's name '{folder.name}' must be 1 to 40 of a-z, 0-9 and '-', a letter first"
        return None, [_problem(folder, "", reason)]
    if text is None:
        text = read_text(folder)
    elif len(text.encode()) > MAX_FILE_BYTES:
        raise ValueError(f"'{MACHINE_FILE}' is larger than {MAX_FILE_BYTES // 1024} KiB")
    machine, wrong = _understand(folder, images, text, _stamp_files(folder, text))
    if wrong:
        return None, [_problem(folder, key, reason) for key, reason in wrong]
    return machine, []


def _problem(folder: Path, key: str, reason: str) -> Problem:
    return Problem(path=folder / MACHINE_FILE, machine_id=folder.name, key=key, reason=reason)


def _has_machine_file(folder: Path) -> bool:
    """Whether to read `folder` as a machine; one that is closed to us counts, and is reported."""
    try:
        (folder / MACHINE_FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_file(path: Path) -> bool:
    """As Path.is_file(), and False where that may not look or the name cannot be one."""
    try:
        return path.is_file()
    except OSError:
        return False


def _read(path: Path, *, max_bytes: int) -> bytes:
    """The content of a regular file; a pipe or device in its place does not hang the hub.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(f"'{path.name}' is not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"'{path.name}' is larger than {max_bytes // 1024} KiB")
    return content


def _os_reason(exc: OSError) -> str:
    return f"it cannot be read: {exc.strerror}"


# -- conversion: each key on its own, so that each wrong one is reported -------------------------------------


Wrong = tuple[str, str]  # key, reason


# Which file, and when it changed; None where none can be seen.
Stamp = tuple[int, ...] | None


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[dict[str, Any], dict[str, Any], list[Wrong]]:
    """A machine's table, its values, and what is wrong with them; nobody changes the result."""
    table = tomllib.loads(text)
    return table, *_convert(Machine, table, prefix="")


@lru_cache(maxsize=256)
def _understand(
    folder: Path, images: Path, text: str, _stamps: tuple[Stamp, ...]
) -> tuple[Machine | None, list[Wrong]]:
    """The machine, or what is wrong with it: found once for a text and the files beside it as they are.

    Each page and each start asks for the whole catalogue, and following links is most of what that takes.
    """
    table, values, wrong = _parse(text)
    if not wrong:
        machine = _complete(Machine(**values), folder, images)
        wrong = list(_check(machine, folder, table))
    return (None, wrong) if wrong else (machine, [])


def _stamp_files(folder: Path, text: str) -> tuple[Stamp, ...]:
    """Of all files that `_check` looks at."""
    _, values, wrong = _parse(text)
    if wrong:
        return ()
    machine = Machine(**values)
    names = [machine.icon, machine.image.keyring]
    if machine.build is not None:
        container, _ = split_tag(machine.build.container)
        names += [
            machine.build.script,
            machine.build.first_boot,
            machine.build.files,
            container,
            container and f"{container}/index.json",
        ]
    return tuple(_stamp(folder / name) for name in names if name)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_ctime_ns


def _convert(
    kind: type[msgspec.Struct], table: dict[str, Any], *, prefix: str
) -> tuple[dict[str, Any], list[Wrong]]:
    """The values of `kind`'s fields, and what is wrong with them."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if kind is Machine:
        fields = {name: field for name, field in fields.items() if name not in _OWN_FIELDS}
    wrong: list[Wrong] = [
        (prefix + name, f"there is no such key{_suggestion(name, fields)}")
        for name in table
        if name not in fields
    ]
    values: dict[str, Any] = {}
    for name, field in fields.items():
        key = prefix + name
        if name not in table:
            if field.required:
                wrong.append((key, "it is missing"))
            continue
        values[name], reasons = _convert_value(field.type, table[name], key)
        wrong += reasons
    return values, wrong


def _convert_value(kind: Any, value: object, key: str) -> tuple[Any, list[Wrong]]:
    inner = _table_kind(kind)
    if inner is not None:
        if not isinstance(value, dict):
            return None, [(key, f"it must be a table, such as [{key}]")]
        values, wrong = _convert(inner, value, prefix=f"{key}.")
        return (None, wrong) if wrong else (inner(**values), [])
    if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        choices = ", ".join(map(str, typing.get_args(kind)))
        return None, [(key, f"{_quote(value)} is not one of {choices}")]
    try:
        return msgspec.convert(value, kind, dec_hook=decode_unit), []
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at ")
        place = where.strip("`").removeprefix("$")
        return None, [(key + place, f"{_quote(value)} does not fit: {_lower(reason)}")]


def _table_kind(kind: Any) -> type[msgspec.Struct] | None:
    """The struct of a table, also of an optional one."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _suggestion(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; is '{close[0]}' meant?" if close else ""


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _lower(text: str) -> str:
    return (text[:1].lower() + text[1:]).replace("`", "'")


# -- what the keys mean together -----------------------------------------------------------------------------


def _complete(machine: Machine, folder: Path, images: Path) -> Machine:
    """Paths made absolute, and what is offered sorted, each once and with the default."""
    own = images / folder.name
    image = machine.image
    cpus, memory, lifetime = machine.cpus, machine.memory, machine.lifetime
    return msgspec.structs.replace(
        machine,
        machine_type="virt" if machine.architecture == "aarch64" else machine.machine_type,
        id=folder.name,
        folder=str(folder.absolute()),
        # An absolute path stays: the administrator's images may lie anywhere.
        image=msgspec.structs.replace(
            image,
            file=_absolute(own, image.file),
            kernel=_absolute(own, image.kernel),
            initrd=_absolute(own, image.initrd),
            drivers=_absolute(own, image.drivers),
            keyring=_absolute(folder, image.keyring),
        ),
        cpus=Cpus(default=cpus.default, offered=tuple(sorted({*cpus.offered, cpus.default}))),
        memory=Memory(default=memory.default, offered=tuple(sorted({*memory.offered, memory.default}))),
        lifetime=msgspec.structs.replace(
            lifetime, offered=tuple(sorted({*lifetime.offered, lifetime.default}))
        ),
    )


def _absolute(folder: Path, name: str) -> str:
    return str((folder / name).absolute()) if name else ""


def _check(machine: Machine, folder: Path, table: dict[str, Any]) -> Iterator[Wrong]:
    for key in ("name", "version"):
        if not getattr(machine, key).isprintable():
            yield key, "it has characters that cannot be shown, such as a line break"
    for index, program in enumerate(machine.programs):
        if not program.name.isprintable():
            yield f"software[{index}]", "it has characters that cannot be shown, such as a line break"
    for name in machine.ports:
        if not _PORT_NAME.fullmatch(name):
            yield (
                f"ports.{name}",
                "a port's name must be of a-z, 0-9 and '-', a letter first",
            )
    if machine.home and not machine.agent:
        yield "home", "files are exchanged by the guest agent: set agent = true, or leave it out"
    if machine.gpu.need != "none" and machine.machine_type != "q35":
        yield "gpu.need", 'GPUs are PCI Express devices: set machine_type = "q35", or leave it out'
    yield from _check_architecture(machine, table)
    if machine.secure_boot and not (machine.firmware == "uefi" and machine.machine_type == "q35"):
        yield "secure_boot", 'it needs firmware = "uefi" and machine_type = "q35"'
    if machine.tpm and machine.machine_type != "q35":
        yield "tpm", 'it needs machine_type = "q35"'
    if machine.sudo and not (machine.agent or machine.cloud_init):
        yield (
            "sudo",
            "the guest is told by its agent or by cloud-init: set one of them to true, or leave it out",
        )
    if machine.login == "user" and not (machine.has_seed or (machine.agent and machine.home)):
        yield (
            "login",
            "a user is logged in by the guest agent, with the folder `home`, or by cloud-init: "
            'set them, or "machine"',
        )
    if machine.shutdown > _MAX_SHUTDOWN:
        longest = render_seconds(_MAX_SHUTDOWN)
        yield "shutdown", f"{render_seconds(machine.shutdown)} are more than {longest}"
    if machine.memory.offered[0] < _MIN_MEMORY:
        size = render_mib(machine.memory.offered[0])
        yield "memory.offered", f"{size} are less than {render_mib(_MIN_MEMORY)}"
    yield from _check_lifetime(machine.lifetime)
    yield from _check_presets(machine)
    yield from _check_image(machine, table["image"])
    if machine.build is not None:
        yield from _check_build(machine, machine.build, folder, table["image"])
    if machine.icon:
        try:
            _read_icon(folder, machine.icon)
        except OSError as exc:
            yield "icon", _os_reason(exc)
        except ValueError as exc:
            yield "icon", str(exc)


# A board of ARM's has neither the PC's graphics nor its disks, and no BIOS.
_ARM_DISPLAYS = ("virtio", "bochs")
_ARM_UEFI_MEMORY = Mib(128)


def _check_architecture(machine: Machine, said: dict[str, Any]) -> Iterator[Wrong]:
    is_arm = machine.architecture == "aarch64"
    if is_arm != (said.get("machine_type", machine.machine_type) == "virt"):
        fitting = "virt" if is_arm else '"q35" or "pc"'
        yield "machine_type", f'"{said["machine_type"]}" is no board of {machine.architecture}: {fitting} is'
    if not is_arm:
        return
    if machine.firmware == "bios":
        yield "firmware", 'aarch64 has no BIOS: set firmware = "uefi" or "direct"'
    if machine.display not in _ARM_DISPLAYS:
        fitting = ", ".join(_ARM_DISPLAYS)
        yield "display", f'"{machine.display}" is of PCs; with aarch64 it is one of {fitting}'
    if machine.firmware == "uefi" and machine.memory.offered[0] < _ARM_UEFI_MEMORY:
        least, size = render_mib(_ARM_UEFI_MEMORY), render_mib(machine.memory.offered[0])
        yield "memory.offered", f"with {size} the UEFI firmware of aarch64 does not start; it needs {least}"
    if machine.image.bus == "sata":
        yield "image.bus", '"sata" is of PCs; with aarch64 it is one of virtio, nvme, scsi'


def _check_lifetime(lifetime: Lifetime) -> Iterator[Wrong]:
    if lifetime.default > lifetime.max:
        longest = render_seconds(lifetime.max)
        yield "lifetime.default", f"{render_seconds(lifetime.default)} are more than lifetime.max, {longest}"
    elif lifetime.offered[-1] > lifetime.max:
        longest = render_seconds(lifetime.max)
        yield (
            "lifetime.offered",
            f"{render_seconds(lifetime.offered[-1])} are more than lifetime.max, {longest}",
        )
    least = render_seconds(_MIN_DURATION)
    if lifetime.offered[0] < _MIN_DURATION:
        yield "lifetime.offered", f"{render_seconds(lifetime.offered[0])} are less than {least}"
    if 0 < lifetime.idle < _MIN_DURATION:
        yield "lifetime.idle", f"{render_seconds(lifetime.idle)} are less than {least}; 0 means never"


def _check_presets(machine: Machine) -> Iterator[Wrong]:
    names = [preset.name for preset in machine.presets]
    for index, preset in enumerate(machine.presets):
        key = f"presets[{index}]"
        if not preset.name.isprintable():
            yield f"{key}.name", "it has characters that cannot be shown, such as a line break"
        if preset.name in names[:index]:
            yield f"{key}.name", f"{_quote(preset.name)} is the name of another preset, too"
        if preset.cpus is not None and preset.cpus not in machine.cpus.offered:
            yield f"{key}.cpus", f"{preset.cpus} is not among cpus.offered"
        if preset.memory is not None and preset.memory not in machine.memory.offered:
            yield f"{key}.memory", f"{render_mib(preset.memory)} is not among memory.offered"
        if preset.lifetime is None:
            continue
        if not _MIN_DURATION <= preset.lifetime <= machine.lifetime.max:
            bounds = f"{render_seconds(_MIN_DURATION)} to {render_seconds(machine.lifetime.max)}"
            yield f"{key}.lifetime", f"{render_seconds(preset.lifetime)} is not within {bounds}"


def _check_image(machine: Machine, said: dict[str, Any]) -> Iterator[Wrong]:
    image = machine.image
    for key in ("file", "kernel", "initrd", "drivers"):
        name = said.get(key, "")
        if ".." in Path(name).parts or "\0" in name:
            yield f"image.{key}", f"{_quote(name)} leads out of the machine's image folder"
    yield from _check_source(image, said)
    if machine.firmware == "direct":
        if not image.kernel:
            yield "image.kernel", 'it is missing; firmware = "direct" starts this kernel'
    else:
        for key in ("kernel", "initrd", "cmdline", "cmdline_tcg"):
            if getattr(image, key):
                yield f"image.{key}", f'it needs firmware = "direct"; the machine has "{machine.firmware}"'


def _check_source(image: Image, said: dict[str, Any]) -> Iterator[Wrong]:
    """Where it is fetched from, and by what it is told from another one."""
    if image.url and (reason := find_url_problem(image.url, is_checked=is_checked(image))):
        yield "image.url", reason
    for index, mirror in enumerate(image.mirrors):
        if reason := find_url_problem(mirror, is_checked=is_checked(image)):
            yield f"image.mirrors[{index}]", reason
    for key in ("mirrors", "checksums", "signature"):
        if getattr(image, key) and not image.url:
            yield f"image.{key}", "it belongs to image.url, which is missing"
    if image.checksums and image.digest:
        yield "image.checksums", "image.digest says what the image is: leave one of them out"
    elif image.checksums and (reason := find_url_problem(image.checksums, is_checked=bool(image.keyring))):
        yield "image.checksums", reason
    if image.signature and not image.keyring:
        yield "image.signature", "it needs image.keyring, the keys that may have signed"
    elif image.signature and (reason := find_url_problem(image.signature, is_checked=True)):
        yield "image.signature", reason
    if image.keyring and not (image.signature or image.checksums):
        yield "image.keyring", "it needs image.signature, or image.checksums that are signed in themselves"
    name = said.get("keyring", "")
    if "\0" in name or ".." in Path(name).parts:
        yield "image.keyring", f"{_quote(name)} leads out of the machine's folder"
    elif name and not Path(name).is_absolute() and not _is_file(Path(image.keyring)):
        yield "image.keyring", f"{_quote(name)} is not a file beside machine.toml"


def find_url_problem(url: str, *, is_checked: bool) -> str:
    """Why no image is fetched from there, as half a sentence; "" where one may be.

    `is_checked`: whether what comes is held against something that its way cannot change.
    """
    try:
        parts = urlsplit(url)
        host, scheme = parts.hostname, parts.scheme
        _ = parts.port  # raises where it is no number
    except ValueError:
        return f"{_quote(url)} is not a URL"
    if not url.isascii() or not url.isprintable() or " " in url:
        return f"{_quote(url)} is not a URL: other characters than ASCII's must be percent-encoded"
    if scheme == "file":
        return "" if parts.path.startswith("/") and not host else f"{_quote(url)} names no file of this host"
    if scheme not in ("http", "https") or not host:
        return f"{_quote(url)} is not of the form https://, http:// or file:///"
    if parts.username is not None:
        return "it holds a name or password, which everybody would see who may see the machine"
    if scheme == "http" and not is_checked:
        return "what comes by http:// can be changed on its way: give image.digest too, or use https://"
    return ""


def _check_build(machine: Machine, build: Build, folder: Path, said: dict[str, Any]) -> Iterator[Wrong]:
    if machine.firmware != "direct":
        yield "build", 'what is built has no boot loader; it needs firmware = "direct"'
    if machine.image.format != "qcow2":
        yield "image.format", f'what is built is "qcow2", not "{machine.image.format}"'
    for key in ("file", "kernel", "initrd"):
        if "/" in said.get(key, ""):
            yield (
                f"image.{key}",
                "what is built lies in the machine's image folder: a name without '/' is needed",
            )
    if not build.packages and not build.base:
        yield "build.packages", "it is empty"
    if build.container and (reason := find_container_problem(build.container, folder)):
        yield "build.container", reason
    for key, name, is_right, kind in (
        ("build.script", build.script, _is_file, "file"),
        ("build.first_boot", build.first_boot, _is_file, "file"),
        ("build.files", build.files, Path.is_dir, "folder"),
    ):
        if name and not (_lies_in(folder, name) and is_right(folder / name)):
            yield key, f"{_quote(name)} is not a {kind} beside machine.toml"
        elif name and key == "build.first_boot" and (reason := find_first_boot_problem(folder / name)):
            yield key, reason


def _lies_in(folder: Path, name: str) -> bool:
    """Whether `name` stays in `folder`, also when links are followed; False where they lead nowhere."""
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, in a circle
        return False


def _read_icon(folder: Path, name: str) -> bytes:
    """Raises ValueError or OSError where it is neither an SVG nor a PNG file of this machine."""
    if not name.endswith((".svg", ".png")) or "\0" in name or not _lies_in(folder, name):
        raise ValueError(f"{_quote(name)} is not the name of an SVG or PNG file beside machine.toml")
    content = _read(folder / name, max_bytes=_MAX_ICON_BYTES)
    if name.endswith(".svg") and b"<svg" not in content:
        raise ValueError(f"{_quote(name)} is not an SVG file")
    if name.endswith(".png") and not content.startswith(_PNG):
        raise ValueError(f"{_quote(name)} is not a PNG file")
    return content
