"""The machines that a spawner's user is offered, and the administrator's command for this hub."""

import sys
from pathlib import Path
from typing import Any, ClassVar

from traitlets import List, Unicode
from traitlets.config import LoggingConfigurable

from qemuspawner import paths
from qemuspawner.hub.form.options import allowed_machines
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import Catalogue, load_all_machines


class OffersMachines(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`: which machines there are for its user."""

    machines = List(
        Unicode(),
        default_value=[str(paths.EXAMPLE_MACHINES)],
        help="""Folders of machines: each has a folder NAME with machine.toml for every machine.

        Where two folders have a machine of the same name, the first one counts.
        """,
    ).tag(config=True)

    user: Any
    state_dir: Any  # the spawner's trait

    # Logged once for the whole hub, not at each form.
    _logged_problems: ClassVar[set[str]] = set()

    @property
    def _state_paths(self) -> paths.StatePaths:
        return paths.StatePaths.of(self.state_dir)

    def _catalogue(self) -> Catalogue:
        catalogue = load_all_machines(self._state_paths, self.machine_folders)
        for problem in catalogue.problems:
            if str(problem) not in self._logged_problems:
                self._logged_problems.add(str(problem))
                self.log.warning("Not offered: %s", problem)
        return catalogue

    def _my_machines(self, catalogue: Catalogue) -> dict[str, Machine]:
        groups = {group.name for group in self.user.groups}
        return allowed_machines(
            catalogue.machines, user=self.user.name, groups=groups, is_admin=self.user.admin
        )

    @property
    def machine_folders(self) -> list[Path]:
        """Those of the trait `machines`."""
        return [Path(folder).absolute() for folder in self.machines]

    @property
    def host_command(self) -> list[str]:
        """The administrator's command, with this hub's folders."""
        return [str(Path(sys.executable).with_name("qemuspawner")), *self.host_arguments]

    @property
    def host_arguments(self) -> list[str]:
        """What the administrator's command is to work with."""
        return [f"--state={self.state_dir}", *(f"--machines={folder}" for folder in self.machine_folders)]
