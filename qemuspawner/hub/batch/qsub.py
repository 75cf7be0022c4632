"""QsubSpawner: what Grid Engine and Torque have in common, which are both spoken to by `qsub`."""

from dataclasses import dataclass
from typing import Protocol

from traitlets import List, Unicode

from qemuspawner.batch import SPARE_S, job_memory_mib
from qemuspawner.hub.batch.engine import Engine
from qemuspawner.hub.batch.shared import SharesStorage
from qemuspawner.hub.batch.spawner import QemuBatchSpawner
from qemuspawner.spec import SessionSpec


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job asks for, all of it checked."""

    tag: str  # by which it is known again; letters, digits and "-"
    cpus: int
    memory_mib: int
    time_s: int
    queue: str  # "" for the engine's own choice
    log: str


class Qsub(Engine, Protocol):
    """An engine to which jobs are given by `qsub`."""

    async def submit(self, order: Order, script: str) -> str:
        """Submit a job; its id. Raises BatchError, which has the engine's own words."""


def tag_of(hub: str, session_id: str) -> str:
    """A job's name: engines list it, and take no other mark that they would list."""
    return f"desktop-{hub}-{session_id}"


def read_tag(name: str, hub: str) -> str | None:
    """The session of a job of this hub by its name; None for any other."""
    prefix = tag_of(hub, "")
    return name.removeprefix(prefix) if name.startswith(prefix) else None


class QsubSpawner(SharesStorage, QemuBatchSpawner):
    """Sessions are jobs that `qsub` is given."""

    queue = Unicode("", help="""The queue of the desktops; "" lets the engine choose.""").tag(config=True)
    qsub_user = Unicode("root", help="The account that owns the jobs, as the engine knows it.").tag(
        config=True
    )
    qsub_prefix = List(
        Unicode(),
        help="""What goes before the engine's commands, such as ["runuser", "-u", "qemuspawner", "--"].""",
    ).tag(config=True)
    qsub_log = Unicode("/dev/null", help="Where jobs write what their sessions say.").tag(config=True)

    @property
    def _qsub(self) -> Qsub:
        """The commands of this engine."""
        raise NotImplementedError

    @property
    def _engine(self) -> Engine:
        return self._qsub

    @property
    def _jobs_user(self) -> str:
        return str(self.qsub_user)

    async def _submit(self, spec: SessionSpec, script: str) -> str:
        order = Order(
            tag=tag_of(self._hub_id, spec.session_id),
            cpus=spec.cpus,
            memory_mib=job_memory_mib(spec.memory_mib),
            time_s=spec.max_lifetime_s + SPARE_S,
            queue=self.queue,
            log=self.qsub_log,
        )
        return await self._qsub.submit(order, script)
