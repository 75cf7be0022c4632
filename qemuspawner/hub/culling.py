"""For jupyterhub-idle-culler: a second line behind the sessions' own clocks.

In its `idle_culler_config.py`:

    from qemuspawner.hub.culling import DesktopArbiter

    c.IdleCuller.cull_arbiter_hook = DesktopArbiter(["/etc/qemuspawner/machines"])
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from qemuspawner.machines.catalogue import load_catalogue

# A session ends itself when its idle time is over, and saving a large memory takes long.
_GRACE_S = 600


class DesktopArbiter:
    """Whether a desktop is to be stopped, by when its session says it was used last."""

    def __init__(self, machines: Sequence[str | Path], *, grace_s: float = _GRACE_S) -> None:
        """
        Args:
            machines: As the spawner's trait of this name.
            grace_s: How much longer than its machine's own idle time a desktop is left alone.
        """
        self._folders = [Path(folder) for folder in machines]
        self._grace_s = grace_s

    def __call__(
        self, inactive: timedelta | None, inactive_limit: float, server: dict[str, Any], **_more: object
    ) -> bool:
        """True to stop it: unused for its machine's `lifetime.idle` and a grace, or else for the timeout."""
        if inactive is None:
            return False
        return inactive.total_seconds() >= self._limit_s(server, inactive_limit)

    def _limit_s(self, server: dict[str, Any], inactive_limit: float) -> float:
        options = server.get("user_options") or {}
        # No image is looked for: where they lie is nothing to the culler.
        machines = load_catalogue(self._folders, Path("/nonexistent")).machines
        machine = machines.get(str(options.get("machine", "")))
        own_s = int(machine.lifetime.idle) if machine else 0
        return own_s + self._grace_s if own_s else inactive_limit
