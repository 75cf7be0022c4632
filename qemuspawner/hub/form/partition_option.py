"""The options `partition` and `reservation`: where on a cluster a desktop is to run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.admission.promises import Need
from qemuspawner.hub.form.fields import any_of, quote, show
from qemuspawner.hub.limits import MIN_LIFETIME_S, Limits
from qemuspawner.texts import Text, join_sentences
from qemuspawner.units import render_seconds

# What is said of more partitions nobody reads.
_MAX_LACKS = 3
PLACE_FIELDS = ("partition", "reservation")

_Offered = TypeVar("_Offered", OfferedPartition, OfferedReservation)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which partitions come into question for one start, the one to be taken first being the first."""

    partitions: tuple[OfferedPartition, ...]
    is_chosen: bool  # the user has named the one that there is
    reservation: OfferedReservation | None = None

    def narrow(self, limits: Limits) -> Limits:
        """With the time that a desktop can have somewhere there."""
        longest = [one.lifetime_s for one in self.partitions]
        somewhere = None if None in longest else max([seconds for seconds in longest if seconds is not None])
        reserved = None if self.reservation is None else self.reservation.lifetime_s
        return replace(limits, lifetime_s=_least(limits.lifetime_s, somewhere, reserved))

    def choose(self, need: Need, *, lifetime_s: int) -> OfferedPartition:
        """The first in which such a desktop can ever run.

        Raises:
            ValueError: There is none; the text says why.
        """
        lacks = []
        for partition in self.partitions:
            lack = self.find_lack(partition, need, lifetime_s=lifetime_s)
            if not lack:
                return partition
            lacks.append(lack)
        raise ValueError(
            lacks[0]
            if len(lacks) == 1
            else join_sentences(Text("There is no partition for this desktop."), *lacks[:_MAX_LACKS])
        )

    def find_lack(self, partition: OfferedPartition, need: Need, *, lifetime_s: int) -> str:
        """Why such a desktop can never run there, in a sentence; "" where it can."""
        for where, longest_s in (
            (Text("the partition {name}", name=quote(partition.name)), partition.lifetime_s),
            (
                Text("the reservation {name}", name=quote(self.reservation.name)) if self.reservation else "",
                self.reservation.lifetime_s if self.reservation else None,
            ),
        ):
            if longest_s is not None and longest_s < MIN_LIFETIME_S:
                return Text("There is too little time for a desktop in {where}.", where=where)
            if longest_s is not None and lifetime_s > longest_s:
                return Text(
                    "In {where} a desktop lasts at most {most}; {asked} were asked for.",
                    where=where,
                    most=render_seconds(longest_s),
                    asked=render_seconds(lifetime_s),
                )
        return partition.find_lack(need, self.reservation)

    def longest_s(self, partition: OfferedPartition) -> int | None:
        """The longest that a desktop can last there."""
        return _least(partition.lifetime_s, None if self.reservation is None else self.reservation.lifetime_s)


def find_place(user_options: Mapping[str, object], limits: Limits, problems: dict[str, str]) -> Place | None:
    """Where a start may be, as far as these two options say; None where no hub's cluster is known of.

    What cannot be accepted goes into `problems`: what a user may not use does not exist for them.
    """
    offered = limits.partitions
    if offered is None:
        for name in PLACE_FIELDS:
            if name in user_options:
                problems[name] = _refuse(name, user_options[name], Text("this hub has nothing of the kind"))
        return None
    partition = _pick("partition", user_options, offered, problems)
    reservation = _pick("reservation", user_options, limits.reservations, problems)
    if not offered:
        problems.setdefault("partition", Text("This cluster has no partition for desktops that you may use."))
        return None
    return Place(
        partitions=offered if partition is None else (partition,),
        is_chosen=partition is not None,
        reservation=reservation,
    )


def _pick(
    name: str,
    user_options: Mapping[str, object],
    offered: Iterable[_Offered],
    problems: dict[str, str],
) -> _Offered | None:
    value = user_options.get(name, "")
    if value == "":
        return None
    by_name = {one.name: one for one in offered}
    if isinstance(value, str) and value in by_name:
        return by_name[value]
    bound = (
        Text("it is one of {names}", names=any_of(map(quote, by_name)))
        if by_name
        else Text("there is none that you may use")
    )
    problems[name] = _refuse(name, value, bound)
    return None


def _refuse(name: str, value: object, bound: str) -> str:
    return Text("The option '{name}' is {value}; {bound}.", name=name, value=show(value), bound=bound)


def _least(*limits: int | None) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None
