"""What the guests of a user may reach: the administrator's traits, and what a machine gets of that."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from traitlets import Dict, Enum, List, TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.machine import Machine
from qemuspawner.network import RANK, Mode, Network, check_targets

_ADMIN, _GROUP, _USER = "admin", "group:", "user:"
# What a bound may be: "bridge" stands for every interface of the host's.
_BOUNDS: tuple[Mode, ...] = ("none", "allow", "internet", "bridge")
_MAX_SERVERS = 100


@dataclass(frozen=True, kw_only=True)
class Networks:
    """For one user."""

    usual: Mode = "none"  # of a machine that says nothing
    most: Mode = "internet"
    servers: tuple[str, ...] = ()  # what the site lets guests reach, beside the machine's own list

    def of(self, machine: Machine) -> Network:
        """What a desktop of `machine` gets: what it asks for, or the most that the user may have."""
        wanted = machine.wants_network or Network(mode=self.usual)
        mode = wanted.mode if RANK[wanted.mode] <= RANK[self.most] else self.most
        if mode in ("bridge", "tap"):
            return Network(mode=mode, interface=wanted.interface)
        if mode == "none":
            return Network()
        return Network(mode=mode, allow=tuple(dict.fromkeys((*wanted.allow, *self.servers))))


class NetworkTraits(LoggingConfigurable):
    """Part of `LimitTraits`."""

    network = Enum(
        ["none", "allow", "internet"],
        default_value="none",
        help="""What the guest of a machine reaches whose machine.toml does not say.

        "none": nothing; "allow": the servers in `allow_servers` and no others; "internet": those and the
        internet, but neither this host and the hub nor the rest of the site.
        """,
    ).tag(config=True)
    max_network = Enum(
        _BOUNDS,
        default_value="internet",
        help="""The most that a guest may reach, whatever its machine asks for: as `network`, or "bridge".

        "bridge" is for machines whose guests are put onto an interface of the host's.
        """,
    ).tag(config=True)
    max_networks = Dict(
        key_trait=Unicode(),
        value_trait=Enum(_BOUNDS),
        help="""The same for some: {"group:staff": "bridge", "user:visitor": "none", "admin": "bridge"}.

        Their name counts before all; else whoever has several gets the most, and others `max_network`.
        """,
    ).tag(config=True)
    allow_servers = List(
        Unicode(),
        help="""Servers of the site that guests reach with the networks "allow" and "internet".

        Each is an address, a network or a host's name, with or without ports: "10.1.2.3",
        "10.1.0.0/16 tcp/445", "licence.example.org tcp/27000-27009"; or "dns" for the host's name servers.
        """,
    ).tag(config=True)

    @validate("max_networks")
    def _for_known_roles(self, proposal: Any) -> dict[str, Mode]:
        for role in proposal["value"]:
            if role != _ADMIN and not any(
                role.startswith(prefix) and role != prefix for prefix in (_GROUP, _USER)
            ):
                raise TraitError(
                    f'max_networks has the role {role!r}; it is "admin", "group:NAME" or "user:NAME".'
                )
        bounds: dict[str, Mode] = proposal["value"]
        return bounds

    @validate("allow_servers")
    def _can_be_reached(self, proposal: Any) -> list[str]:
        servers: list[str] = proposal["value"]
        if len(servers) > _MAX_SERVERS:
            raise TraitError(f"allow_servers has {len(servers)} servers; {_MAX_SERVERS} is the most.")
        try:
            check_targets(tuple(servers))
        except ValueError as exc:
            raise TraitError(f"allow_servers: {exc}.") from None
        return servers

    def find_networks(self, *, user: str, groups: Collection[str], admin: bool) -> Networks:
        """Those of a user who is in these groups."""
        named = self.max_networks.get(_USER + user)
        mine = [
            most
            for role, most in self.max_networks.items()
            if (role == _ADMIN and admin) or (role.startswith(_GROUP) and role.removeprefix(_GROUP) in groups)
        ] or [self.max_network]
        return Networks(
            usual=self.network,  # type: ignore[arg-type]
            most=named or max(mine, key=RANK.__getitem__),
            servers=tuple(self.allow_servers),
        )
