"""Which folders of the host a desktop has: those of the site, and its proposal's data."""

import pwd
import string
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Dict, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.hub.form.options import Options
from qemuspawner.hub.proposals.data import is_plain
from qemuspawner.spec import DataFolder, Folder

LISTS = ("machines", "groups", "users")  # whom a folder is for

_TEXTS = ("name", "path", "mount")
_SWITCHES = ("read_only", "required")
_PLACEHOLDERS = {"username", "home"}


class FolderTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    folders = List(
        Dict(),
        help="""Folders of the host that desktops have, each a dict.

        "name", "path" on the host, "mount" in the guest ("/mnt/NAME" where it is left out), "read_only"
        (true where it is left out), "required" (without it no desktop starts; false), and "machines",
        "groups", "users": only for these. In "path" and "mount", {username} is the user's name; in "path",
        {home} is the home folder of the host's account of that name, as notebooks have it.
        """,
    ).tag(config=True)
    data_folder = Unicode(
        "/data",
        help="""The guest's folder in which a proposal's data are, each by its name; "" for not at all.""",
    ).tag(config=True)
    data_required = Bool(
        False, help="Whether a desktop on a proposal only starts where all of its data can be had."
    ).tag(config=True)

    user: Any

    @validate("folders")
    def _check_folders(self, proposal: Any) -> list[dict[str, Any]]:
        names: set[str] = set()
        for entry in proposal["value"]:
            if problem := _find_problem(entry):
                raise TraitError(f"folders has {dict(entry)!r}: {problem}.")
            if entry["name"] in names:
                raise TraitError(f"folders has two entries of the name '{entry['name']}'.")
            names.add(entry["name"])
        return list(proposal["value"])

    @validate("data_folder")
    def _check_data_folder(self, proposal: Any) -> str:
        folder: str = proposal["value"]
        if folder and not is_plain(folder):
            raise TraitError(f"data_folder is {folder!r}; it is an absolute path, such as '/data', or ''.")
        return folder

    def make_folders(self, options: Options) -> tuple[Folder, ...]:
        """Those of the desktop that is started with these options."""
        groups = {group.name for group in self.user.groups}
        found = [
            self._make_folder(entry)
            for entry in self.folders
            if is_for(entry, machine=options.machine.id, groups=groups, user=self.user.name)
        ]
        if options.proposal is not None and self.data_folder:
            found += [self._make_data_folder(data) for data in options.proposal.data]
        return tuple(found)

    def _make_folder(self, entry: Mapping[str, Any]) -> Folder:
        name = entry["name"]
        mount = fill_in(entry.get("mount", f"/mnt/{name}"), user=self.user.name)
        path = fill_in(entry["path"], user=self.user.name)
        return Folder(
            name=name,
            path=path if is_plain(path) and is_plain(mount) else "",
            mount=mount,
            read_only=entry.get("read_only", True),
            required=entry.get("required", False),
        )

    def _make_data_folder(self, data: DataFolder) -> Folder:
        return Folder(
            name=data.name,
            path=data.path,
            mount=f"{self.data_folder}/{data.name}",
            read_only=data.read_only,
            required=self.data_required,
        )


def is_for(entry: Mapping[str, Any], *, machine: str, groups: set[str], user: str) -> bool:
    """Whether an entry of a list of folders is for a desktop of `machine` of this user."""
    having = {"machines": {machine}, "groups": groups, "users": {user}}
    return all(not entry.get(key) or not having[key].isdisjoint(entry[key]) for key in LISTS)


def fill_in(template: str, *, user: str) -> str:
    """A path with the user's name in it; "" where that is not fit for one, or there is no such home."""
    # A user's name may have a slash, or be "..".
    name = user if is_plain(f"/{user}") and "/" not in user else ""
    values = {"username": name, "home": _find_home(name) if "{home}" in template else ""}
    if any(f"{{{key}}}" in template and not value for key, value in values.items()):
        return ""
    return template.format_map(values)


def _find_home(name: str) -> str:
    try:
        return pwd.getpwnam(name).pw_dir if name else ""
    except KeyError:
        return ""


def _find_problem(entry: Mapping[str, Any]) -> str:
    """Why it is no folder, as half a sentence; "" where it is one."""
    if problem := find_common_problem(entry, texts=_TEXTS, switches=_SWITCHES):
        return problem
    for key, allowed in (("path", _PLACEHOLDERS), ("mount", {"username"})):
        if problem := find_path_problem(entry.get(key, "/mnt"), allowed):
            return f"'{key}' {problem}"
    return ""


def find_common_problem(
    entry: Mapping[str, Any], *, texts: tuple[str, ...], switches: tuple[str, ...]
) -> str:
    """What is wrong with keys that every list of folders has, as half a sentence."""
    known = (*texts, *switches, *LISTS)
    if unknown := entry.keys() - set(known):
        return f"'{min(unknown)}' is none of {', '.join(known)}"
    for key in ("name", "path"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            return f"'{key}' is missing, or no text"
    if not is_plain(f"/{entry['name']}") or "/" in entry["name"]:
        return "'name' is not fit for the name of a folder"
    for key in switches:
        if not isinstance(entry.get(key, True), bool):
            return f"'{key}' is neither true nor false"
    for key in LISTS:
        names = entry.get(key, [])
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return f"'{key}' is no list of names"
    return ""


def find_path_problem(path: object, allowed: set[str]) -> str:
    """Why it is no path, with the placeholders that it may have, as half a sentence."""
    try:
        parts = list(string.Formatter().parse(path)) if isinstance(path, str) else []
    except ValueError:
        return "has a brace that is no placeholder"
    names = {name for _, name, _, _ in parts if name is not None}
    if names - allowed or any(conversion or spec for _, _, spec, conversion in parts):
        return f"has a placeholder that is none of {', '.join(sorted(allowed))}"
    filled = "".join(
        literal + ("/home/x" if name == "home" else "x" if name else "") for literal, name, _, _ in parts
    )
    return "" if is_plain(filled) else "is not an absolute and plain path, such as '/srv/data'"
