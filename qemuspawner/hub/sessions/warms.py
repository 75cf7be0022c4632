"""Templates for what had to boot cold: whether the hub has them made, and by which command."""

from typing import Any

from traitlets import Bool, Integer, Unicode, Union

from qemuspawner.hub.catalogue.offers import OffersMachines
from qemuspawner.hub.form.options import Options
from qemuspawner.hub.sessions.warmer import Missing, warmer
from qemuspawner.machines.templates import find_template_obstacle


class WarmsUp(OffersMachines):
    """Part of `QemuSpawnerMixin`: the templates that its starts are made faster by."""

    templates = Bool(
        True, help="Whether desktops start from a template of their machine and size, where there is one."
    ).tag(config=True)
    warm_missing = Bool(
        False,
        help="""Whether the hub makes a template of what had to boot cold.

        In the background and one at a time; it needs memory and CPUs of the host, beside the desktops.
        """,
    ).tag(config=True)
    templates_disk = Union(
        [Integer(), Unicode()],
        default_value=20 * 1024,
        help="""How much of the disk such templates may take: MiB, or text like "20 GiB"; 0: no limit.""",
    ).tag(config=True)

    accelerator: Any  # the spawner's traits
    allow_tcg: Any
    jail: Any

    def _warm_up(self, options: Options | None) -> None:
        """Have a template made of what has just booted cold, where that is wanted and possible."""
        if not self.warm_missing or not self.templates or options is None or options.goes_on:
            return
        machine = options.machine
        if find_template_obstacle(machine):
            return
        missing = Missing(machine_id=machine.id, cpus=options.cpus, memory_mib=options.memory_mib)
        command = [*self._warm_command, *missing.arguments, *self._warm_arguments()]
        warmer().request(missing, self._place_warming(missing, command))

    @property
    def _warm_command(self) -> list[str]:
        return [*self.host_command, "warm"]

    def _place_warming(self, _missing: Missing, command: list[str]) -> list[str]:
        """`command`, or one that has it run where the desktops do."""
        return command

    def _warm_arguments(self) -> list[str]:
        arguments = ["--nice", "--accelerator", self.accelerator]
        if self.templates_disk:
            arguments += ["--max-disk", str(self.templates_disk)]
        if not self.jail:
            arguments.append("--no-jail")
        arguments.append("--allow-tcg" if self.allow_tcg else "--no-allow-tcg")
        return arguments
