"""All desktops of the hub at once, as its staff see them: what runs, what starts, and how much each does."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jupyterhub.utils import url_escape_path, url_path_join
from msgspec import structs

from qemuspawner.hub.sessions.running import ask_all
from qemuspawner.spec import SessionStatus

if TYPE_CHECKING:
    from qemuspawner.hub.mixin import QemuSpawnerMixin

# However many administrators look on, each session is asked so often.
_FRESH_S = 5

Statuses = Mapping["QemuSpawnerMixin", SessionStatus | None]


class Overview:
    """What the sessions said last."""

    def __init__(self) -> None:
        self._statuses: WeakKeyDictionary[QemuSpawnerMixin, SessionStatus | None] = WeakKeyDictionary()
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    @property
    def newest(self) -> Statuses:
        """Of those that were asked, whenever that was."""
        return self._statuses

    async def look(self, spawners: Iterable["QemuSpawnerMixin"]) -> Statuses:
        """Ask all that are ready, but for those that have answered just now."""
        async with self._looking:
            if time.monotonic() - self._looked_at > _FRESH_S:
                self._statuses = WeakKeyDictionary()
                self._looked_at = time.monotonic()
            asked = [spawner for spawner in spawners if spawner.ready and spawner not in self._statuses]
            for spawner, status in zip(asked, await ask_all(asked), strict=True):
                self._statuses[spawner] = status
        return self._statuses


def overview_of(settings: dict[str, Any]) -> Overview:
    """The one of the hub with these settings."""
    overview: Overview = settings.setdefault("qemuspawner_overview", Overview())
    return overview


def find_spawners(users: Mapping[Any, Any]) -> list["QemuSpawnerMixin"]:
    """All spawners of ours that JupyterHub has made, whether they run or not."""
    spawners = [spawner for user in list(users.values()) for spawner in user.spawners.values()]
    return [spawner for spawner in spawners if hasattr(spawner, "desktop_cards")]


def state_of(spawner: "QemuSpawnerMixin") -> str:
    """What the hub knows of a desktop that is active: starting, running or stopping."""
    match spawner.pending:
        case "spawn":
            return "starting"
        case "stop":
            return "stopping"
    return "running"


def describe(spawner: "QemuSpawnerMixin", status: SessionStatus | None) -> dict[str, Any]:
    """Spans instead of moments: a page's clock need not agree with a host's.

    What only the session knows is null where it has not said it.
    """
    known = spawner.known
    row = {
        "user": spawner.user.name,
        "server": spawner.name,
        "url": url_path_join(spawner.user.url, url_escape_path(spawner.name), "/"),
        "machine": known.machine,
        "cpus": known.cpus,
        "memory_mib": known.memory_mib,
        "node": known.node,
        "state": state_of(spawner),
        "age_s": _age_s(spawner),
        "answers": status is not None,
        "left_s": None,
        "idle_s": None,
        "idle_left_s": None,
        "viewers": None,
        "load": None,
        "awake": [],
        "sleeps": None,
        "asks_for_time": False,
    }
    if status is None:
        return row
    now = status.now
    return row | {
        "machine": status.machine,
        "cpus": status.cpus,
        "memory_mib": status.memory_mib,
        "state": row["state"] if spawner.pending else status.state,
        "left_s": max(0, round(status.deadline - now)),
        "idle_s": max(0, round(now - status.last_activity)) if status.last_activity else None,
        "idle_left_s": max(0, round(status.idle_deadline - now)) if status.idle_deadline else None,
        "viewers": status.viewers,
        "load": structs.asdict(status.load) if status.load else None,
        "awake": list(status.awake),
        # When an administrator stops it.
        "sleeps": "stop" in status.suspends and not status.suspend_obstacle,
        "asks_for_time": status.extension is not None and not status.extension.answer,
    }


def _age_s(spawner: "QemuSpawnerMixin") -> int | None:
    # As JupyterHub stores it: UTC, without saying so.
    started: datetime | None = spawner.orm_spawner.started
    if started is None:
        return None
    return max(0, round((datetime.now(UTC).replace(tzinfo=None) - started).total_seconds()))
