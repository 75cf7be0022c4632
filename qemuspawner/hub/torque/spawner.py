"""QemuTorqueSpawner: sessions as jobs of Torque."""

from batchspawner import TorqueSpawner

from qemuspawner.hub.batch.qsub import QsubSpawner
from qemuspawner.hub.torque.commands import Torque


class QemuTorqueSpawner(QsubSpawner, TorqueSpawner):  # type: ignore[misc]
    """Sessions are jobs of Torque."""

    @property
    def _qsub(self) -> Torque:
        return Torque(tuple(self.qsub_prefix))
