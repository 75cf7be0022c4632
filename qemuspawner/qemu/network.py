"""What stands between a guest and the host's network.

QEMU's own user network opens what its process can open. So QEMU is put into a network namespace, where pasta
(Debian's package passt) brings its connections to the host, without privileges, and where nftables rules let
pass what is allowed: they are set before QEMU starts, by a program that is above it, and QEMU has no
capability to undo them. The host's own addresses are the namespace's as well, so they lead nowhere.

    unshare --pid -- sh
      |- pasta                      in the host's network: it copies
      |    `- sleep                 holds the namespace; it has set the rules
      `- nsenter -- bwrap -- QEMU   in the namespace

QEMU is no child of pasta's, which newer versions of it would start without the descriptors it inherits.
"""

import contextlib
import ipaddress
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from qemuspawner.errors import HostError
from qemuspawner.network import Address, Network, Target
from qemuspawner.texts import Text

# What the program around QEMU ends with where the walls cannot be built; QEMU itself never does.
NO_NETWORK = 78

# Who asks these is answered by the host's name servers. Nobody else has them.
_NAME_SERVERS = {4: "169.254.1.53", 6: "fd00:7065:6e67:7569::53"}
_RESOLVERS = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))

_TOOLS = {"pasta": "passt", "nft": "nftables", "nsenter": "util-linux"}
_TUN = Path("/dev/net/tun")
_TIMEOUT_S = 10

# What is no part of the internet: this host and its neighbours, private and shared addresses, link-local ones
# with the metadata of clouds, multicast and what is reserved; and every way to write an IPv4 address in IPv6.
# Source: IANA's special-purpose address registries.
_NOT_PUBLIC: tuple[Address, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
        *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"),
        *("fc00::/7", "fe80::/9", "ff00::/8"),
    )
)

# Where the kernel looks for its neighbours in IPv6; a guest's packets end in QEMU and are none of these.
_NEIGHBOURS = (
    "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report,"
    " mld2-listener-report } accept"
)

_REJECT = "reject with icmpx admin-prohibited"
_TABLE = """
table inet qemuspawner {
 chain output {
  type filter hook output priority 0; policy drop;
  RULES
 }
}
"""
_HOLD = 'printf %s "$1" | nft -f - && echo ready && exec sleep infinity > /dev/null'
# It asks the first server of the file, and no other way of telling it has that effect in Debian 12's version.
_TELL_NAMES = (
    'mount -t tmpfs names /mnt && printf %s "$1" > /mnt/names && mount --bind /mnt/names /etc/resolv.conf'
)

# $1: rules; $2: pasta's options about names; $3: its /etc/resolv.conf. Then the command. Who is at the end
# of the pipe goes on when it has been told that the rules stand. All others end with it: the shell that waits
# for it is the first process of its namespace.
# Pasta never works as root, not even as one that is root in a namespace only.
_BUILD = f"""
{{
    unshare --map-root-user --mount -- sh -c '{_TELL_NAMES} && shift && exec "$@"' sh "$3" \\
        unshare --map-user=65534 --map-group=65534 -- \\
        pasta --config-net --no-map-gw -t none -u none -T none -U none $2 -q -- \\
        sh -c '{_HOLD}' sh "$1" < /dev/null &
    echo $!
}} | {{
    shift 3
    read -r pasta && read -r word && test "$word" = ready || exit {NO_NETWORK}
    # A line without an end, which is no success to read.
    read -r holder rest < "/proc/$pasta/task/$pasta/children"
    test -n "$holder" || exit {NO_NETWORK}
    exec nsenter --user="/proc/$holder/ns/user" --net="/proc/$holder/ns/net" --preserve-credentials -- "$@" \\
        < /dev/null
}}
"""


@dataclass(frozen=True, kw_only=True)
class Outside:
    """The walls of one guest's network, decided; `enter` builds them."""

    rules: str  # nftables'
    name_servers: Sequence[str] = field(default_factory=tuple)  # the host's, one of a family

    @property
    def resolv_conf(self) -> str:
        """What QEMU finds as /etc/resolv.conf."""
        versions = [ipaddress.ip_address(server).version for server in self.name_servers]
        return "".join(f"nameserver {_NAME_SERVERS[version]}\n" for version in versions)

    def enter(self, command: Sequence[str]) -> list[str]:
        """`command` in a network namespace behind these walls; it ends with NO_NETWORK where there are none.

        Begun in a process-id namespace of its own, as its first process.
        """
        versions = [ipaddress.ip_address(server).version for server in self.name_servers]
        options = " ".join(f"--dns-forward {_NAME_SERVERS[version]}" for version in versions)
        theirs = "".join(f"nameserver {server}\n" for server in self.name_servers)
        return ["sh", "-c", _BUILD, "sh", self.rules, options, theirs, *command]


def plan_network(network: Network, *, deny: Iterable[str] = ()) -> Outside | None:
    """The walls that `network` asks for; None where nothing is behind the guest's card but its own ports.

    `deny` are hosts, by name or address, that no guest may reach, whatever is allowed: the hub.

    Raises:
        HostError: They cannot be built here: something is missing, or a name cannot be found.
    """
    if network.mode not in ("allow", "internet"):
        return None
    check_tools()
    servers = find_name_servers() if network.asks_names else ()
    return Outside(
        rules=render_rules(
            network,
            allow=[(address, target) for target in network.targets for address in _addresses(target)],
            deny=[address for host in deny for address in _resolve(host, can_miss=True)],
            neighbours=find_neighbours(),
            asks=[ipaddress.ip_address(server).version for server in servers],
        ),
        name_servers=servers,
    )


