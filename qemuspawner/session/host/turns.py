"""Work of many sessions in one moment, done by a few at a time: a class that starts together.

Ten desktops that are made their users' own at once keep every processor of the host busy for seconds, while
somebody types into each of them. One after the other takes no longer in all, and the others answer meanwhile.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from qemuspawner.locks import try_lock

_POLL_S = 0.05


@contextlib.asynccontextmanager
async def take_turn(folder: Path, *, patience_s: float) -> AsyncIterator[None]:
    """Wait until few enough of this account's sessions on this host do the same, but not for ever.

    `folder` is the account's own; the locks in it end with their holders.
    """
    descriptors = _open_slots(folder)
    try:
        end = time.monotonic() + patience_s
        # Without any, as on a full disk, nobody waits.
        while descriptors and time.monotonic() < end and not any(map(try_lock, descriptors)):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _open_slots(folder: Path) -> list[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptors: list[int] = []
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        count = max(1, (os.cpu_count() or 1) // 2)
        descriptors.extend(os.open(folder / f"turn-{number}", flags, 0o600) for number in range(count))
    return descriptors
