"""Jobs of this hub that nobody owns: a hub that is killed between submitting and noting leaves one."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from jupyterhub import orm
from tornado.ioloop import PeriodicCallback

from qemuspawner.hub.batch.engine import BatchError, Engine

_EVERY_S = 60
# The hub has one, wherever its first spawner is made.
_SETTING = "qemuspawner_reaper"

# The accounts whose jobs may be a hub's, and what ends the jobs of each; raises BatchError.
ListOwners = Callable[[], Awaitable[Sequence[tuple[str, Engine]]]]


class Reaper:
    """Of one hub. A job has to be nobody's twice, a round apart: one is submitted before it is noted."""

    def __init__(self, list_owners: ListOwners, *, hub: str, settings: dict[str, Any], log: Any) -> None:
        self._list_owners, self._hub = list_owners, hub
        self._database = settings["db"]
        self._log = log
        self._suspects: set[str] = set()
        self._timer = PeriodicCallback(self.tend, _EVERY_S * 1000)

    def start(self) -> None:
        self._timer.start()

    async def tend(self) -> None:
        """One round."""
        found = set()
        try:
            for user, engine in await self._list_owners():
                tagged = await engine.list_tagged(user=user, hub=self._hub)
                nobodys = tagged.keys() - self._owned()
                found |= nobodys
                for job_id in nobodys & self._suspects:
                    self._log.warning("Job %s (session %s) is nobody's: cancelled", job_id, tagged[job_id])
                    await engine.cancel(job_id)
        except BatchError as exc:
            self._log.warning("Jobs that nobody owns are not looked for: %s", exc.text)
            return
        self._suspects = found

    def _owned(self) -> set[str]:
        states = [server.state for server in self._database.query(orm.Spawner)]
        return {str(state["job_id"]) for state in states if state and state.get("job_id")}


def begin_reaping(list_owners: ListOwners, *, hub: str, settings: dict[str, Any], log: Any) -> Reaper:
    """This hub's reaper, begun where there is none yet."""
    if _SETTING not in settings:
        settings[_SETTING] = reaper = Reaper(list_owners, hub=hub, settings=settings, log=log)
        reaper.start()
    found: Reaper = settings[_SETTING]
    return found