def check_tools() -> None:
    """Raise HostError where what is needed for the walls is not there; they themselves are not tried."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise HostError(
            Text("A network for guests needs the packages {packages}.", packages=" and ".join(missing)),
            hint=Text('Install them, or set network = "none" for the machine.'),
        )
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise HostError(
            Text("A network for guests needs {path}, which this account may not open.", path=_TUN),
            hint=Text("Load the kernel's module tun; the file has the mode 0666 on most systems."),
        )


@cache
def check_network(account: pwd.struct_passwd | None = None) -> None:
    """Raise HostError where the network `internet` cannot be built, by building it once."""
    outside = plan_network(Network(mode="internet"))
    assert outside is not None
    become = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"] if account else []
    command = [
        *("setpriv", *become, "--pdeathsig", "KILL", "--"),
        *("unshare", "--map-current-user", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
        *outside.enter(["true"]),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise _cannot_build(Text("it takes longer than {seconds} s", seconds=_TIMEOUT_S)) from exc
    if done.returncode != 0:
        words = done.stderr.strip().rpartition("\n")[2]
        raise _cannot_build(words or Text("exit code {code}", code=done.returncode))


def _cannot_build(words: str) -> HostError:
    return HostError(
        Text("The network for guests cannot be built on this host: {words}.", words=words),
        hint=Text("Allow unprivileged user namespaces, and load the kernel's modules tun and nf_tables."),
    )


def render_rules(
    network: Network,
    *,
    allow: Sequence[tuple[Address, Target]],
    deny: Sequence[Address],
    neighbours: Sequence[Address],
    asks: Sequence[int] = (),
) -> str:
    """The rules for nft: what is denied, then what is allowed, then what is no part of the internet.

    `neighbours` are the host's own networks and addresses, `asks` the IP versions that name servers have.
    """
    lines = ['oifname "lo" accept', _NEIGHBOURS]
    lines += [
        f"{_daddr(_NAME_SERVERS[version])} meta l4proto {{ tcp, udp }} th dport 53 accept" for version in asks
    ]
    lines += _reject(deny)
    for address, target in allow:
        ports = f" {target.protocol} dport {target.first_port}-{target.last_port}" if target.protocol else ""
        lines.append(f"{_daddr(address)}{ports} accept")
    if network.mode == "internet":
        lines += _reject([*_NOT_PUBLIC, *neighbours])
        lines.append("meta nfproto { ipv4, ipv6 } accept")
    else:
        lines.append(_REJECT)
    return _TABLE.replace("RULES", "\n  ".join(lines))


def _reject(addresses: Sequence[Address]) -> Iterator[str]:
    for version in (4, 6):
        # nft takes no set with parts that lie in each other.
        apart = ipaddress.collapse_addresses(one for one in addresses if one.version == version)  # type: ignore[type-var]
        if joined := ", ".join(map(str, apart)):
            yield f"{_daddr(f'{{ {joined} }}')} {_REJECT}"


def _daddr(address: Address | str) -> str:
    return f"{'ip6' if ':' in str(address) else 'ip'} daddr {address}"


def find_name_servers() -> Sequence[str]:
    """The host's name servers, the first of each IP version.

    Raises:
        HostError: There is none but on its loopback, where pasta cannot ask.
    """
    for path in _RESOLVERS:
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                words = line.split()
                if len(words) < 2 or words[0] != "nameserver":
                    continue
                with contextlib.suppress(ValueError):
                    address = ipaddress.ip_address(words[1])
                    if not address.is_loopback and not address.is_link_local:
                        found.setdefault(address.version, words[1])
        if found:
            return tuple(found.values())
    raise HostError(
        Text("No name server of this host can be asked for guests."),
        hint=Text("Name one in /etc/resolv.conf that is not at the host's own loopback."),
    )


def find_neighbours() -> list[Address]:
    """The networks that this host is part of, and its own addresses; a site's need not be private ones."""
    found: list[Address] = []
    for line in _lines("/proc/net/route")[1:]:
        _, target, gateway, _, _, _, _, mask, *_ = line.split()
        if gateway == "00000000" and mask != "00000000":
            address, bits = (int.from_bytes(bytes.fromhex(text)[::-1]) for text in (target, mask))
            found.append(ipaddress.IPv4Network((address, bits.bit_count())))
    for line in _lines("/proc/net/ipv6_route"):
        target, size, _, _, gateway, *_ = line.split()
        if not gateway.strip("0") and int(size, 16):
            found.append(ipaddress.IPv6Network((int(target, 16), int(size, 16))))
    before = ""
    for line in _lines("/proc/net/fib_trie"):
        if line.split() == ["/32", "host", "LOCAL"]:
            found.append(ipaddress.IPv4Network(before))
        before = line.split()[-1]
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []


def _addresses(target: Target) -> Sequence[Address]:
    return [target.network] if target.network is not None else _resolve(target.address)


def _resolve(host: str, *, can_miss: bool = False) -> Sequence[Address]:
    """The addresses that a name has now; raises HostError where it has none, unless it `can_miss`."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as exc:
        if can_miss:
            return ()
        raise HostError(
            Text("The host '{host}', which the machine may reach, is not found.", host=host),
            hint=Text("The administrator looks at the lists of allowed servers, and at the name servers."),
        ) from exc
    # An address of a link comes with its interface's name.
    return [ipaddress.ip_network(str(address).partition("%")[0]) for address in sorted(map(str, found))]
