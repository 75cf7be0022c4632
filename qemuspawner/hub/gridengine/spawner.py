"""QemuGridEngineSpawner: sessions as jobs of Grid Engine."""

from batchspawner import GridengineSpawner
from traitlets import Unicode

from qemuspawner.hub.batch.qsub import QsubSpawner
from qemuspawner.hub.gridengine.commands import GridEngine


class QemuGridEngineSpawner(QsubSpawner, GridengineSpawner):  # type: ignore[misc]
    """Sessions are jobs of Grid Engine."""

    parallel_environment = Unicode(
        "smp",
        help="""The parallel environment that gives a job CPUs of one host ("allocation_rule $pe_slots").""",
    ).tag(config=True)
    memory_resource = Unicode(
        "", help="""The consumable by which the site counts memory, such as "m_mem_free"; "" asks for none."""
    ).tag(config=True)

    @property
    def _qsub(self) -> GridEngine:
        return GridEngine(
            tuple(self.qsub_prefix), memory=self.memory_resource, parallel=self.parallel_environment
        )
