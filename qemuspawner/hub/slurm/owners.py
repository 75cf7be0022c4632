"""Whose the jobs are: all of them one account's, or each user's own."""

import contextlib
import pwd
import re
from dataclasses import dataclass
from typing import Any

from jupyterhub import orm

from qemuspawner.errors import HostError
from qemuspawner.hub.slurm.commands import Slurm
from qemuspawner.texts import Text

_USERNAME = "{username}"
# What can be an argument, and stand in a list with commas.
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,255}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Owners:
    """Both may have "{username}" in them: `user` as Slurm knows it, `prefix` before commands about jobs."""

    user: str
    prefix: tuple[str, ...] = ()

    @property
    def are_users(self) -> bool:
        """Whether each user's jobs are their own."""
        return _USERNAME in self.user

    def name_of(self, username: str) -> str:
        """The account that a user's jobs are.

        Raises:
            HostError: There is no such account, or desktops may not be its.
        """
        name = self.user.replace(_USERNAME, username)
        if not self.are_users:
            return name
        try:
            account = pwd.getpwnam(name) if _ACCOUNT.fullmatch(name) else None
        except KeyError:
            account = None
        if account is None:
            raise HostError(
                Text("You have no account '{name}' on the cluster.", name=name[:60]),
                hint=Text("Ask the cluster's administrator for one."),
            )
        if account.pw_uid == 0:
            raise HostError(
                Text("Desktops do not run as root."),
                hint=Text("Log in to the hub as somebody else."),
            )
        return name

    def slurm_of(self, username: str) -> Slurm:
        """What submits and ends a user's jobs. Raises HostError."""
        name = self.name_of(username)
        return Slurm(tuple(part.replace(_USERNAME, name) for part in self.prefix))

    @property
    def watch(self) -> tuple[Slurm, str]:
        """What lists all jobs, and whose; "" is everybody's.

        Jobs of many accounts are looked at by the hub's own, in one go.
        """
        return (Slurm(), "") if self.are_users else (Slurm(self.prefix), self.user)


async def list_owners(owners: Owners, database: Any) -> list[tuple[str, Slurm]]:
    """The accounts whose jobs may be this hub's, and what ends the jobs of each. Raises SlurmError."""
    watching, user = owners.watch
    if not owners.are_users:
        return [(user, watching)]
    busy = await watching.list_users()
    found = []
    for (username,) in database.query(orm.User.name):
        with contextlib.suppress(HostError):
            name = owners.name_of(username)
            if name in busy:
                found.append((name, owners.slurm_of(username)))
    return found
