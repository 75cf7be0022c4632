"""Templates: pristine machines saved at their desktop, from which sessions start within a second."""

import hashlib
from collections.abc import Iterable

import msgspec

from qemuspawner.machine import Machine
from qemuspawner.paths import StatePaths
from qemuspawner.saved import Fingerprint, Saved, delete_saved, disk_usage, list_saved, load_saved
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text, list_texts


def template_name(machine: Machine, fits: Fingerprint) -> str:
    """The folder of the template that fits exactly."""
    digest = hashlib.sha256(msgspec.json.encode(fits)).hexdigest()
    return f"{machine.id}-{digest[:16]}"


def find_template(state: StatePaths, machine: Machine, fits: Fingerprint) -> tuple[Saved | None, str]:
    """The template that fits, or why there is none, as half a sentence."""
    name = template_name(machine, fits)
    saved = load_saved(state.templates / name)
    if saved is not None and (saved.kind, saved.name, saved.fingerprint) == ("template", name, fits):
        return saved, ""
    return None, why_none(state, machine, fits)


def why_none(state: StatePaths, machine: Machine, fits: Fingerprint) -> str:
    for other in _of_size(find_templates(state), machine, fits):
        differences = other.fingerprint.differences(fits) or [Text("its folder has another name")]
        return Text("its template does not fit: {differences}", differences=list_texts(differences))
    return Text("there is no template of this machine and size yet")


def find_templates(state: StatePaths) -> list[Saved]:
    """All of them, by name; what was put there under another name is none."""
    folder = state.templates
    found = [saved for saved in list_saved(folder) if load_saved(folder / saved.name) == saved]
    return sorted((saved for saved in found if saved.kind == "template"), key=lambda saved: saved.name)


def _of_size(templates: Iterable[Saved], machine: Machine, fits: Fingerprint) -> list[Saved]:
    size = (machine.id, fits.cpus, fits.memory_mib)
    return [
        saved
        for saved in templates
        if (saved.machine_id, saved.fingerprint.cpus, saved.fingerprint.memory_mib) == size
    ]


def delete_misfits(state: StatePaths, machine: Machine, fits: Fingerprint) -> list[str]:
    """Delete the templates that the one that fits has replaced; their names.

    Those for another accelerator stay: two hubs may share the folder. What was cloned from them lives on.
    """
    misfits = [
        saved.name
        for saved in _of_size(find_templates(state), machine, fits)
        if saved.fingerprint.accelerator == fits.accelerator and saved.fingerprint != fits
    ]
    for name in misfits:
        delete_saved(state.templates / name)
    return misfits


def drop_templates(state: StatePaths, *, max_disk_mib: int, keep: str = "") -> list[str]:
    """Delete the least recently used until all take at most `max_disk_mib` (0: no limit); their names.

    Who starts sessions from a template touches its folder. The one named `keep` stays, whatever it takes.
    """
    if not max_disk_mib:
        return []
    sizes = {}
    used_at = {}
    for saved in find_templates(state):
        root = state.templates / saved.name
        try:
            used_at[saved.name] = root.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        sizes[saved.name] = disk_usage(root)
    dropped = []
    for name in sorted(used_at, key=lambda name: used_at[name]):
        if sum(sizes.values()) <= max_disk_mib << 20:
            break
        if name != keep:
            delete_saved(state.templates / name)
            del sizes[name]
            dropped.append(name)
    return dropped


def find_template_obstacle(machine: Machine) -> str:
    """Why the machine can have no template, in a sentence; "" where it can."""
    if not machine.agent:
        return Text(
            "'{name}' has no guest agent, which has to make each copy its user's own.", name=machine.name
        )
    if machine.architecture == "aarch64":
        return Text(
            "'{name}' is an aarch64 machine, whose copies QEMU does not tell that they are copies.",
            name=machine.name,
        )
    if machine.tpm:
        return Text("'{name}' has a TPM, and each copy needs secrets of its own in it.", name=machine.name)
    if machine.has_lan:
        return Text(
            "'{name}' is put onto a network where each copy needs an address of its own.", name=machine.name
        )
    return find_saving_obstacle(machine)


def find_saving_obstacle(machine: Machine) -> str:
    """Why a VM of this machine cannot be saved with its memory, in a sentence; "" where it can."""
    if machine.image.bus == "nvme":
        return Text("'{name}' has an NVMe disk, which QEMU cannot save.", name=machine.name)
    if machine.gpu.need == "required":
        return Text("'{name}' has a GPU, whose memory cannot be saved.", name=machine.name)
    return ""


def find_suspend_obstacle(spec: SessionSpec) -> str:
    """Why this session's desktop cannot be suspended, in a sentence; "" where it can."""
    if spec.gpus is not None:
        return Text("The desktop has a GPU, whose memory cannot be saved.")
    return find_saving_obstacle(spec.machine)
