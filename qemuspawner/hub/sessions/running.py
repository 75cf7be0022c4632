"""What the hub's pages show of desktops that run: asked of their sessions, and never waited for long."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jupyterhub.utils import url_escape_path, url_path_join

from qemuspawner.hub.sessions.follow import fetch_status
from qemuspawner.spec import SessionStatus

if TYPE_CHECKING:
    from qemuspawner.hub.mixin import QemuSpawnerMixin

# A page shows who answers in time, and says how many did not.
_AT_A_TIME = 16
_ONE_TIMEOUT_S = 3
_ALL_TIMEOUT_S = 8


async def describe_running(spawners: Iterable["QemuSpawnerMixin"], *, asking: bool = False) -> dict[str, Any]:
    """The desktops of `spawners` that run; with `asking` only those that wait for an answer."""
    asked = [spawner for spawner in spawners if spawner.ready]
    statuses = await ask_all(asked)
    shown = [
        _describe(spawner, status)
        for spawner, status in zip(asked, statuses, strict=True)
        if status is not None and _is_there(spawner) and (not asking or _waits(status))
    ]
    return {"desktops": shown, "silent": statuses.count(None)}


async def ask_all(spawners: Sequence["QemuSpawnerMixin"]) -> list[SessionStatus | None]:
    """The status of each desktop, all of which are ready; None where a session does not answer in time."""
    slots = asyncio.Semaphore(_AT_A_TIME)
    tasks = [asyncio.create_task(_ask(spawner, slots)) for spawner in spawners]
    if tasks:
        await asyncio.wait(tasks, timeout=_ALL_TIMEOUT_S)
    statuses = [task.result() if task.done() else None for task in tasks]
    for task in tasks:
        task.cancel()
    return statuses


async def _ask(spawner: "QemuSpawnerMixin", slots: asyncio.Semaphore) -> SessionStatus | None:
    async with slots:
        if not _is_there(spawner):
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ONE_TIMEOUT_S):
                status = await fetch_status(
                    spawner.server.url, token=spawner.session_token, ssl_context=spawner.session_ssl_context
                )
                if status is not None:
                    spawner.note_deadline(status)
                return status
    return None


def _is_there(spawner: "QemuSpawnerMixin") -> bool:
    """Whether it was neither stopped nor removed meanwhile; what is removed cannot even be asked."""
    return spawner.user.spawners.get(spawner.name) is spawner and bool(spawner.ready)


def _waits(status: SessionStatus) -> bool:
    return status.extension is not None and not status.extension.answer


def _describe(spawner: "QemuSpawnerMixin", status: SessionStatus) -> dict[str, Any]:
    """Spans instead of moments: a page's clock need not agree with a host's."""
    extension = status.extension
    return {
        "user": spawner.user.name,
        "server": spawner.name,
        "url": url_path_join(spawner.user.url, url_escape_path(spawner.name), "/"),
        "machine": status.machine,
        "cpus": status.cpus,
        "memory_mib": status.memory_mib,
        "started_s": max(0, round(status.now - status.started)),
        "used_s": max(0, round(status.now - status.last_activity)) if status.last_activity else None,
        "name": status.name,
        "notes": status.notes,
        "state": status.state,
        "left_s": max(0, round(status.deadline - status.now)),
        "gain_s": max(0, round(status.max_deadline - status.deadline)),
        "idle_left_s": max(0, round(status.idle_deadline - status.now)) if status.idle_deadline else None,
        "suspend_obstacle": status.suspend_obstacle,
        "stop_sleeps": "stop" in status.suspends and not status.suspend_obstacle,
        "sleeps": "lifetime" in status.suspends and not status.suspend_obstacle,
        "idle_sleeps": "idle" in status.suspends and not status.suspend_obstacle,
        "awake": list(status.awake),
        "trouble": status.trouble.kind if status.trouble else "",
        "viewers": status.viewers,
        **spawner.on_proposal,
        "extension": None
        if extension is None
        else {
            "by": extension.by,
            "reason": extension.reason,
            "seconds": extension.seconds,
            "answer": extension.answer,
            "answered_by": extension.answered_by,
            "granted_s": extension.granted_s,
            "comment": extension.comment,
        },
    }
