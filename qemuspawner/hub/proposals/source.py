"""Where proposals come from: what a source has to do. Sites can write their own."""

from dataclasses import dataclass, field
from typing import Any

from traitlets import Integer, TraitError, Type, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.proposals.proposal import Asker, Proposal
from qemuspawner.units import parse_seconds

# The names of our own ones.
_NAMES = {
    "toml": "qemuspawner.hub.proposals.toml.TomlProposals",
    "groups": "qemuspawner.hub.proposals.groups.GroupProposals",
    "http": "qemuspawner.hub.proposals.http.HttpProposals",
}


class SourceError(QemuSpawnerError):
    """A source cannot tell its proposals; the message is for everybody, details go to the log."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a source says: proposals by id, and a sentence for each entry that is none."""

    proposals: dict[str, Proposal] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class ProposalSource(LoggingConfigurable):
    """One for the whole hub; `c.TomlProposals` and so on configure it.

    A class of a site's own implements `load`, and is named by `c.QemuSpawner.proposal_source`.
    """

    cache = Union(
        [Integer(), Unicode()],
        default_value=60,
        help="""How long an answer is believed before the source is asked again: seconds, or "5 min".""",
    ).tag(config=True)
    stale = Union(
        [Integer(), Unicode()],
        default_value=86400,
        help="""How long the last answer is used while the source gives none: seconds, or text like "1 d".

        Who was taken off a proposal meanwhile can start desktops on it for as long.
        """,
    ).tag(config=True)

    @validate("cache", "stale")
    def _as_seconds(self, proposal: Any) -> int:
        try:
            return parse_seconds(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"{proposal['trait'].name} is {proposal['value']!r}: {exc}.") from None

    async def load(self, asker: Asker) -> Loaded:
        """All proposals, or at least those of `asker`; others than theirs are left out by the hub.

        It may take its time and never be waited for; it is not called again before it has returned. What
        blocks belongs into a thread.

        Raises:
            SourceError: They cannot be told.
        """
        raise NotImplementedError

    def key(self, asker: Asker) -> str:  # noqa: ARG002
        """What is kept apart: the name of `asker` where they are told other proposals than others are."""
        return ""


class SourceType(Type):  # type: ignore[type-arg]
    """A class of a source: one of our names, or the class with its module."""

    def validate(self, obj: Any, value: Any) -> Any:
        return super().validate(obj, _NAMES.get(value, value) if isinstance(value, str) else value)
