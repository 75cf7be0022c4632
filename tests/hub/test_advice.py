"""The advice that follows from what a desktop has used."""

from typing import Any

import pytest
import vms
from msgspec import structs

from qemuspawner.hub.runs.advice import Advice, give_advice
from qemuspawner.machine import Gpu, Machine
from qemuspawner.spec import Gpus, Usage

BIG = vms.make_machine(
    id="big",
    image={"file": "/x", "format": "raw"},
    cpus={"default": 1, "offered": [1, 2, 4, 8]},
    memory={"default": "2 GiB", "offered": ["2 GiB", "4 GiB", "8 GiB", "16 GiB"]},
)

A100 = Gpus(count=1, model="A100")


def advise(
    *,
    cpus: int = 8,
    memory_mib: int = 16384,
    gpus: Gpus | None = None,
    machine: Machine | None = BIG,
    **usage: Any,
) -> Advice | None:
    """After an hour on 8 CPUs and 16 GiB without a GPU, unless said otherwise."""
    facts = {"span_s": 3600, "cpu_p95": 0.5, "cpu_peak": 4, "memory_by": "guest"} | usage
    if "used_mib" in facts:
        facts["memory_mib"] = facts.pop("used_mib")
    return give_advice(Usage(**facts), cpus=cpus, memory_mib=memory_mib, gpus=gpus, machine=machine)


def preset(**facts: Any) -> tuple[object, object] | None:
    """CPUs and memory."""
    advice = advise(**facts)
    assert advice is not None
    return (advice.preset["cpus"], advice.preset["memory"]) if advice.preset else None


def test_who_used_little_can_take_less() -> None:
    advice = advise(cpu_peak=1.6, used_mib=3072)

    assert advice == Advice(
        used="The last time this desktop used at most 1.6 of 8 CPUs and 3 GiB of 16 GiB of memory.",
        preset={"machine": "big", "cpus": 2, "memory": 4096},
        label="Use 2 CPUs and 4 GiB",
    )
    assert advice.query == "opt-machine=big&opt-cpus=2&opt-memory=4096"


@pytest.mark.parametrize(
    ("cpu_peak", "used_mib", "wanted"),
    [
        (0.01, 10, (1, 2048)),
        (3.2, 16000 * 0.8, (4, 16384)),  # the memory is needed
        (3.3, 3000, (8, 4096)),  # 4 CPUs would leave too little room
        (7, 6553, (8, 8192)),
        (7, 6554, None),  # a little more, and half of it is too little
        (7, None, None),
        (1, None, (2, 16384)),
    ],
)
def test_only_what_saves_half_and_leaves_room_is_advised(
    cpu_peak: float, used_mib: float | None, wanted: tuple[int, int] | None
) -> None:
    used = None if used_mib is None else int(used_mib)

    assert preset(cpu_peak=cpu_peak, used_mib=used) == wanted


def test_memory_that_was_nearly_full_asks_for_more() -> None:
    advice = advise(memory_mib=4096, used_mib=3800)

    assert advice is not None
    assert advice.hints == ("Its memory was nearly full: choose more.",)
    assert advice.preset == {"machine": "big", "cpus": 8, "memory": 8192}


def test_what_a_guest_has_only_touched_is_not_full() -> None:
    """Linux fills its memory with files; the host cannot tell them from programs."""
    advice = advise(memory_mib=4096, used_mib=4096, memory_by="host")

    assert advice is not None
    assert (advice.hints, advice.preset) == ((), None)


def test_cpus_that_were_always_busy_ask_for_more() -> None:
    advice = advise(cpus=2, cpu_p95=1.9, cpu_peak=2)

    assert advice is not None
    assert advice.hints == ("Its CPUs were busy nearly all the time: more of them may be quicker.",)
    assert advice.preset is not None
    assert advice.preset["cpus"] == 4


def test_where_there_is_no_more_there_is_only_the_hint() -> None:
    advice = advise(used_mib=16000, cpu_p95=8, cpu_peak=8)

    assert advice is not None
    assert len(advice.hints) == 2
    assert (advice.preset, advice.label, advice.query) == (None, "", "")


def with_gpu(need: str) -> Machine:
    return structs.replace(BIG, gpu=Gpu(need=need))  # type: ignore[arg-type]


def test_a_gpu_that_was_hardly_used_is_left_out_the_next_time() -> None:
    """Also where all the rest was needed."""
    advice = advise(gpus=A100, gpu_percent=3, used_mib=12000, machine=with_gpu("optional"))

    assert advice == Advice(
        used="The last time this desktop used at most 4 of 8 CPUs, 11.8 GiB of 16 GiB of memory "
        "and 3 % of a GPU.",
        hints=("Its GPU was hardly used.",),
        preset={"machine": "big", "cpus": 8, "memory": 16384, "gpu": "none"},
        label="Use 8 CPUs, 16 GiB and no GPU",
    )


def test_a_gpu_that_was_used_is_told_and_no_more() -> None:
    advice = advise(gpus=A100, gpu_percent=40, machine=with_gpu("optional"))

    assert advice == Advice(used="The last time this desktop used at most 4 of 8 CPUs and 40 % of a GPU.")


def test_gpus_that_were_used_are_chosen_again_with_another_size() -> None:
    gpus = Gpus(count=2, model="A100")

    advice = advise(gpus=gpus, gpu_percent=40, cpu_peak=1, machine=with_gpu("optional"))

    assert advice is not None
    assert advice.preset == {"machine": "big", "cpus": 2, "memory": 16384, "gpu": "A100:2"}
    assert advice.label == "Use 2 CPUs and 16 GiB"


def test_a_machine_that_needs_a_gpu_keeps_it() -> None:
    advice = advise(gpus=A100, gpu_percent=0, machine=with_gpu("required"))

    assert advice is not None
    assert (advice.hints, advice.preset) == (("Its GPU was hardly used.",), None)


def test_of_a_gpu_that_nobody_was_given_nothing_is_told() -> None:
    """The number is the guest's own word."""
    advice = advise(gpus=None, gpu_percent=3, machine=with_gpu("optional"))

    assert advice == Advice(used="The last time this desktop used at most 4 of 8 CPUs.")


def test_a_machine_that_is_not_offered_any_more_has_no_preset() -> None:
    advice = advise(cpu_peak=0.5, used_mib=500, machine=None)

    assert advice is not None
    assert (
        advice.used
        == "The last time this desktop used at most 0.5 of 8 CPUs and 500 MiB of 16 GiB of memory."
    )
    assert advice.preset is None


def test_ten_minutes_are_too_short_to_say_anything() -> None:
    assert advise(span_s=599) is None
    assert advise(span_s=600) is not None


def test_nobody_used_more_than_there_was() -> None:
    advice = advise(cpus=1, cpu_peak=1.0000001, cpu_p95=1)

    assert advice is not None
    assert advice.used == "The last time this desktop used at most 1 of 1 CPU."
