"""The machines of administrators in the state folder: added, changed and taken back, also on the hub.

A text that is not a whole machine is never put in place, and who has not seen the last change cannot undo it
unawares. A machine of another folder is changed by a copy of it here, which counts first.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from qemuspawner.errors import CatalogueError
from qemuspawner.machine import Image, Machine
from qemuspawner.machines import history
from qemuspawner.machines.catalogue import (
    Problem,
    check_text,
    is_machine_id,
    list_machine_folders,
    machine_folders,
    read_text,
)
from qemuspawner.machines.edits import set_keys
from qemuspawner.machines.history import Version, digest_of
from qemuspawner.machines.icons import make_icon
from qemuspawner.machines.writing import locked_folder, make_folder, replace_file
from qemuspawner.paths import MACHINE_FILE, StatePaths
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

# What may lie beside a machine.toml that is copied: an icon, a recipe's files.
_MAX_FOLDER_MIB = 64
_DRAFT_PREFIX = ".draft-"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A machine as administrators see it, also where it cannot be offered."""

    id: str
    folder: Path
    is_own: bool  # in the folder that is ours to change
    text: str  # "" where it cannot be read
    machine: Machine | None
    problems: tuple[Problem, ...]

    @property
    def digest(self) -> str:
        """Changes with the text."""
        return digest_of(self.text)


