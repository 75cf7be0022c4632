"""Members of a proposal are invited to a desktop: each gets a share, as by the home page's dialog."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jupyterhub import orm

from qemuspawner import scopes
from qemuspawner.hub.form.fields import all_of
from qemuspawner.hub.proposals.proposal import Proposal
from qemuspawner.texts import Text

ROLE_SCOPES = {"view": scopes.VIEW, "control": scopes.CONTROL}

_MAX_INVITED = 200


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """Whom a start invites as what, and a sentence for each reason why somebody is not."""

    role: str = "view"
    names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def plan_invitation(
    database: Any, proposal: Proposal, *, owner: str, role: str, may_share_with: Callable[[str], bool]
) -> Invitation:
    """The members of `proposal` that are users of the hub, but for the owner.

    `may_share_with` says of a user's name whether who starts the desktop may know of that user.
    """
    names = sorted(_find_members(database, proposal) - {owner})
    known = {name for (name,) in database.query(orm.User.name).where(orm.User.name.in_(names))}
    allowed = [name for name in names if name in known and may_share_with(name)]
    unknown = [name for name in names if name not in known]
    forbidden = sorted(known - set(allowed))
    beyond = allowed[_MAX_INVITED:]
    left_out = []
    if unknown:
        left_out.append(
            Text("Not invited, since this hub does not know them: {names}.", names=all_of(unknown))
        )
    if forbidden:
        left_out.append(
            Text("Not invited, since you may not share with them: {names}.", names=all_of(forbidden))
        )
    if beyond:
        left_out.append(
            Text(
                "Not invited, since no more than {most} are: {names}.",
                most=_MAX_INVITED,
                names=all_of(beyond),
            )
        )
    return Invitation(role=role, names=tuple(allowed[:_MAX_INVITED]), left_out=tuple(left_out))


def send_invitation(database: Any, server: orm.Spawner, invitation: Invitation) -> list[str]:
    """Share the server; what has been done and what not, in sentences.

    A share that somebody has already is never made less.
    """
    of = f"!server={server.user.name}/{server.name}"
    granted = [f"access:servers{of}", f"{ROLE_SCOPES[invitation.role]}{of}"]
    invited = []
    for name in invitation.names:
        # Deleted, while the desktop was starting.
        if (user := orm.User.find(database, name)) is not None:
            orm.Share.grant(database, server, user, scopes=granted)
            invited.append(name)
    return [_say_invited(invitation.role, invited), *invitation.left_out]


def _say_invited(role: str, names: list[str]) -> Text:
    if not names:
        return Text("Nobody could be invited.")
    if role == "view":
        return Text("Invited to look on: {names}.", names=all_of(names))
    return Text("Invited to use it: {names}.", names=all_of(names))


def _find_members(database: Any, proposal: Proposal) -> set[str]:
    names = set(proposal.members)
    for group_name in proposal.groups:
        group = orm.Group.find(database, group_name)
        if group is not None:
            names.update(user.name for user in group.users)
    return names
