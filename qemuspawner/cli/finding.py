"""The machine that an administrator names."""

from pathlib import Path

from qemuspawner.errors import MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_all_machines
from qemuspawner.paths import StatePaths


def find_machine(machine_id: str, folders: list[Path], state: StatePaths) -> Machine:
    """Raises MachineError where there is none, or with everything that is wrong with it."""
    catalogue = load_all_machines(state, folders)
    machine = catalogue.machines.get(machine_id)
    if machine is not None:
        return machine
    wrong = [str(problem) for problem in catalogue.problems if problem.machine_id == machine_id]
    if wrong:
        raise MachineError("\n".join(wrong), hint="docs/machines.md describes every key of machine.toml.")
    known = ", ".join(catalogue.machines) or "none"
    raise MachineError(
        f"There is no machine '{machine_id}'; known: {known}.",
        hint="Another folder is given with --machines.",
    )
