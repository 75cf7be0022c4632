"""Network: what a guest may reach, as machine.toml, the hub and a session's specification say it."""

import ipaddress
import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Mode = Literal["none", "allow", "internet", "bridge", "tap"]

# Each with more than those before it; behind an interface of the host's the administrator's own rules count.
RANK: dict[Mode, int] = {"none": 0, "allow": 1, "internet": 2, "bridge": 3, "tap": 3}

# In a list of what may be reached: the name servers of the host, which are asked for the guest.
NAMES = "dns"

_PORTS = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)

Address = ipaddress.IPv4Network | ipaddress.IPv6Network


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Something that may be reached: an address, a network or a host's name; a protocol and its ports."""

    address: str  # such as 10.1.2.3, 2001:db8::/32 or files.example.org
    protocol: Literal["", "tcp", "udp"] = ""  # "": every protocol and port
    first_port: int = 0
    last_port: int = 0

    @property
    def network(self) -> Address | None:
        """Its addresses; None where it is a name."""
        return _parse_address(self.address)


def parse_target(text: str) -> Target:
    """Read "ADDRESS", "ADDRESS tcp/PORT" or "ADDRESS udp/FIRST-LAST".

    Raises:
        ValueError: With the reason, without a full stop.
    """
    address, _, ports = text.strip().partition(" ")
    if _parse_address(address) is None and not _is_name(address):
        raise ValueError(
            f"{address!r} is no address such as 10.1.2.3, no network such as 10.1.0.0/16 and no host's name"
        )
    if not ports:
        return Target(address=address)
    match = _PORTS.fullmatch(ports.strip())
    if match is None:
        raise ValueError(f"{ports.strip()!r} is no port such as tcp/445, and no range such as udp/5000-5010")
    first, last = int(match[2]), int(match[3] or match[2])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"'{match[0]}' is no range of ports; they go from 1 to 65535")
    return Target(
        address=address, protocol="tcp" if match[1] == "tcp" else "udp", first_port=first, last_port=last
    )


def _is_name(text: str) -> bool:
    """A host's name; what ends in digits alone is an address that is none."""
    return _HOST.fullmatch(text) is not None and not text.rpartition(".")[2].isdigit()


def _parse_address(text: str) -> Address | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def check_targets(texts: tuple[str, ...]) -> None:
    """Raises ValueError at the first that is none."""
    for text in texts:
        if text != NAMES:
            parse_target(text)


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `network` of machine.toml; in a SessionSpec what that and the hub's settings come to."""

    mode: Mode = "none"
    allow: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=300)], ...], Meta(max_length=200)
    ] = ()
    interface: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,15}$")] = ""  # with "bridge" and "tap"

    def __post_init__(self) -> None:
        check_targets(self.allow)
        if self.mode in ("bridge", "tap") and not self.interface:
            raise ValueError(f"mode is '{self.mode}', and 'interface' does not say which")

    @property
    def targets(self) -> list[Target]:
        return [parse_target(text) for text in self.allow if text != NAMES]

    @property
    def asks_names(self) -> bool:
        """Whether the guest gets answers from the host's name servers."""
        return self.mode == "internet" or (self.mode == "allow" and NAMES in self.allow)


def is_server(text: str) -> bool:
    """Whether it is the address of one host, or a host's name."""
    network = _parse_address(text)
    return network.num_addresses == 1 and "/" not in text if network is not None else _is_name(text)


def can_reach(network: Network, server: str, port: int) -> bool:
    """Whether a guest of this network may get at the TCP port of a server, an address or a name.

    What a name stands for is not looked up: with "internet" it may lead into the site, where nothing answers.
    """
    if network.mode in ("bridge", "tap"):
        return True
    address = _parse_address(server)
    if network.mode == "none" or (address is None and not network.asks_names):
        return False
    if any(_covers(target, server, address, port) for target in network.targets):
        return True
    return network.mode == "internet" and (address is None or address.is_global)


def _covers(target: Target, server: str, address: Address | None, port: int) -> bool:
    if target.protocol == "udp" or (target.protocol and not target.first_port <= port <= target.last_port):
        return False
    if address is None or target.network is None:
        return target.address.lower() == server.lower()
    return target.network.version == address.version and address.subnet_of(target.network)  # type: ignore[arg-type]
