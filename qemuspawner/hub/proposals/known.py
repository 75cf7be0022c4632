"""What is known of a source's proposals: asked for once at a time, believed for a while, and never waited for
long, whatever the source does."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from qemuspawner.hub.proposals.proposal import Asker
from qemuspawner.hub.proposals.source import Loaded, ProposalSource, SourceError
from qemuspawner.texts import Text
from qemuspawner.units import render_seconds

# A source that has just failed is left alone for so long, unless it is one that is asked for every form.
_RETRY_S = 5
# Lists of that many users, where everybody has one of their own.
_MAX_KEYS = 1000

_SLOW = Text("The source of the proposals is slow, and has not answered yet.")
_FAILED = Text("The list of proposals cannot be read at the moment.")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known; `loaded` is None where nothing is, and `note` says in whole sentences what is wrong."""

    loaded: Loaded | None
    note: str = ""


@dataclass(kw_only=True)
class _Known:
    """Of one key; moments are of time.monotonic()."""

    loaded: Loaded | None = None
    loaded_at: float = 0
    problem: str = ""
    failed_at: float = float("-inf")
    loading: asyncio.Task[None] | None = None
    asked_at: float = 0


class KnownProposals:
    """Of one source, for a whole hub."""

    def __init__(self, source: ProposalSource, *, now: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._now = now
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def ask(self, asker: Asker, *, wait_s: float) -> Answer:
        """What the source says, if it does so within `wait_s` seconds; else what it said last."""
        key = self.source.key(asker)
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        if self._is_due(known):
            known.asked_at = self._now()
            known.loading = asyncio.create_task(self._load(known, asker))
        if known.loading is not None:
            # Counted from the beginning: what has been slow for others, or for this page, is not waited for.
            left_s = known.asked_at + wait_s - self._now()
            await asyncio.wait({known.loading}, timeout=max(0, left_s))
        self._forget_the_oldest()
        return self._answer(known)

    def _is_due(self, known: _Known) -> bool:
        now = self._now()
        return (
            known.loading is None
            and now - known.failed_at >= min(_RETRY_S, self.source.cache)
            and (known.loaded is None or now - known.loaded_at >= self.source.cache)
        )

    async def _load(self, known: _Known, asker: Asker) -> None:
        try:
            known.loaded = await self.source.load(asker)
        except SourceError as exc:
            self.source.log.warning("%s: %s %s", type(self.source).__name__, exc.text, exc.__cause__ or "")
            known.problem, known.failed_at = exc.text, self._now()
        except Exception:
            # A site's own class may do anything, and a form has to open.
            self.source.log.exception("The proposals cannot be loaded")
            known.problem, known.failed_at = _FAILED, self._now()
        else:
            known.problem, known.loaded_at = "", known.asked_at
        finally:
            known.loading = None

    def _answer(self, known: _Known) -> Answer:
        age_s = self._now() - known.loaded_at
        if known.loaded is not None and age_s >= self.source.cache + self.source.stale:
            known.loaded = None
        problem = known.problem or (_SLOW if known.loading is not None else "")
        if not problem:
            return Answer(loaded=known.loaded)
        if known.loaded is None:
            return Answer(loaded=None, note=problem)
        return Answer(
            loaded=known.loaded,
            note=Text(
                "{problem} What is shown is what it said {age} ago.",
                problem=problem,
                age=render_seconds(age_s),
            ),
        )

    def _forget_the_oldest(self) -> None:
        while len(self._known) > _MAX_KEYS:
            self._known.popitem(last=False)
