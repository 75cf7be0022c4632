"""Servers that JupyterHub deletes, with what is kept of them: until their row is gone none of them starts.

JupyterHub has forgotten by then that they stop: it would start one anew, and take the row away under that.
"""

import asyncio
import contextlib
from collections.abc import Iterator

# Of the hub's loop: more than there are from the end of `delete_forever` to the end of the row.
_STEPS = 50

_Server = tuple[str, str]  # of a user
_under_way: dict[_Server, asyncio.Event] = {}
_ending: set[asyncio.Task[None]] = set()


@contextlib.contextmanager
def being_deleted(user: str, server_name: str) -> Iterator[None]:
    """Within, and until JupyterHub has taken its row away, the server is being deleted."""
    server, is_over = (user, server_name), asyncio.Event()
    _under_way[server] = is_over
    try:
        yield
    finally:
        ending = asyncio.create_task(_end(server, is_over))
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)


async def _end(server: _Server, is_over: asyncio.Event) -> None:
    try:
        for _ in range(_STEPS):
            await asyncio.sleep(0)
    finally:
        is_over.set()
        if _under_way.get(server) is is_over:
            del _under_way[server]


async def wait_while_deleted(user: str, server_name: str) -> None:
    while is_over := _under_way.get((user, server_name)):
        await is_over.wait()
