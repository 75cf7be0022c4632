"""What a desktop used the last time, in a sentence, and the size that would have done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from qemuspawner.machine import Machine
from qemuspawner.spec import Gpus, Usage
from qemuspawner.texts import Text, join_sentences
from qemuspawner.units import render_mib

# Of less than that nobody knows what the desktop is for.
_LEAST_SPAN_S = 600
# Whoever takes less has so much more than they have ever used.
_HEADROOM = 1.25
# What saves less is not worth a thought.
_WORTH_IT = 0.5
# From here on it was too small, or nearly.
_FULL = 0.9
# What a GPU does for a desktop alone.
_GPU_IDLE_PERCENT = 5


@dataclass(frozen=True, kw_only=True)
class Advice:
    """For the next start of a desktop."""

    used: str  # a sentence
    hints: tuple[str, ...] = ()  # sentences: what was too little, or not needed
    preset: Mapping[str, str | int] | None = None  # options of a start; None: as the last time
    label: str = ""  # what choosing them is called

    @property
    def query(self) -> str:
        """The preset for a link to the form, which fills it in and starts nothing."""
        return urlencode({f"opt-{name}": value for name, value in (self.preset or {}).items()})

    def described(self) -> dict[str, object]:
        """For a page's script."""
        return {"text": join_sentences(self.used, *self.hints), "label": self.label, "query": self.query}


def give_advice(
    usage: Usage, *, cpus: int, memory_mib: int, gpus: Gpus | None, machine: Machine | None
) -> Advice | None:
    """What to take the next time, after a run of this size; None where too little is known.

    `machine` is what the user may start again, None where that run's is not offered any more: then there is
    nothing to choose.
    """
    if usage.span_s < _LEAST_SPAN_S:
        return None
    hints: list[str] = []
    next_cpus, next_memory = cpus, memory_mib
    if usage.cpu_p95 >= _FULL * cpus:
        hints.append(Text("Its CPUs were busy nearly all the time: more of them may be quicker."))
        next_cpus = _more(machine.cpus.offered if machine else (), cpus)
    else:
        next_cpus = _less(machine.cpus.offered if machine else (), cpus, usage.cpu_peak)
    if usage.memory_mib is not None:
        offered = tuple(int(size) for size in machine.memory.offered) if machine else ()
        # What a guest has only touched it may have given back inside.
        if usage.memory_by == "guest" and usage.memory_mib >= _FULL * memory_mib:
            hints.append(Text("Its memory was nearly full: choose more."))
            next_memory = _more(offered, memory_mib)
        else:
            next_memory = _less(offered, memory_mib, usage.memory_mib)
    gpu_percent = usage.gpu_percent if gpus else None
    needs_no_gpu = False
    if gpu_percent is not None and gpu_percent < _GPU_IDLE_PERCENT:
        hints.append(Text("Its GPU was hardly used."))
        needs_no_gpu = machine is not None and machine.gpu.need == "optional"
    used = _say_used(usage, cpus, memory_mib, gpu_percent)
    if machine is None or not (needs_no_gpu or (next_cpus, next_memory) != (cpus, memory_mib)):
        return Advice(used=used, hints=tuple(hints))
    preset: dict[str, str | int] = {"machine": machine.id, "cpus": next_cpus, "memory": next_memory}
    size = {"cpus": say_cpus(next_cpus), "memory": render_mib(next_memory)}
    label = Text("Use {cpus} and {memory}", **size)
    if gpus:
        preset["gpu"] = str(gpus)
    if needs_no_gpu:
        preset["gpu"] = "none"
        label = Text("Use {cpus}, {memory} and no GPU", **size)
    return Advice(used=used, hints=tuple(hints), preset=preset, label=label)


def _less(offered: tuple[int, ...], had: int, used: float) -> int:
    """The least of `offered` that would have done, where that saves much; else what it had."""
    enough = [size for size in offered if size >= used * _HEADROOM and size <= had * _WORTH_IT]
    return min(enough, default=had)


def _more(offered: tuple[int, ...], had: int) -> int:
    return min((size for size in offered if size > had), default=had)


def _say_used(usage: Usage, cpus: int, memory_mib: int, gpu_percent: int | None) -> str:
    # Never less than was used, nor more than there is.
    facts: dict[str, object] = {
        "used_cpus": min(math.ceil(usage.cpu_peak * 10) / 10, cpus),
        "cpus": say_cpus(cpus),
    }
    if usage.memory_mib is not None:
        facts |= {"used": _render_used_mib(usage.memory_mib), "total": render_mib(memory_mib)}
    if gpu_percent is not None:
        facts["percent"] = gpu_percent
    match (usage.memory_mib is not None, gpu_percent is not None):
        case (False, False):
            text = Text("The last time this desktop used at most {used_cpus} of {cpus}.")
        case (True, False):
            text = Text(
                "The last time this desktop used at most {used_cpus} of {cpus} and {used} of {total} of "
                "memory."
            )
        case (False, True):
            text = Text(
                "The last time this desktop used at most {used_cpus} of {cpus} and {percent} % of a GPU."
            )
        case _:
            text = Text(
                "The last time this desktop used at most {used_cpus} of {cpus}, {used} of {total} of memory "
                "and {percent} % of a GPU."
            )
    return text.filled(facts)


def _render_used_mib(size_mib: int) -> str:
    """With one decimal: nobody asked for just that much."""
    if size_mib < 1024:
        return render_mib(size_mib)
    return Text("{number} GiB", number=math.ceil(size_mib / 1024 * 10) / 10)


def say_cpus(cpus: int) -> Text:
    return Text("1 CPU") if cpus == 1 else Text("{count} CPUs", count=cpus)
