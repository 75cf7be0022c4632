"""QemuHostOrSlurmSpawner: sessions on the hub's own host or on a Slurm cluster, as each start asks."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import msgspec
from traitlets import default

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.admission.admission import Admission, Shortage, ShortageError
from qemuspawner.hub.admission.capacity import HostCapacity
from qemuspawner.hub.batch.shared import SharesStorage
from qemuspawner.hub.form.fields import quote
from qemuspawner.hub.form.options import Options
from qemuspawner.hub.slurm.spawner import QemuSlurmSpawner
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.texts import Text


class _OnHost(SharesStorage, QemuSpawner):
    """On this host, with the storage that the cluster's nodes have too."""


_PLACES: Mapping[str, type[QemuSpawner] | type[QemuSlurmSpawner]] = {
    "host": _OnHost,
    "cluster": QemuSlurmSpawner,
}


class QemuHostOrSlurmSpawner(QemuSpawner, QemuSlurmSpawner):
    """Each start is at one of two places, and what follows is done as the spawner of that place does it.

    For that it looks at itself as an object of that spawner's class, with the same attributes: there is one
    state, one set of traits (of both classes, and of their sections in the configuration), and each class's
    calls of `super()` find what they would find alone.
    """

    places: ClassVar[tuple[str, ...]] = tuple(_PLACES)

    @property
    def _where(self) -> str:
        """The place of the session that was started, else of the start that was asked for."""
        return str(self._session.get("where") or (self._options and self._options.where) or "host")

    def _at(self, where: str) -> QemuSpawner | QemuSlurmSpawner:
        """This spawner, as that place's class has it."""
        place = object.__new__(_PLACES[where])
        place.__dict__ = self.__dict__
        return place

    @default("ip")
    def _default_ip(self) -> str:
        # batchspawner's is every address; of sessions on this host only the proxy has to reach them.
        return "127.0.0.1"

    @default("poll_interval")
    def _default_poll_interval(self) -> int:
        # The cluster is asked for all, and less often.
        return 5

    # A start

    def claim(self, options: Options) -> Options:
        """At the place that was asked for; else on this host, and on the cluster where that has no room."""
        first: ShortageError | None = None
        for where in (options.where,) if options.where else _PLACES:
            try:
                return self._claim_at(where, options)
            except ShortageError as exc:
                if exc.shortage.reason == "quota":
                    raise
                first = first or exc
        assert first is not None
        raise first

    def _claim_at(self, where: str, options: Options) -> Options:
        place, gpus = self._at(where), options.gpus
        models = place.find_gpu_models()
        if gpus is not None and not (gpus.model in models if gpus.model else models):
            raise ShortageError(
                Shortage(
                    reason="capacity",
                    field="where",
                    message=Text("There is no such GPU at the place {place}.", place=quote(where)),
                    hint=Text("Choose another place, or another GPU."),
                )
            )
        claimed = place.claim(options)
        assert self._promise is not None
        self._promise = msgspec.structs.replace(self._promise, where=where)
        return replace(claimed, where=where)

    def look(self) -> Admission:
        # The cluster has a queue: nothing stands against a start for want of room.
        return replace(super().look(), host=None)

    async def ask_place(self, *, most_s: float) -> None:
        # This host is there also while the cluster does not answer.
        with contextlib.suppress(QemuSpawnerError):
            await super().ask_place(most_s=most_s)

    async def capacity(self) -> list[HostCapacity]:
        return [host for where in _PLACES for host in await self._at(where).capacity()]

    def find_gpu_models(self) -> dict[str, int]:
        found = [self._at(where).find_gpu_models() for where in _PLACES]
        return {model: max(one.get(model, 0) for one in found) for one in found for model in one}

    # What the place does

    async def start(self) -> tuple[str, int]:
        return await self._at(self._where).start()

    async def poll(self) -> int | None:
        return await self._at(self._where).poll()

    async def stop(self, now: bool = False) -> None:
        await self._at(self._where).stop(now)

    async def move_certs(self, files: dict[str, str]) -> dict[str, str]:
        moved: dict[str, str] = await self._at(self._where).move_certs(files)
        return moved

    async def _list_node_names(self) -> list[str]:
        return await super()._list_node_names() if self._where == "cluster" else []

    @default("ssl_alt_names")
    def _default_ssl_alt_names(self) -> object:
        return QemuHostOrSlurmSpawner._list_node_names

    # State

    def get_state(self) -> dict[str, object]:
        return self._at(self._where).get_state()

    def load_state(self, state: Mapping[str, object]) -> None:
        # Sessions of a hub that had one place go on.
        known = "cluster" if "job_id" in state else "host"
        self._at(str(state.get("where") or known)).load_state(state)

    def clear_state(self) -> None:
        for where in _PLACES:
            self._at(where).clear_state()
