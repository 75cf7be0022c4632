"""The options `proposal` and `invite` of a start, checked."""

from collections.abc import Mapping

from msgspec import structs

from qemuspawner.hub.form.fields import join_words, show
from qemuspawner.hub.proposals.mine import MyProposals
from qemuspawner.spec import ChosenProposal, SessionSpec


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
            problems["proposal"] = str(exc)
    elif source.proposal is not None:
        own = proposals.by_id.get(source.proposal.id)
        proposal = own.chosen() if own else structs.replace(source.proposal, data=())
    invite = user_options.get("invite") or ""
    if invite not in ("", "view", "control"):
        problems["invite"] = f"The option 'invite' is {show(invite)}; it is 'view' or 'control'."
    elif invite and "proposal" not in problems and (proposal is None or proposal.id not in proposals.by_id):
        problems["invite"] = (
            f"The option 'invite' is {show(invite)}, and the desktop is on none of your proposals, whose "
            "members could be invited."
        )
    return proposal, str(invite)


def _find_proposal(value: object, proposals: MyProposals) -> ChosenProposal | None:
    """Raises ValueError with the whole sentence."""
    is_missing = value is None or value == ""
    if is_missing and not proposals.required:
        return None
    if not proposals.is_offered:
        raise ValueError(f"The option 'proposal' is {show(value)}, and this hub has no proposals.")
    said = "is missing" if is_missing else f"is {show(value)}"
    proposal = proposals.by_id.get(value) if isinstance(value, str) else None
    if proposal is None:
        raise ValueError(f"The option 'proposal' {said}; {_say_known(proposals)}. {proposals.note}".rstrip())
    if not proposals.may_start(proposal):
        raise ValueError(
            f"The option 'proposal' {said}, which ended on {proposal.ends}; desktops start on proposals "
            "that have not ended."
        )
    return proposal.chosen()


def _say_known(proposals: MyProposals) -> str:
    if not proposals.is_known:
        return "which are yours is not known at the moment"
    if not proposals.by_id:
        return "you belong to no proposal"
    return f"it is one of {join_words(show(name) for name in proposals.by_id)}"
