"""Templates: pristine machines saved at their desktop, from which sessions start within a second."""

import hashlib

import msgspec

from qemuspawner.machine import Machine
from qemuspawner.paths import StatePaths
from qemuspawner.saved import Fingerprint, Saved, list_saved, load_saved


def template_name(machine: Machine, fits: Fingerprint) -> str:
    """The folder of the template that fits exactly."""
    digest = hashlib.sha256(msgspec.json.encode(fits)).hexdigest()
    return f"{machine.id}-{digest[:16]}"


def find_template(state: StatePaths, machine: Machine, fits: Fingerprint) -> tuple[Saved | None, str]:
    """The template that fits, or why there is none, as half a sentence."""
    saved = load_saved(state.templates / template_name(machine, fits))
    if saved is not None and saved.kind == "template" and saved.fingerprint == fits:
        return saved, ""
    return None, why_none(state, machine, fits)


def why_none(state: StatePaths, machine: Machine, fits: Fingerprint) -> str:
    for other in list_saved(state.templates):
        found = other.fingerprint
        if other.machine_id == machine.id and (found.cpus, found.memory_mib) == (fits.cpus, fits.memory_mib):
            return f"its template does not fit: {', '.join(found.differences(fits))}"
    return "there is no template of this machine and size yet"


def find_template_obstacle(machine: Machine) -> str:
    """Why the machine can have no template, in a sentence; "" where it can."""
    if not machine.agent:
        return f"'{machine.name}' has no guest agent, which has to make each copy its user's own."
    return find_saving_obstacle(machine)


def find_saving_obstacle(machine: Machine) -> str:
    """Why a VM of this machine cannot be saved with its memory, in a sentence; "" where it can."""
    if machine.image.bus == "nvme":
        return f"'{machine.name}' has an NVMe disk, which QEMU cannot save."
    if machine.gpu.need == "required":
        return f"'{machine.name}' has a GPU, whose memory cannot be saved."
    return ""
