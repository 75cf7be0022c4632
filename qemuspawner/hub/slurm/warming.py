"""Templates made where desktops run: the hub's own host may have another processor, or no QEMU at all."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemuspawner.hub.form.options import Options
from qemuspawner.hub.sessions.warmer import Missing
from qemuspawner.hub.sessions.warms import WarmsUp
from qemuspawner.hub.slurm.script import make_arguments

# It takes a boot, and what it waits for is worth nothing after a while.
_MOST_S = 1200
_DEADLINE = "now+120minutes"


class WarmsOnNodes(WarmsUp):
    """Part of `QemuSlurmSpawner`: `warm_missing` there is a job."""

    cmd: Any  # the spawner's traits
    partition: Any
    reservation: Any
    slurm_prefix: Any
    slurm_log: Any
    slurm_user: Any

    def _warm_up(self, options: Options | None) -> None:
        # No user's own account: whoever has it could change what everybody's desktops start from.
        if "{username}" not in self.slurm_user:
            super()._warm_up(options)

    @property
    def _warm_command(self) -> list[str]:
        # As nodes have it: beside the sessions' own.
        *before, program = self.cmd
        return [*before, str(Path(program).with_name("qemuspawner")), *self.host_arguments, "warm"]

    def _place_warming(self, missing: Missing, command: Sequence[str]) -> list[str]:
        arguments = make_arguments(
            session_id=missing.machine_id,
            comment="",
            cpus=missing.cpus,
            memory_mib=missing.memory_mib,
            lifetime_s=_MOST_S,
            partition=self.partition,
            reservation=self.reservation,
            log=self.slurm_log,
        )
        # It waits for the job, and says by its exit code how that went.
        return [
            *(*self.slurm_prefix, "sbatch", "--wait", "--quiet", *arguments),
            *(f"--job-name=template-{missing.machine_id}", f"--deadline={_DEADLINE}"),
            f"--wrap=exec {shlex.join(command)}",
        ]
