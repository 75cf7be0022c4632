"""Tell the hub why the session ended: pages show it when nobody can ask the session any more."""

import logging

from qemuspawner.session.hub import Hub, HubError
from qemuspawner.spec import SessionSpec, SessionStatus

log = logging.getLogger(__name__)


async def report_end(status: SessionStatus, spec: SessionSpec, hub: Hub) -> None:
    """Tell the hub once; one that is away is not waited for, and knows no reason then."""
    body = {"state": status.state, "why": f"{status.message} {status.hint}".strip()}
    try:
        await hub.ask("POST", "users", spec.user, "desktop-ends", spec.server_name, body=body)
    except HubError as exc:
        log.info("%s: the hub is not told of the end: %s", spec.session_id, exc.message)
