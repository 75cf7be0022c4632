"""The options `proposal` and `invite` of a start, checked."""

from collections.abc import Mapping

from msgspec import structs

from qemuspawner.hub.form.fields import any_of, show
from qemuspawner.hub.proposals.mine import MyProposals
from qemuspawner.spec import ChosenProposal, SessionSpec
from qemuspawner.texts import Text, join_sentences, reason_of


def check_proposal(
    user_options: Mapping[str, object],
    proposals: MyProposals,
    source: SessionSpec | None,
    problems: dict[str, str],
) -> tuple[ChosenProposal | None, str]:
    """What the session is told of its proposal, and as what its members are invited ("": they are not).

    What goes on from `source` stays with its own proposal, whatever is asked for; it has that one's data only
    while its user belongs to it: what a saved desktop says of data does not count.

    Sentences for what cannot be accepted are put into `problems`.
    """
    proposal = None
    if source is None:
        try:
            proposal = _find_proposal(user_options.get("proposal"), proposals)
        except ValueError as exc:
            problems["proposal"] = reason_of(exc)
    elif source.proposal is not None:
        own = proposals.by_id.get(source.proposal.id)
        proposal = own.chosen() if own else structs.replace(source.proposal, data=())
    invite = user_options.get("invite") or ""
    if invite not in ("", "view", "control"):
        problems["invite"] = Text(
            "The option 'invite' is {value}; it is 'view' or 'control'.", value=show(invite)
        )
    elif invite and "proposal" not in problems and (proposal is None or proposal.id not in proposals.by_id):
        problems["invite"] = Text(
            "The option 'invite' is {value}, and the desktop is on none of your proposals, whose members "
            "could be invited.",
            value=show(invite),
        )
    return proposal, str(invite)


def _find_proposal(value: object, proposals: MyProposals) -> ChosenProposal | None:
    """Raises ValueError with the whole sentence."""
    is_missing = value is None or value == ""
    if is_missing and not proposals.required:
        return None
    if not proposals.is_offered:
        raise ValueError(
            Text("The option 'proposal' is {value}, and this hub has no proposals.", value=show(value))
        )
    proposal = proposals.by_id.get(value) if isinstance(value, str) else None
    if proposal is None:
        known = _say_known(proposals)
        problem = (
            Text("The option 'proposal' is missing; {known}.", known=known)
            if is_missing
            else Text("The option 'proposal' is {value}; {known}.", value=show(value), known=known)
        )
        raise ValueError(join_sentences(problem, proposals.note))
    if not proposals.may_start(proposal):
        raise ValueError(
            Text(
                "The option 'proposal' is {value}, which ended on {day}; desktops start on proposals that "
                "have not ended.",
                value=show(value),
                day=proposal.ends,
            )
        )
    return proposal.chosen()


def _say_known(proposals: MyProposals) -> Text:
    if not proposals.is_known:
        return Text("which are yours is not known at the moment")
    if not proposals.by_id:
        return Text("you belong to no proposal")
    return Text("it is one of {names}", names=any_of(show(name) for name in proposals.by_id))
