"""Which folders of servers a desktop can mount with what its user knows; the hub never learns that."""

import re
from collections.abc import Mapping
from typing import Any

from traitlets import Dict, List, TraitError, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.hub.folders import fill_in, find_common_problem, find_path_problem, is_for
from qemuspawner.hub.form.options import Options
from qemuspawner.hub.proposals.data import is_plain
from qemuspawner.network import Network, can_reach, is_server
from qemuspawner.spec import RemoteFolder, RemoteKind

_TEXTS = ("name", "kind", "server", "port", "path", "mount", "domain", "host_key")
_SWITCHES = ("read_only",)
_USUAL_PORTS: dict[RemoteKind, int] = {"nfs": 2049, "cifs": 445, "sshfs": 22}
_MAX_FOLDERS = 20
# A type and the key itself in base64, as ssh-keyscan and known_hosts have them.
_HOST_KEY = re.compile(r"[a-z0-9@.-]{1,64} [A-Za-z0-9+/]{16,4096}={0,2}")
_DOMAIN = re.compile(r"[A-Za-z0-9._-]{0,64}")
# What the programs that mount in the guest tell its parts by.
_SEPARATORS = re.compile(r"[,:\\\[\]]")


class RemoteFolderTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    remote_folders = List(
        Dict(),
        help="""Folders of servers that users can mount in their desktops with their own accounts there.

        Each a dict: "name", "kind" ("nfs", "cifs" or "sshfs"), "server", "port", "path" (for "cifs"
        "/SHARE" or "/SHARE/FOLDER"), "mount" in the guest ("/mnt/NAME" where it is left out), "read_only"
        (true where it is left out), "domain" (of accounts; "cifs" only), "host_key" (needed for "sshfs",
        and only there: "ssh-ed25519 AAAA..."), and "machines", "groups", "users": only for these. In "path"
        and "mount", {username} is the user's name.
        """,
    ).tag(config=True)

    user: Any

    @validate("remote_folders")
    def _check_remote_folders(self, proposal: Any) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = list(proposal["value"])
        names: set[str] = set()
        if len(entries) > _MAX_FOLDERS:
            raise TraitError(f"remote_folders has {len(entries)} folders; {_MAX_FOLDERS} is the most.")
        for entry in entries:
            if problem := _find_problem(entry):
                raise TraitError(f"remote_folders has {dict(entry)!r}: {problem}.")
            if entry["name"] in names:
                raise TraitError(f"remote_folders has two entries of the name '{entry['name']}'.")
            names.add(entry["name"])
        return entries

    def make_remote_folders(self, options: Options, network: Network) -> tuple[RemoteFolder, ...]:
        """Those that the desktop started with these options can have, by what it reaches."""
        machine = options.machine
        groups = {group.name for group in self.user.groups}
        if not machine.agent:
            return ()
        found = (
            self._make_remote_folder(entry)
            for entry in self.remote_folders
            if is_for(entry, machine=machine.id, groups=groups, user=self.user.name)
        )
        return tuple(
            folder
            for folder in found
            if is_plain(folder.path)
            and is_plain(folder.mount)
            and not _SEPARATORS.search(folder.path)
            and can_reach(network, folder.server, folder.port or _USUAL_PORTS[folder.kind])
        )

    def _make_remote_folder(self, entry: Mapping[str, Any]) -> RemoteFolder:
        name = entry["name"]
        return RemoteFolder(
            name=name,
            kind=entry["kind"],
            server=entry["server"],
            port=entry.get("port", 0),
            path=fill_in(entry["path"], user=self.user.name),
            mount=fill_in(entry.get("mount", f"/mnt/{name}"), user=self.user.name),
            read_only=entry.get("read_only", True),
            domain=entry.get("domain", ""),
            host_key=entry.get("host_key", ""),
        )


def _find_problem(entry: Mapping[str, Any]) -> str:
    """Why it is no folder of a server, as half a sentence; "" where it is one."""
    if problem := find_common_problem(entry, texts=_TEXTS, switches=_SWITCHES):
        return problem
    kind, port = entry.get("kind"), entry.get("port", 0)
    if kind not in _USUAL_PORTS:
        return f"'kind' is none of {', '.join(_USUAL_PORTS)}"
    if not isinstance(entry.get("server"), str) or not is_server(entry["server"]):
        return "'server' is neither an address nor the name of a host"
    if type(port) is not int or not 0 <= port <= 65535:
        return "'port' is no number from 1 to 65535"
    for key in ("path", "mount"):
        if problem := find_path_problem(entry.get(key, "/mnt"), {"username"}):
            return f"'{key}' {problem}"
    if _SEPARATORS.search(entry["path"]):
        return "'path' has one of , : \\ [ ], which the programs that mount it take for something else"
    for key, owner, pattern in (("domain", "cifs", _DOMAIN), ("host_key", "sshfs", _HOST_KEY)):
        if key in entry and kind != owner:
            return f"'{key}' is for the kind {owner} only"
        if key in entry and not (isinstance(entry[key], str) and pattern.fullmatch(entry[key])):
            return f"'{key}' is none"
    # Else the password would go to whoever answers.
    if kind == "sshfs" and "host_key" not in entry:
        return "'host_key' is missing; ssh-keyscan prints it after the server's name"
    return ""
