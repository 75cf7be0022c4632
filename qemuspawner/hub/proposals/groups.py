"""Groups of the hub as proposals, such as a login server tells them."""

import re
from typing import Any

from traitlets import TraitError, Unicode, default, validate

from qemuspawner.hub.proposals.proposal import FIELDS, Asker, make_all
from qemuspawner.hub.proposals.source import Loaded, ProposalSource

_OWN = set(FIELDS) - {"id", "members", "groups"}


class GroupProposals(ProposalSource):
    """Each group of a user's whose name matches; its properties say the rest, where it has some."""

    pattern = Unicode(
        r"proposal-(?P<id>.+)",
        help="""A regular expression that matches the whole name of a group that is a proposal.

        Its id is what the group `id` of the expression matches, or else the whole name.
        """,
    ).tag(config=True)

    @validate("pattern")
    def _is_expression(self, proposal: Any) -> str:
        try:
            re.compile(proposal["value"])
        except re.error as exc:
            raise TraitError(f"pattern is {proposal['value']!r}: {exc}.") from None
        return str(proposal["value"])

    @default("cache")
    def _default_cache(self) -> int:
        return 0

    def key(self, asker: Asker) -> str:
        return asker.name

    async def load(self, asker: Asker) -> Loaded:
        pattern = re.compile(self.pattern)
        entries = [
            {
                **{key: value for key, value in properties.items() if key in _OWN},
                "id": match.groupdict().get("id") or name,
                "groups": [name],
            }
            for name, properties in sorted(asker.groups.items())
            if (match := pattern.fullmatch(name))
        ]
        proposals, problems = make_all(entries)
        return Loaded(proposals=proposals, problems=tuple(problems))
