"""A proposal, checked where it enters: whoever keeps the list may write anything into it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

from qemuspawner.hub.form.fields import quote, show
from qemuspawner.hub.proposals.data import parse_data
from qemuspawner.spec import ChosenProposal, DataFolder
from qemuspawner.texts import Text

# What a source says of a proposal.
FIELDS = ("id", "title", "abstract", "starts", "ends", "members", "groups", "data")

_MAX_ID = 128
_MAX_TITLE = 300
_MAX_ABSTRACT = 4000
_MAX_NAME = 255  # JupyterHub's own bound of user and group names
_MAX_NAMES = 1000
# Joins emoji; Python calls it not printable.
_JOINER = "\u200d"


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks for their proposals: a user of the hub, and their groups with those's properties."""

    name: str
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Days are those of the hub's own time zone, the first and the last one included."""

    id: str
    title: str
    abstract: str = ""
    starts: date | None = None
    ends: date | None = None
    members: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    data: tuple[DataFolder, ...] = ()

    def is_of(self, asker: Asker) -> bool:
        """Whether they belong to it."""
        return asker.name in self.members or not self.groups.isdisjoint(asker.groups)

    def has_ended(self, today: date) -> bool:
        return self.ends is not None and self.ends < today

    def chosen(self) -> ChosenProposal:
        """As a session is told of it."""
        return ChosenProposal(id=self.id, title=self.title, data=self.data)


def make_proposal(entry: Mapping[str, object]) -> Proposal:
    """A proposal of what a source says, by the names of `FIELDS`; all but the id can be missing or None.

    Texts are cut to what is of use on a page, and their control characters become spaces.

    Raises:
        ValueError: With the first reason why it is none, without a full stop.
    """
    proposal_id = parse_id(entry.get("id"))
    starts = _parse_day("starts", entry.get("starts"))
    ends = _parse_day("ends", entry.get("ends"))
    if starts and ends and ends < starts:
        raise ValueError(Text("it ends on {ends}, before it starts on {starts}", ends=ends, starts=starts))
    return Proposal(
        id=proposal_id,
        title=_parse_text("title", entry.get("title"), _MAX_TITLE) or proposal_id,
        abstract=_parse_text("abstract", entry.get("abstract"), _MAX_ABSTRACT),
        starts=starts,
        ends=ends,
        members=_parse_names("members", entry.get("members")),
        groups=_parse_names("groups", entry.get("groups")),
        data=parse_data(entry.get("data")),
    )


def make_all(entries: Iterable[Mapping[str, object]]) -> tuple[dict[str, Proposal], list[str]]:
    """The proposals by id, and a sentence for each entry that is none; the first one of an id counts."""
    proposals: dict[str, Proposal] = {}
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            proposal = make_proposal(entry)
            if proposal.id in proposals:
                raise ValueError(Text("there is another one of this id, which counts"))
        except ValueError as exc:
            problems.append(not_offered(_name(entry, number), exc))
        else:
            proposals[proposal.id] = proposal
    return proposals, problems


def not_offered(name: Text, why: object) -> Text:
    """What administrators are told of an entry that is no proposal."""
    return Text("The proposal {name} is not offered: {why}.", name=name, why=why)


def number_of(number: int) -> Text:
    """How an entry without an id is called: by its place in the list, from 1."""
    return Text("number {number}", number=number)


def parse_id(value: object) -> str:
    """Raises ValueError."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text:
        raise ValueError(Text("'id' is missing, or no text"))
    if len(text) > _MAX_ID or not text.isprintable() or text != text.strip():
        raise ValueError(
            Text(
                "'id' is longer than {most} characters, or has spaces around it or control characters in it",
                most=_MAX_ID,
            )
        )
    return text


def _name(entry: Mapping[str, object], number: int) -> Text:
    try:
        return show(parse_id(entry.get("id")))
    except ValueError:
        return number_of(number)


def _parse_text(key: str, value: object, longest: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(Text("{key} is no text", key=quote(key)))
    # A little more than is kept, as runs of spaces become one; never all of a text of any length.
    head = value[: 4 * longest]
    visible = "".join(char if char.isprintable() or char == _JOINER else " " for char in head)
    text = " ".join(visible.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _parse_day(key: str, value: object) -> date | None:
    """A day, or the day of a moment, as a value or in the words of ISO 8601."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(Text("{key} is not a day such as 2026-03-31", key=quote(key))) from None
    try:
        if isinstance(value, datetime):
            # Midnight at the facility is another day in UTC.
            return (value.astimezone() if value.tzinfo else value).date()
    except (OverflowError, ValueError, OSError):
        raise ValueError(Text("{key} is a day that no calendar has", key=quote(key))) from None
    if isinstance(value, date):
        return value
    raise ValueError(Text("{key} is not a day such as 2026-03-31", key=quote(key)))


def _parse_names(key: str, value: object) -> frozenset[str]:
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise ValueError(Text("{key} is not a list of names", key=quote(key)))
    if len(names) > _MAX_NAMES:
        raise ValueError(
            Text(
                "{key} has {count} names; {most} are allowed",
                key=quote(key),
                count=len(names),
                most=_MAX_NAMES,
            )
        )
    if not all(isinstance(name, str) and 0 < len(name) <= _MAX_NAME for name in names):
        raise ValueError(
            Text(
                "{key} has an entry that is no name of 1 to {most} characters", key=quote(key), most=_MAX_NAME
            )
        )
    return frozenset(names)
