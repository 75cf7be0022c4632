"""What the hub does once a minute: what is lost, old or nobody's any more, and warnings before an end."""

import asyncio
import time
from typing import Any

from jupyterhub import orm
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from tornado.ioloop import PeriodicCallback

from qemuspawner.hub.departed import find_noted_users, forget_users
from qemuspawner.hub.notices.notify import Notifies
from qemuspawner.hub.runs.runs import delete_old_runs, end_lost_runs, note_seen
from qemuspawner.hub.sessions.running import describe_running
from qemuspawner.machines import downloads
from qemuspawner.paths import StatePaths

_EVERY_S = 60
_DELETE_EVERY_S = 3600
# The hub has one, wherever its first spawner is made.
_SETTING = "qemuspawner_upkeep"


class Upkeep:
    """Of one hub; traits are the same for all its spawners."""

    def __init__(self, spawner: Notifies) -> None:
        self._settings = spawner.user.settings
        self._records = spawner.records
        self._state = StatePaths.of(spawner.state_dir)
        self._keep_s = spawner.keep_runs
        self._warns = bool(spawner.notify)
        self._log = spawner.log
        self._deletes_at = 0.0  # by time.monotonic
        # It ends with the hub's event loop, and a round is over before the next one begins.
        self._timer = PeriodicCallback(self.tend, _EVERY_S * 1000)

    def start(self) -> None:
        self._timer.start()

    async def tend(self) -> None:
        """One round."""
        spawners = [
            spawner
            for user in list(self._settings["users"].values())
            for spawner in list(user.spawners.values())
            if isinstance(spawner, Notifies) and spawner.active
        ]
        try:
            await asyncio.to_thread(
                self._tidy, {spawner.run_id: spawner.run_seen_at for spawner in spawners if spawner.run_id}
            )
            await self._forget_departed()
        except (SQLAlchemyError, OSError):
            self._log.exception("The hub's records cannot be written")
        if self._warns:
            await self._warn(spawners)

    def _tidy(self, running: dict[int, float]) -> None:
        """`running` are the numbers of runs, and when each was known to run; 0: not by this hub yet."""
        if seen := {run_id: at for run_id, at in running.items() if at}:
            note_seen(self._records, seen)
        if lost := end_lost_runs(self._records, running):
            self._log.warning("%d desktops ended unseen by this hub", lost)
        if time.monotonic() < self._deletes_at:
            return
        self._deletes_at = time.monotonic() + _DELETE_EVERY_S
        if swept := downloads.sweep(self._state):
            self._log.info("Deleted %d images that nobody took home", swept)
        deleted = delete_old_runs(self._records, keep_s=self._keep_s) if self._keep_s else 0
        if deleted:
            self._log.info("Deleted the record of %d desktops that ran long ago", deleted)

    async def _forget_departed(self) -> None:
        noted = await asyncio.to_thread(find_noted_users, self._records)
        # Asked after that: who comes in between is not in `noted`.
        known = set(self._settings["db"].scalars(select(orm.User.name)))
        if departed := noted - known:
            await asyncio.to_thread(forget_users, self._records, departed)
            self._log.info("Forgot what was noted about %d users who are gone", len(departed))

    async def _warn(self, spawners: list[Notifies]) -> None:
        by_name = {(spawner.user.name, spawner.name): spawner for spawner in spawners}
        running = await describe_running(spawners)  # type: ignore[arg-type]
        for desktop in running["desktops"]:
            by_name[desktop["user"], desktop["server"]].note_time_left(desktop)


def keep_up(spawner: Notifies) -> Any:
    """Begin with the upkeep of this spawner's hub, where that has not begun; the hub's."""
    settings = spawner.user.settings
    if _SETTING not in settings:
        settings[_SETTING] = upkeep = Upkeep(spawner)
        upkeep.start()
    return settings[_SETTING]
