"""Jobs of this hub that nobody owns: a hub that is killed between submitting and noting leaves one."""

from typing import Any

from jupyterhub import orm
from tornado.ioloop import PeriodicCallback

from qemuspawner.hub.slurm.commands import Slurm, SlurmError

_EVERY_S = 60
# The hub has one, wherever its first spawner is made.
_SETTING = "qemuspawner_slurm_reaper"


class Reaper:
    """Of one hub. A job has to be nobody's twice, a round apart: one is submitted before it is noted."""

    def __init__(self, slurm: Slurm, *, user: str, hub: str, settings: dict[str, Any], log: Any) -> None:
        self._slurm, self._user, self._hub = slurm, user, hub
        self._database = settings["db"]
        self._log = log
        self._suspects: set[str] = set()
        self._timer = PeriodicCallback(self.tend, _EVERY_S * 1000)

    def start(self) -> None:
        self._timer.start()

    async def tend(self) -> None:
        """One round."""
        try:
            tagged = await self._slurm.list_tagged(user=self._user, hub=self._hub)
            nobodys = tagged.keys() - self._owned()
            for job_id in nobodys & self._suspects:
                self._log.warning("Job %s (session %s) is nobody's: cancelled", job_id, tagged[job_id])
                await self._slurm.cancel(job_id)
        except SlurmError as exc:
            self._log.warning("Jobs that nobody owns are not looked for: %s", exc.text)
            return
        self._suspects = nobodys

    def _owned(self) -> set[str]:
        states = [server.state for server in self._database.query(orm.Spawner)]
        return {str(state["job_id"]) for state in states if state and state.get("job_id")}


def begin_reaping(slurm: Slurm, *, user: str, hub: str, settings: dict[str, Any], log: Any) -> Reaper:
    """This hub's reaper, begun where there is none yet."""
    if _SETTING not in settings:
        settings[_SETTING] = reaper = Reaper(slurm, user=user, hub=hub, settings=settings, log=log)
        reaper.start()
    found: Reaper = settings[_SETTING]
    return found
