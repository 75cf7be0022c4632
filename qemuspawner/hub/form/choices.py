"""The choices on the form's cards: a machine in a preset or in any size, and what stands against each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qemuspawner.hub.admission.admission import Admission
from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.form.options import Options, RefusedOptionsError, check_options, find_obstacle
from qemuspawner.hub.limits import Limits
from qemuspawner.machine import Machine, Preset


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of them."""

    value: str  # as the form sends it: MACHINE or MACHINE/PRESET
    preset: Preset | None  # None: any size
    options: Options | None  # what it would start, in any size the least; None where that is not offered
    obstacle: str  # why it cannot start now, in a sentence; "" where it can


def find_choices(machine: Machine, limits: Limits, now: Admission) -> list[Choice]:
    """The machine's presets, and last the machine in any size; `now` is what there is room for."""
    return [_look_at(machine, preset, limits, now) for preset in (*machine.presets, None)]


def describe_obstacles(
    machines: Mapping[str, Machine], limits: Limits, now: Admission
) -> Iterator[tuple[str, str]]:
    """Value and obstacle of every choice of these machines."""
    for machine in machines.values():
        for choice in find_choices(machine, limits, now):
            yield choice.value, choice.obstacle


def _look_at(machine: Machine, preset: Preset | None, limits: Limits, now: Admission) -> Choice:
    value = machine.id if preset is None else f"{machine.id}/{preset.name}"
    asked: dict[str, object] = {"machine": machine.id}
    if preset is None:
        asked |= {"cpus": min(machine.cpus.offered), "memory": int(min(machine.memory.offered))}
    else:
        asked["preset"] = preset.name
    try:
        options = check_options(asked, machines={machine.id: machine}, limits=limits, startable=False)
    except RefusedOptionsError as exc:
        return Choice(value=value, preset=preset, options=None, obstacle=exc.message)
    shortage = now.find_shortage(Need(cpus=options.cpus, memory_mib=options.memory_mib, gpus=options.gpus))
    obstacle = find_obstacle(machine, limits) or (shortage.text if shortage is not None else "")
    return Choice(value=value, preset=preset, options=options, obstacle=obstacle)
