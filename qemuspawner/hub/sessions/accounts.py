"""Who a user is in their desktop's guest: the account, whether they become root, and what they are given."""

import grp
import os
import pwd
import re
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from babel import Locale
from babel.core import get_global
from sqlalchemy.exc import SQLAlchemyError
from traitlets import Any as AnyTrait
from traitlets import Dict, List, TraitError, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.account import Account, Sudo, is_personal
from qemuspawner.errors import OptionsError
from qemuspawner.hub.form.fields import quote, show
from qemuspawner.hub.records import Records
from qemuspawner.hub.sessions.uids import find_uid
from qemuspawner.languages import choose_language
from qemuspawner.texts import Text

_MAX_NAME = 32
_MAX_GROUPS = 64
_MAX_FULL_NAME = 200
_WORDS = ("machine", "everybody", "nobody")
# What an administrator's function may say.
_KEYS = {"name", "uid", "gid", "groups", "full_name"}
_ADMIN, _GROUP, _USER, _EVERYBODY = "admin", "group:", "user:", "everybody"


class AccountTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    guest_account = AnyTrait(
        None,
        allow_none=True,
        help="""A function that says who a user is in guests: of the spawner it makes a dictionary.

        Its keys are `name`, `uid`, `gid` (else as the uid), `groups` (a dictionary of names and gids) and
        `full_name`; what it leaves out is found as without it, and so is everything where it returns None.
        Without it, an account of the hub's host with the user's name counts, where its uid is 1000 or more;
        everybody else has a number of their own, which stays theirs.
        """,
    ).tag(config=True)
    sudo = Union(
        [Unicode(), List(Unicode())],
        default_value="machine",
        help="""Who may become root in their desktop by sudo, without a password.

        "machine": as its machine.toml says; "everybody"; "nobody"; or a list such as ["admin",
        "group:staff", "user:alice"], and nobody else.
        """,
    ).tag(config=True)
    guest_files = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="""What new desktops are given: {"everybody": "/srv/all", "group:staff": "/srv/staff"}.

        Keys are "everybody", "group:NAME" and "user:NAME"; a user gets them in that order, groups by name.
        A folder may have `home/`, whose files are put into the user's home, `packages`, the names of packages
        to install, and `run`, a program that root runs once. It lies on the host of the session.
        """,
    ).tag(config=True)

    # The spawner's
    handler: Any
    records: Records
    user: Any

    @validate("sudo")
    def _known_sudo(self, proposal: Any) -> str | list[str]:
        value = proposal["value"]
        if isinstance(value, str):
            if value not in _WORDS:
                raise TraitError(
                    f'sudo is {value!r}; it is "machine", "everybody", "nobody" or a list of roles.'
                )
            return value
        for role in value:
            if role != _ADMIN and not _is_named(role):
                raise TraitError(f'sudo has the role {role!r}; it is "admin", "group:NAME" or "user:NAME".')
        return cast(list[str], value)

    @validate("guest_files")
    def _known_folders(self, proposal: Any) -> dict[str, str]:
        for role, folder in proposal["value"].items():
            if role != _EVERYBODY and not _is_named(role):
                raise TraitError(
                    f'guest_files has the role {role!r}; it is "everybody", "group:NAME" or "user:NAME".'
                )
            if not Path(folder).is_absolute():
                raise TraitError(f"guest_files[{role!r}] is {folder!r}; it is an absolute path.")
        return cast(dict[str, str], proposal["value"])

    def find_account(self) -> Account | None:
        """The account of this spawner's user; None where the hub cannot write down a number for it.

        Raises:
            OptionsError: What the administrator's function says is no account.
        """
        found = {**find_host_account(self.user.name), **self._ask_hook()}
        found.setdefault("name", account_name(self.user.name))
        if "uid" not in found:
            try:
                found["uid"] = find_uid(self.records, self.user.name)
            except (SQLAlchemyError, OSError):
                self.log.exception("The hub's records cannot be written: %s has no account", self.user.name)
                return None
        found.setdefault("gid", found["uid"])
        found["groups"] = [{"name": name, "gid": gid} for name, gid in found.get("groups", {}).items()]
        found["language"] = find_language(self.handler)
        try:
            return msgspec.convert(found, Account)
        except msgspec.ValidationError as exc:
            raise OptionsError(
                Text(
                    "The account of {name} in guests cannot be used: {why}.",
                    name=quote(self.user.name),
                    why=str(exc),
                ),
                hint=Text("The administrator looks at guest_account."),
            ) from exc

    def _ask_hook(self) -> Mapping[str, Any]:
        given = self.guest_account(self) if callable(self.guest_account) else None
        if given is None:
            return {}
        if not isinstance(given, Mapping) or not isinstance(given.get("groups", {}), Mapping):
            raise OptionsError(
                Text("guest_account returned something that is no account."),
                hint=Text("The administrator has it return a dictionary, with another one as `groups`."),
            )
        if unknown := given.keys() - _KEYS:
            raise OptionsError(
                Text(
                    "guest_account returned {key}, which is no part of an account.",
                    key=show(min(unknown, key=str)),
                ),
                hint=Text("The administrator has it return {keys}.", keys=", ".join(sorted(_KEYS))),
            )
        return given

    def find_sudo(self, *, groups: Collection[str]) -> Sudo:
        """Whether this spawner's user may become root."""
        if isinstance(self.sudo, str):
            return cast(Sudo, {"machine": "", "everybody": "yes", "nobody": "no"}[self.sudo])
        mine = {f"{_USER}{self.user.name}", *(f"{_GROUP}{group}" for group in groups)}
        if self.user.admin:
            mine.add(_ADMIN)
        return "no" if mine.isdisjoint(self.sudo) else "yes"

    def find_gifts(self, *, groups: Collection[str]) -> tuple[str, ...]:
        """The folders of what this spawner's user is given, in their order."""
        roles = [_EVERYBODY, *(f"{_GROUP}{group}" for group in sorted(groups)), f"{_USER}{self.user.name}"]
        return tuple(self.guest_files[role] for role in roles if role in self.guest_files)


