"""What an administrator allows: traits, and what follows from them for one user."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from traitlets import Bool, Dict, Integer, TraitError, Unicode, Union, validate

from qemuspawner.account import Sudo
from qemuspawner.hub.admission.partitions import OfferedPartition, OfferedReservation
from qemuspawner.hub.networks import Networks, NetworkTraits
from qemuspawner.units import parse_mib, parse_seconds

MIN_LIFETIME_S = 60
# The session's specification has room for no more.
_MAX_SCRIPT_KIB = 64
_ADMIN, _GROUP = "admin", "group:"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most a user is allowed, whatever a machine says; None is no limit."""

    lifetime_s: int | None = None
    more_lifetimes_s: tuple[int, ...] = ()  # offered beside the machine's
    scripts: bool = False
    script_kib: int = 16
    sudo: Sudo = ""
    gpus: Mapping[str, int] = field(default_factory=dict)  # the most of each model that a desktop can get
    networks: Networks = field(default_factory=Networks)
    partitions: tuple[OfferedPartition, ...] | None = None  # None: no cluster that is known
    reservations: tuple[OfferedReservation, ...] = ()
    places: tuple[str, ...] = ()  # to choose from; none where there is one


class LimitTraits(NetworkTraits):
    """Part of `QemuSpawnerMixin`."""

    places: ClassVar[tuple[str, ...]] = ()

    max_lifetime = Union(
        [Integer(), Unicode()],
        default_value=0,
        help="""The longest a desktop may last: seconds, or text like "12 h"; 0: as the machine says.""",
    ).tag(config=True)
    max_lifetimes = Dict(
        key_trait=Unicode(),
        value_trait=Union([Integer(), Unicode()]),
        help="""The same for those who have a role: {"group:staff": "7 d", "admin": 0}.

        Whoever has several gets the longest of them, and others `max_lifetime`.
        """,
    ).tag(config=True)
    scripts = Bool(
        False,
        help="""Whether users may give a script with a start, which a new desktop runs once.

        As root where they may become that by `sudo`, else as their own account.
        """,
    ).tag(config=True)
    max_script = Integer(16, min=1, max=_MAX_SCRIPT_KIB, help="The longest such script, in KiB.").tag(
        config=True
    )

    disk_limit = Union(
        [Integer(), Unicode()],
        default_value=0,
        help="""What a desktop may write to its disk before it is paused: MiB, or text like "20 GiB".

        0: as much as the machine's disk has room for. Each checkpoint, and each sleep, begins anew.
        """,
    ).tag(config=True)
    max_disk_limit = Union(
        [Integer(), Unicode()],
        default_value=0,
        help="""What its people can extend that to, each time by `disk_limit`; 0: they cannot.""",
    ).tag(config=True)

    @validate("disk_limit", "max_disk_limit")
    def _disk_limit_mib(self, proposal: Any) -> int:
        name = proposal["trait"].name
        try:
            return parse_mib(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"{name} is {proposal['value']!r}: {exc}.") from None

    @validate("max_lifetime")
    def _max_lifetime_seconds(self, proposal: Any) -> int:
        return _parse_lifetime("max_lifetime", proposal["value"])

    @validate("max_lifetimes")
    def _max_lifetimes_seconds(self, proposal: Any) -> dict[str, int]:
        lifetimes = {}
        for role, value in proposal["value"].items():
            if role != _ADMIN and not role.removeprefix(_GROUP):
                raise TraitError(f"max_lifetimes has a role {role!r} without a name.")
            if role != _ADMIN and not role.startswith(_GROUP):
                raise TraitError(f'max_lifetimes has the role {role!r}; it is "admin" or "group:NAME".')
            lifetimes[role] = _parse_lifetime(f"max_lifetimes[{role!r}]", value)
        return lifetimes

    def find_limits(
        self,
        *,
        user: str,
        groups: Collection[str],
        admin: bool,
        gpus: Mapping[str, int],
        sudo: Sudo,
        partitions: tuple[OfferedPartition, ...] | None = None,
        reservations: tuple[OfferedReservation, ...] = (),
    ) -> Limits:
        """Those of a user who is in these groups, on a hub that has these GPUs, or such a cluster."""
        mine = [
            seconds
            for role, seconds in self.max_lifetimes.items()
            if (role == _ADMIN and admin) or (role != _ADMIN and role.removeprefix(_GROUP) in groups)
        ] or [self.max_lifetime]
        return Limits(
            lifetime_s=None if 0 in mine else max(mine),
            scripts=self.scripts,
            script_kib=self.max_script,
            sudo=sudo,
            gpus=gpus,
            networks=self.find_networks(user=user, groups=groups, admin=admin),
            partitions=partitions,
            reservations=reservations,
            places=self.places,
        )


def _parse_lifetime(name: str, value: object) -> int:
    """Raises TraitError."""
    try:
        seconds = parse_seconds(value)
    except ValueError as exc:
        raise TraitError(f"{name} is {value!r}: {exc}.") from None
    if 0 < seconds < MIN_LIFETIME_S:
        raise TraitError(f"{name} is {seconds} s; it is 0, or at least {MIN_LIFETIME_S} s.")
    return seconds
