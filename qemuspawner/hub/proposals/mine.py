"""The proposals of one user, as the check of options and the form take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from qemuspawner.hub.proposals.known import Answer
from qemuspawner.hub.proposals.proposal import Asker, Proposal


@dataclass(frozen=True, kw_only=True)
class MyProposals:
    """What a user can choose; others' proposals do not exist for them."""

    by_id: Mapping[str, Proposal] = field(default_factory=dict)
    note: str = ""  # what is wrong with the list, in whole sentences
    is_offered: bool = True  # whether the hub has proposals at all
    is_known: bool = True  # whether the source has said anything
    required: bool = False
    ended_allowed: bool = True
    problems: tuple[str, ...] = ()  # for administrators

    def is_ended(self, proposal: Proposal) -> bool:
        return proposal.has_ended(date.today())

    def may_start(self, proposal: Proposal) -> bool:
        return self.ended_allowed or not self.is_ended(proposal)


NO_PROPOSALS = MyProposals(is_offered=False)


def select_mine(answer: Answer, asker: Asker, *, required: bool, ended_allowed: bool) -> MyProposals:
    loaded = answer.loaded
    everybodys = loaded.proposals if loaded else {}
    return MyProposals(
        by_id={name: proposal for name, proposal in everybodys.items() if proposal.is_of(asker)},
        note=answer.note,
        is_known=loaded is not None,
        required=required,
        ended_allowed=ended_allowed,
        problems=loaded.problems if loaded else (),
    )