class InvalidMachineError(CatalogueError):
    """A text is not that of a machine; `problems` has all reasons, with their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = [_sentence(problem) for problem in problems]
        super().__init__(
            "invalid", "\n".join(lines), hint="docs/machines.md describes every key of machine.toml."
        )
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class OwnMachines:
    """What can be changed, by somebody."""

    state: StatePaths
    folders: Sequence[Path]  # of other machines, which are only read
    by: str  # who it is, for the history
    # Whether they may do all that the host's account may: a recipe runs on the host, and an image outside of
    # the machine's folder can be any file that sessions can read.
    is_host_admin: bool = False

    def list(self) -> list[Entry]:
        """All machines, of two with the same id the one that counts."""
        found: dict[str, Entry] = {}
        for folder in machine_folders(self.state, self.folders):
            with contextlib.suppress(OSError):
                for path in list_machine_folders(folder):
                    # A broken one does not hide a good one.
                    known = found.get(path.name)
                    if known is None or (known.machine is None and not known.is_own):
                        found[path.name] = self._load(path)
        return sorted(found.values(), key=lambda entry: (_title(entry).casefold(), entry.id))

    def find(self, machine_id: str) -> Entry:
        """Raises CatalogueError where there is none."""
        if is_machine_id(machine_id):
            for entry in self.list():
                if entry.id == machine_id:
                    return entry
        raise CatalogueError("missing", Text("There is no machine '{machine}'.", machine=machine_id[:60]))

    def versions(self, machine_id: str) -> "Sequence[Version]":
        """The texts that it had, the newest first; none for a machine that was never changed here."""
        entry = self.find(machine_id)
        return history.list_versions(entry.folder) if entry.is_own else []

    # Changing; each raises CatalogueError and leaves everything as it is

    def add(self, machine_id: str, text: str) -> Entry:
        """A new machine."""
        with self._locked():
            self._check_new_id(machine_id)
            with self._draft(machine_id) as draft:
                self._check(text, draft, before=None)
                self._put_new(draft, text, what="add")
        return self.find(machine_id)

    def copy(self, machine_id: str, new_id: str, *, name: str = "") -> Entry:
        """A new machine that is hidden and else as this one, with the files beside it and its image."""
        source = self.find(machine_id)
        changes: dict[str, object] = {"hidden": True}
        if name:
            changes["name"] = name
        text = set_keys(source.text, changes)
        with self._locked(), self._like(source, new_id, text) as (draft, machine):
            if source.machine is not None:
                copy_images(source.machine.image, machine.image)
            self._put_new(draft, text, what=f"copy of {machine_id}")
        return self.find(new_id)

    def check_like(self, source: Entry, new_id: str, text: str) -> None:
        """Raises CatalogueError where `add_like` would."""
        with self._locked(), self._like(source, new_id, text):
            pass

    def add_like(self, source: Entry, new_id: str, text: str, *, what: str) -> Entry:
        """A new machine with the files that lie beside another one's text, and no image yet."""
        with self._locked(), self._like(source, new_id, text) as (draft, _):
            self._put_new(draft, text, what=what)
        return self.find(new_id)

    def save(
        self,
        machine_id: str,
        text: str,
        *,
        digest: str,
        what: str = "edit",
        beside: Mapping[str, bytes] | None = None,
    ) -> Entry:
        """Give a machine another text; `digest` is that of the text which was changed.

        `beside` are new files beside machine.toml, by their names.
        """
        with self._locked():
            entry = self.find(machine_id)
            self._check_unchanged(entry, digest)
            if text == entry.text and entry.is_own:
                return entry
            if entry.is_own:
                _put_beside(entry.folder, beside)
                self._check(text, entry.folder, before=entry.machine)
                self._write(entry.folder, text, what=what, before=entry.text)
            else:
                with self._draft(machine_id, entry.folder) as draft:
                    _put_beside(draft, beside)
                    self._check(text, draft, before=entry.machine)
                    self._write(draft, text, what=what, before=entry.text)
                    draft.rename(self.state.machines / machine_id)
        return self.find(machine_id)

    def set_icon(self, machine_id: str, picture: bytes, *, digest: str) -> Entry:
        """Give a machine an icon, of a PNG of any size; `digest` as of `save`."""
        icon = make_icon(picture)
        # Each under a name of its own: an earlier version's icon stays, to which one can go back.
        name = f"icon-{hashlib.sha256(icon).hexdigest()[:12]}.png"
        text = set_keys(self.find(machine_id).text, {"icon": name})
        return self.save(machine_id, text, digest=digest, beside={name: icon})

    def change(
        self, machine_id: str, values: Mapping[str, object], *, digest: str, what: str = "edit"
    ) -> Entry:
        """Set some keys and leave the others; None takes a key out."""
        return self.save(machine_id, set_keys(self.find(machine_id).text, values), digest=digest, what=what)

    def undo(self, machine_id: str, *, digest: str, number: int | None = None) -> Entry:
        """Go back to a version, by default to the one before the last change; that is a change, too."""
        entry = self.find(machine_id)
        if number is None:
            others = [one for one in self.versions(machine_id) if one.digest != entry.digest]
            if not others:
                raise CatalogueError(
                    "missing",
                    Text("'{machine}' was never changed; nothing can be undone.", machine=machine_id),
                )
            number = others[0].number
        elif not entry.is_own:
            raise CatalogueError(
                "missing", Text("'{machine}' has no version {number}.", machine=machine_id, number=number)
            )
        text = history.load_version(entry.folder, number)
        return self.save(machine_id, text, digest=digest, what=f"back to version {number}")

    # Inside

    def _load(self, folder: Path) -> Entry:
        text, problem = "", ""
        try:
            text = read_text(folder)
        except OSError as exc:
            problem = f"it cannot be read: {exc.strerror}"
        except ValueError as exc:
            problem = str(exc)
        if problem:
            path = folder / MACHINE_FILE
            machine, problems = None, [Problem(path=path, machine_id=folder.name, key="", reason=problem)]
        else:
            machine, problems = check_text(text, folder, self.state.images)
        return Entry(
            id=folder.name,
            folder=folder,
            is_own=folder.parent == self.state.machines,
            text=text,
            machine=machine,
            problems=tuple(problems),
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, whoever makes it; errors of files become sentences."""
        try:
            make_folder(self.state.machines)
            with locked_folder(self.state.machines, wait=True):
                for remains in self.state.machines.glob(f"{_DRAFT_PREFIX}*"):
                    shutil.rmtree(remains, ignore_errors=True)
                yield
        except OSError as exc:
            raise CatalogueError(
                "denied",
                Text(
                    "The machines in {folder} cannot be changed: {reason}.",
                    folder=self.state.machines,
                    reason=exc.strerror,
                ),
                hint=Text(
                    "The folder must belong to the account that makes the change, and its disk not be full."
                ),
            ) from exc

    @contextlib.contextmanager
    def _draft(self, machine_id: str, source: Path | None = None) -> Iterator[Path]:
        """A folder of the machine's name that is renamed into its place, with what lies in `source`."""
        with tempfile.TemporaryDirectory(
            prefix=_DRAFT_PREFIX, dir=self.state.machines, ignore_cleanup_errors=True
        ) as outer:
            draft = Path(outer) / machine_id
            if source is None:
                draft.mkdir()
            else:
                _check_size(source)
                shutil.copytree(source, draft, symlinks=True, ignore=_left_out)
            draft.chmod(0o755)
            yield draft

    @contextlib.contextmanager
    def _like(self, source: Entry, new_id: str, text: str) -> Iterator[tuple[Path, Machine]]:
        """A draft of a new machine, checked, and the machine that it makes."""
        self._check_new_id(new_id)
        with self._draft(new_id, source.folder) as draft:
            yield draft, self._check(text, draft, before=source.machine)

    def _put_new(self, draft: Path, text: str, *, what: str) -> None:
        self._write(draft, text, what=what)
        draft.rename(self.state.machines / draft.name)

    def _check_new_id(self, machine_id: str) -> None:
        if not is_machine_id(machine_id):
            raise CatalogueError(
                "invalid",
                Text("'{machine}' cannot be a machine's id.", machine=machine_id[:60]),
                hint=Text("It is 1 to 40 of a-z, 0-9 and '-', a letter first."),
            )
        if any(entry.id == machine_id for entry in self.list()):
            raise CatalogueError(
                "exists",
                Text("There is a machine '{machine}' already.", machine=machine_id),
                hint=Text("Choose another id."),
            )

    def _check_unchanged(self, entry: Entry, digest: str) -> None:
        if digest == entry.digest:
            return
        last = history.list_versions(entry.folder)[:1] if entry.is_own else []
        message = Text("'{machine}' was changed since you opened it; nothing was saved.", machine=entry.id)
        if last and last[0].digest == entry.digest and last[0].by:
            message = Text(
                "'{machine}' was changed by {name} since you opened it; nothing was saved.",
                machine=entry.id,
                name=last[0].by,
            )
        raise CatalogueError(
            "changed",
            message,
            hint=Text("Open it again, and make your change once more."),
        )

    def _check(self, text: str, folder: Path, *, before: Machine | None) -> Machine:
        """The machine that the text makes in `folder`; raises InvalidMachineError."""
        machine, problems = check_text(text, folder, self.state.images)
        if machine is None:
            raise InvalidMachineError(problems)
        if not self.is_host_admin:
            reserved = list(_find_reserved(machine, before, self.state.images / machine.id))
            if reserved:
                path = folder / MACHINE_FILE
                raise InvalidMachineError(
                    [
                        Problem(path=path, machine_id=machine.id, key=key, reason=reason)
                        for key, reason in reserved
                    ]
                )
        return machine

    def _write(self, folder: Path, text: str, *, what: str, before: str | None = None) -> None:
        """Note the text in the history, then put it in place; `before` first, where nobody noted that."""
        if before is not None:
            known = history.list_versions(folder)
            if not known or known[0].digest != digest_of(before):
                history.add_version(folder, before, by="", what="found")
        history.add_version(folder, text, by=self.by, what=what)
        replace_file(folder / MACHINE_FILE, text.encode())


def describe_new(*, name: str, image_format: str, url: str = "", digest: str = "", **keys: str) -> str:
    """The text of a new machine, hidden until somebody has tried it."""
    document = tomlkit.document()
    document.update({"name": name, "hidden": True, **{key: value for key, value in keys.items() if value}})
    image = tomlkit.table()
    suffix = {"raw": "img"}.get(image_format, image_format)
    image.update({"file": f"disk.{suffix}", "format": image_format})
    image.update({key: value for key, value in (("url", url), ("digest", digest)) if value})
    document.add(tomlkit.nl())
    document["image"] = image
    return tomlkit.dumps(document)


def _find_reserved(machine: Machine, before: Machine | None, own_images: Path) -> Iterator[tuple[str, str]]:
    """Keys that only the host's own administrator may change, and why."""
    if machine.build != (before.build if before else None):
        yield "build", "a recipe runs on the host as root, so it is changed there and not on the hub"
    known = before.image if before else None
    for key in ("file", "kernel", "initrd"):
        name = getattr(machine.image, key)
        is_known = known is not None and name == getattr(known, key)
        if name and not is_known and not Path(name).is_relative_to(own_images):
            yield (
                f"image.{key}",
                "only on the host a file outside of the machine's image folder can be named",
            )
    # A copy's own folder has another path.
    keyring = machine.image.keyring
    is_known = known is not None and keyring == known.keyring
    if keyring and not is_known and not Path(keyring).is_relative_to(machine.folder):
        yield "image.keyring", "only on the host a file of it can be named"
    for key in ("url", "checksums", "signature"):
        url = getattr(machine.image, key)
        if url.lower().startswith("file:") and (known is None or url != getattr(known, key)):
            yield f"image.{key}", "only on the host a file of it can be named"
    for mirror in machine.image.mirrors:
        if mirror.lower().startswith("file:") and (known is None or mirror not in known.mirrors):
            yield "image.mirrors", "only on the host a file of it can be named"


def _put_beside(folder: Path, files: Mapping[str, bytes] | None) -> None:
    for name, content in (files or {}).items():
        replace_file(folder / name, content)


def _title(entry: Entry) -> str:
    return entry.machine.name if entry.machine is not None else entry.id


def _sentence(problem: Problem) -> str:
    where = [f"line {problem.line}"] if problem.line else []
    where += [f"key '{problem.key}'"] if problem.key else []
    reason = f"{problem.reason}."
    return f"{', '.join(where)}: {reason}" if where else reason


def _left_out(_folder: str, names: Sequence[str]) -> list[str]:
    """What is not copied with a machine: its history, and drafts."""
    return [name for name in names if name.startswith(".")]


def _check_size(folder: Path) -> None:
    size_mib = sum(path.lstat().st_size for path in folder.rglob("*")) >> 20
    if size_mib > _MAX_FOLDER_MIB:
        raise CatalogueError(
            "denied",
            Text(
                "The folder of '{machine}' has {size}; at most {most} are copied.",
                machine=folder.name,
                size=render_mib(size_mib),
                most=render_mib(_MAX_FOLDER_MIB),
            ),
            hint=Text("Images belong into the machine's image folder."),
        )


def copy_images(source: Image, target: Image) -> None:
    """Give the new machine the same files, which takes no room where the disk allows a second name."""
    for key in ("file", "kernel", "initrd"):
        old, new = getattr(source, key), getattr(target, key)
        # One with an absolute path is named, not copied; one that is missing is missing for both.
        if not old or old == new or not Path(old).is_file():
            continue
        make_folder(Path(new).parent)
        Path(new).unlink(missing_ok=True)
        try:
            Path(new).hardlink_to(old)
        except OSError:
            draft = Path(f"{new}.draft")
            shutil.copyfile(old, draft)
            draft.chmod(0o444)
            draft.replace(new)