def _is_named(role: str) -> bool:
    return any(role.startswith(kind) and role != kind for kind in (_GROUP, _USER))


def find_host_account(user: str) -> dict[str, Any]:
    """What this host knows of an account of that name; nothing where it is none of a person's."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return {}
    if not is_personal(entry.pw_uid):
        return {}
    gid = entry.pw_gid if is_personal(entry.pw_gid) else entry.pw_uid
    groups: dict[str, int] = {}
    for number in os.getgrouplist(user, entry.pw_gid):
        # A system's own groups, such as that of sudo, have other numbers in another system.
        if is_personal(number) and number != gid and len(groups) < _MAX_GROUPS:
            try:
                groups[account_name(grp.getgrgid(number).gr_name)] = number
            except KeyError:
                groups[f"g{number}"] = number
    return {
        "name": account_name(user),
        "uid": entry.pw_uid,
        "gid": gid,
        "groups": groups,
        "full_name": entry.pw_gecos.partition(",")[0][:_MAX_FULL_NAME],
    }


def account_name(user: str) -> str:
    """The user's name as an account can have it: "Zoë.Müller@esrf.fr" -> "zoe-muller-esrf-fr"."""
    plain = unicodedata.normalize("NFKD", user).encode("ascii", "ignore").decode().lower()
    name = re.sub("[^a-z0-9_-]+", "-", plain).strip("-")
    if not name:
        return "user"
    return (name if name[0].isalpha() or name[0] == "_" else f"u-{name}")[:_MAX_NAME].rstrip("-")


def find_language(handler: Any) -> str:
    """The language of the page that asks for the start, as a locale without its encoding: "fr_FR"."""
    if handler is None:
        return ""
    locale = Locale.parse(choose_language(handler.request).tag, sep="-")
    likely = get_global("likely_subtags").get(locale.language, locale.language)
    territory = locale.territory or likely.rpartition("_")[2]
    return f"{locale.language}_{territory}" if re.fullmatch("[A-Z]{2}", territory) else locale.language
