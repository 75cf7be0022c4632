"""Everyone's pointer, told to everyone else."""

import asyncio
import contextlib
from collections.abc import Iterator

# Often enough to look smooth.
_EVERY_S = 0.04
_MAX_POINTERS = 50


class Moves:
    """What one page has not been told yet: the newest place of each pointer."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        self._news = asyncio.Event()

    def note(self, who: str, place: tuple[int, int]) -> None:
        if who in self._places or len(self._places) < _MAX_POINTERS:
            self._places[who] = place
            self._news.set()

    async def get(self) -> dict[str, tuple[int, int]]:
        """Wait for moves, and for a moment more, so that many become one message."""
        await self._news.wait()
        await asyncio.sleep(_EVERY_S)
        self._news.clear()
        places, self._places = self._places, {}
        return places


class Pointers:
    """Of one session."""

    def __init__(self) -> None:
        self._followers: list[tuple[str, Moves]] = []

    def point(self, who: str, x: int, y: int) -> None:
        """Somebody's pointer is here, in pixels of the screen; a person is not told of their own."""
        for name, moves in self._followers:
            if name != who:
                moves.note(who, (x, y))

    @contextlib.contextmanager
    def followed(self, name: str) -> Iterator[Moves]:
        """A page of this person wants to know."""
        follower = (name, Moves())
        self._followers.append(follower)
        try:
            yield follower[1]
        finally:
            self._followers.remove(follower)
