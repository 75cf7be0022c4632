"""Partitions and reservations as the form shows them: what each has, and whether a desktop fits there now."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from qemuspawner.hub.admission.admission import Admission
from qemuspawner.hub.admission.capacity import Amount
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.desktops.kept import Kept
from qemuspawner.hub.form.choices import find_choices
from qemuspawner.hub.form.options import PRESET_FIELDS, Options, RefusedOptionsError, check_options
from qemuspawner.hub.form.partition_option import Place, find_place
from qemuspawner.hub.limits import MIN_LIFETIME_S, Limits
from qemuspawner.machine import Machine
from qemuspawner.texts import Text
from qemuspawner.units import render_mib, render_seconds

_SIZE_FIELDS = ("machine", "preset", *PRESET_FIELDS, "sleeping", "branch")


def forget_places(limits: Limits) -> Limits:
    """With the times that there are in the partitions, and nothing more of them."""
    place = find_place({}, limits, {})
    if place is None:
        return replace(limits, partitions=None)
    longest = {one.lifetime_s for one in place.partitions if one.lifetime_s is not None}
    return replace(
        place.narrow(limits),
        partitions=None,
        more_lifetimes_s=tuple(span for span in sorted(longest) if span >= MIN_LIFETIME_S),
    )


def show_partitions(
    limits: Limits, options: Options, *, asked: Mapping[str, object]
) -> list[dict[str, object]]:
    """Each partition with what it has and how a desktop of this size and time would do there.

    `asked` may have the options `partition` and `reservation`.
    """
    place = _place_of(limits, asked)
    if place is None:
        return []
    need = _need_of(options)
    return [
        {
            "value": one.name,
            "facts": _facts(one, place),
            "fit": _say_fit(one, need, place),
            "obstacle": place.find_lack(one, need, lifetime_s=options.lifetime_s),
            "selected": one.name == asked.get("partition"),
        }
        for one in place.partitions
    ]


def find_size(
    asked: Mapping[str, object],
    *,
    machines: Mapping[str, Machine],
    limits: Limits,
    kept: Kept,
    find_kept: Callable[[str], Kept],
) -> Options | None:
    """Size and time of a start, of those options that can be accepted; None where nothing is left of them.

    Where it is to run does not count.
    """
    options = {name: value for name, value in asked.items() if name in _SIZE_FIELDS}
    for _ in options:
        try:
            return check_options(
                options,
                machines=machines,
                limits=replace(limits, partitions=None),
                startable=False,
                kept=kept,
                find_kept=find_kept,
            )
        except RefusedOptionsError as exc:
            options = {name: value for name, value in options.items() if name not in exc.problems}
    return None


def show_reservations(limits: Limits, *, asked: object) -> list[dict[str, object]]:
    return [
        {"value": one.name, "label": _describe(one), "selected": one.name == asked}
        for one in limits.reservations
    ]


def show_fits(machines: Iterable[Machine], limits: Limits, *, asked: Mapping[str, object]) -> dict[str, str]:
    """On how many nodes each preset fits now; {} where there is no cluster.

    `asked` may have the option `reservation`.
    """
    place = _place_of(limits, asked)
    if place is None:
        return {}
    return {
        choice.value: _count_all(place, choice.options)
        for machine in machines
        for choice in find_choices(machine, limits, Admission())
        if choice.options is not None and choice.preset is not None
    }


def _place_of(limits: Limits, asked: Mapping[str, object]) -> Place | None:
    """In any partition, with the reservation that is asked for, where there is such a one."""
    reservation = {"reservation": asked["reservation"]} if "reservation" in asked else {}
    return find_place(reservation, limits, {})


def _count_all(place: Place, options: Options) -> str:
    """A node that is in several partitions counts once."""
    need = _need_of(options)
    possible = [
        one for one in place.partitions if not place.find_lack(one, need, lifetime_s=options.lifetime_s)
    ]
    nodes = {node.host: node for one in possible for node in one.nodes}
    if not possible:
        return ""
    return _say_fit(replace(possible[0], nodes=tuple(nodes.values())), need, place)


def _need_of(options: Options) -> Need:
    return Need(cpus=options.cpus, memory_mib=options.memory_mib, gpus=options.gpus)


def _say_fit(partition: OfferedPartition, need: Need, place: Place) -> str:
    if not partition.is_current:
        return Text("the cluster does not say what is free")
    fitting = partition.count_fitting(need, place.reservation)
    total = len(partition.nodes)
    if fitting == 0:
        return Text("fits on no node now: it would wait")
    return (
        Text("fits now on its only node")
        if total == 1
        else Text("fits now on {count} of {total} nodes", count=fitting, total=total)
    )


def _facts(partition: OfferedPartition, place: Place) -> str:
    cpus, memory, gpus = partition.sum_up()
    longest_s = place.longest_s(partition)
    facts: list[str] = []
    if longest_s is not None and longest_s >= MIN_LIFETIME_S:
        facts.append(Text("at most {span}", span=render_seconds(longest_s)))
    if partition.memory_mib is not None:
        facts.append(Text("at most {size} for a job", size=render_mib(partition.memory_mib)))
    if partition.cpus is not None:
        facts.append(Text("at most {count} CPUs for a job", count=partition.cpus))
    if not partition.is_current:
        return _join(facts)
    facts.append(Text("{free} of {total} CPUs free", free=cpus.free, total=cpus.total))
    facts.append(Text("{free} of {total} GiB free", free=_gib(memory.free), total=_gib(memory.total)))
    facts += [_say_gpus(model, units) for model, units in gpus.items()]
    return _join(facts)


def _say_gpus(model: str, units: Amount) -> str:
    return Text("{free} of {total} GPUs {model} free", free=units.free, total=units.total, model=model)


def _describe(reservation: OfferedReservation) -> str:
    ends = render_seconds(60 * max(1, round(reservation.ends_in_s / 60)))
    if reservation.begins_in_s > 0:
        begins = render_seconds(60 * max(1, round(reservation.begins_in_s / 60)))
        return Text("{name} (begins in {begins})", name=reservation.name, begins=begins)
    return Text("{name} (ends in {ends})", name=reservation.name, ends=ends)


def _gib(size_mib: int) -> float:
    return round(size_mib / 1024, 1)


def _join(facts: list[str]) -> str:
    if not facts:
        return ""
    return functools.reduce(lambda some, one: Text("{some} · {one}", some=some, one=one), facts)
