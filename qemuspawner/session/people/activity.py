"""Tell the hub when the desktop was used last, as jupyterhub-singleuser does for notebooks."""

import asyncio
import logging
import os
from datetime import UTC, datetime

from qemuspawner.session.life.clocks import Clocks
from qemuspawner.session.people.hub import Hub, HubError
from qemuspawner.spec import SessionSpec

log = logging.getLogger(__name__)

# So late the hub knows at most; a desktop that nobody uses says nothing.
_EVERY_S = 60


async def report_activity(clocks: Clocks, spec: SessionSpec, hub: Hub) -> None:
    """Tell the hub of each later activity, until cancelled."""
    every_s = float(os.environ.get("JUPYTERHUB_ACTIVITY_INTERVAL") or _EVERY_S)
    told: float | None = None
    while True:
        last = clocks.last_activity
        if last is not None and (told is None or last > told):
            at = datetime.fromtimestamp(clocks.unix(last), UTC).isoformat()
            body = {"last_activity": at, "servers": {spec.server_name: {"last_activity": at}}}
            try:
                await hub.ask("POST", "users", spec.user, "activity", body=body)
                told = last
            except HubError as exc:
                # It is told the next time.
                log.info("%s: the desktop's last activity: %s", spec.session_id, exc.message)
        await asyncio.sleep(every_s)
