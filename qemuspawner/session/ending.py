"""Tell the hub how a session has ended, and what its desktop has used."""

import asyncio
import logging

import msgspec

from qemuspawner.session.people.hub import Hub, HubError
from qemuspawner.spec import SessionEnd, SessionSpec
from qemuspawner.texts import pack

log = logging.getLogger(__name__)

# Who stops the session waits for it.
_TIMEOUT_S = 3


async def report_end(end: SessionEnd, spec: SessionSpec, hub: Hub) -> None:
    """Tell the hub; where it does not answer soon, it knows what its own looks told it."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await hub.ask(
                "POST",
                *("users", spec.user, "desktops", spec.server_name, "ended"),
                body=msgspec.to_builtins(end, enc_hook=pack),
            )
    except TimeoutError:
        log.info("%s: the hub was not told of the end: it does not answer.", spec.session_id)
    except HubError as exc:
        log.info("%s: the hub was not told of the end: %s", spec.session_id, exc.message)
