"""Proposals as the form shows them and scripts are told of them: text, and no folders of the host."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from qemuspawner.hub.proposals.mine import MyProposals
from qemuspawner.hub.proposals.proposal import Proposal
from qemuspawner.texts import Text

# A page has to stay quick; whatever is asked for by a link is shown all the same.
_MAX_LISTED = 1000
_MAX_ABSTRACT = 400
# In a list of problems, for administrators.
_MAX_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class ShownProposals:
    """The picker of the form."""

    proposals: list[dict[str, Any]]  # favourites first, then the newest; those that have ended come last
    left_out: int  # how many are not listed
    chosen: str  # an id, or ""
    note: str
    required: bool
    may_invite: bool
    invite: str  # the role that members are invited as; "": they are not
    user: str  # whose they are
    problems: list[str]  # for administrators


def show_proposals(
    mine: MyProposals,
    favourites: Collection[str],
    *,
    user_options: Mapping[str, object],
    user: str,
    may_invite: bool,
    is_admin: bool,
) -> ShownProposals:
    """The picker for `user`, with what stands in the form already."""
    chosen, invite = user_options.get("proposal"), user_options.get("invite")
    everything = describe_proposals(mine, favourites)
    proposal = mine.by_id.get(chosen) if isinstance(chosen, str) else None
    listed = [
        {**one, "abstract": _shorten(one["abstract"]), "dates": _render_days(mine.by_id[one["id"]])}
        for number, one in enumerate(everything)
        if number < _MAX_LISTED or one["id"] == chosen
    ]
    return ShownProposals(
        proposals=listed,
        left_out=len(everything) - len(listed),
        chosen=proposal.id if proposal is not None and mine.may_start(proposal) else "",
        note=mine.note,
        required=mine.required,
        may_invite=may_invite,
        invite=str(invite) if invite in ("view", "control") else "",
        user=user,
        problems=_list_problems(mine) if is_admin else [],
    )


def describe_proposals(mine: MyProposals, favourites: Collection[str]) -> list[dict[str, Any]]:
    """What scripts are told of each, in the order of the form."""

    def order(proposal: Proposal) -> tuple[bool, bool, int, str]:
        newest = proposal.starts or date.min
        return proposal.id not in favourites, mine.is_ended(proposal), -newest.toordinal(), proposal.id

    return [
        {
            "id": proposal.id,
            "title": proposal.title,
            "abstract": proposal.abstract,
            "starts": proposal.starts and proposal.starts.isoformat(),
            "ends": proposal.ends and proposal.ends.isoformat(),
            "ended": mine.is_ended(proposal),
            "may_start": mine.may_start(proposal),
            "favourite": proposal.id in favourites,
            "data": [{"name": folder.name, "read_only": folder.read_only} for folder in proposal.data],
        }
        for proposal in sorted(mine.by_id.values(), key=order)
    ]


def _list_problems(mine: MyProposals) -> list[str]:
    more = len(mine.problems) - _MAX_PROBLEMS
    said = [*mine.problems[:_MAX_PROBLEMS]]
    return said if more <= 0 else [*said, Text("{count} more proposals are not offered.", count=more)]


def _shorten(abstract: str) -> str:
    return abstract if len(abstract) <= _MAX_ABSTRACT else f"{abstract[:_MAX_ABSTRACT]}…"


def _render_days(proposal: Proposal) -> str:
    starts, ends = proposal.starts, proposal.ends
    if starts and ends:
        return Text("{starts} to {ends}", starts=starts, ends=ends)
    if starts:
        return Text("from {day}", day=starts)
    return Text("until {day}", day=ends) if ends else ""
