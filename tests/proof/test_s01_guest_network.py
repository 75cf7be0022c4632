"""What the demo machine's guest reaches in every mode of its network, however the desktop came up.

Restored from one template; from inside, over IPv4 and IPv6, by TCP and UDP; see `network_world`.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import guests
import network_world
import pytest
import vms
from msgspec import structs
from network_world import AT_GUESTS, HOST, PEERS, PORT, QEMUS, World
from proofs import Proof
from sessions import account

from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.network import NAMES, Network
from qemuspawner.paths import EXAMPLE_MACHINES, StatePaths
from qemuspawner.qemu import lan, network
from qemuspawner.qemu.lan import mac_address
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.personal import personalise
from qemuspawner.session.vm.prepare import Prepared
from qemuspawner.spec import SessionSpec

pytestmark = [
    pytest.mark.goal("S1"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

_TARGETS = HOST | PEERS | QEMUS
_INTERNET = ("internet", "internet 6", "hub elsewhere")

# $1: whether there will be a router. Then targets as KIND ADDRESS PORT; says the number of each that answers.
# A guest by emulation is slow, and starts with an address that it is about to ask for anew.
_PROBE = """
reaches() {
    timeout 15 bash -c "
        exec 3<> /dev/$1/$2/$3 && { [ $1 = tcp ] || echo '?' >&3; } && read -t 10 -N 1 -u 3 letter &&
        [ \\$letter = h ]"
}
tries=0
while [ "$1" = yes ] && [ $tries -lt 300 ] && ! ip route | grep -q '^default'; do
    sleep 0.2
    tries=$((tries + 1))
done
# An address of IPv6 comes by a router's word, and is looked for among the neighbours before it may be used.
tries=0
while [ "$1" = yes ] && [ $tries -lt 50 ] &&
    ! ip -6 -oneline address show scope global | grep -v tentative | grep -q inet6; do
    sleep 0.2
    tries=$((tries + 1))
done
shift
number=0
while [ $# -gt 0 ]; do
    { reaches "$1" "$2" "$3" && echo "reached $number"; } &
    shift 3
    number=$((number + 1))
done 2> /dev/null
wait
getent ahostsv4 anything.example 2> /dev/null | grep -q '^198.51.100.1 ' && echo named
true
"""


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with network_world.world(tmp_path_factory.mktemp("world")) as around:
        yield around


@pytest.fixture(scope="module")
def machine(warm_state: Path) -> Machine:
    return load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")


@pytest.fixture(autouse=True)
def name_servers(around: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_RESOLVERS", (around.resolv_conf,))


@contextlib.asynccontextmanager
async def desktop(
    around: World, state: Path, machine: Machine, asked: Network, *, server_name: str
) -> AsyncIterator[tuple[Guest, Prepared, SessionSpec]]:
    """A desktop on the host of `around`, its user's own."""
    spec = vms.make_spec(state, machine, memory_mib=1024, server_name=server_name, network=asked)
    running = vms.running_guest(spec)
    with around.on_host():
        guest, prepared = await running.__aenter__()
    try:
        assert guest.agent is not None
        await guest.agent.wait_until_ready(timeout_s=120)
        await personalise(guest, spec)
        yield guest, prepared, spec
    finally:
        await running.__aexit__(None, None, None)


async def reached(guest: Guest, *, routed: bool = True, **more: tuple[str, str, int]) -> set[str]:
    """What answers the guest, such as "tcp LAN", and "names" where a name is found; `more` to be tried."""
    probes = {
        f"{kind} {name}": (kind, address, PORT)
        for kind in ("tcp", "udp")
        for name, address in _TARGETS.items()
    } | more
    words = [str(word) for probe in probes.values() for word in probe]
    assert guest.agent is not None
    code, said = await guest.agent.run(
        "/bin/bash", "-c", _PROBE, "probe", "yes" if routed else "no", *words, timeout_s=240
    )
    assert code == 0, said
    numbers = {int(line.split()[1]) for line in said.splitlines() if line.startswith("reached ")}
    names = {"names"} if "named" in said.splitlines() else set()
    return {name for number, name in enumerate(probes) if number in numbers} | names


def every(*names: str) -> set[str]:
    return {f"{kind} {name}" for kind in ("tcp", "udp") for name in names}


class Tries:
    """What the guests of one test reached, compared with what they may."""

    def __init__(self, proof: Proof) -> None:
        self._proof = proof
        self._tried = 0
        self._too_much: list[str] = []
        self._allowed = 0
        self._too_little: list[str] = []

    async def compare(
        self, guest: Guest, *allowed: str, routed: bool = True, **more: tuple[str, str, int]
    ) -> None:
        """Try all that there is, and `more`."""
        found = await reached(guest, routed=routed, **more)
        self._tried += 2 * len(_TARGETS) + len(more) + 1
        self._allowed += len(allowed)
        self._too_much += found - set(allowed)
        self._too_little += set(allowed) - found

    def note(self, about: str) -> None:
        """That they are the same."""
        self._proof.note(
            done=f"{about}: {self._tried} times something was tried from inside, by TCP, UDP and names, at"
            " QEMU's and the host's addresses, the LAN, the site, a cloud's metadata and the internet",
            found=f"{len(self._too_much)} reached that is closed,"
            f" {self._allowed - len(self._too_little)} of {self._allowed} that are open",
            limit="0, and all",
        )
        assert (self._too_much, self._too_little) == ([], [])


@pytest.fixture
def tries(proof: Proof) -> Tries:
    return Tries(proof)


async def answers(guest: Guest) -> bool:
    """Whether the web tool of the machine does, by the way of /proxy/terminal/."""
    connection = await guest.ports.connect("terminal")
    with connection:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(60):
            return (await loop.sock_recv(connection, 100)).startswith(b"HTTP/1")


async def test_none_leads_nowhere(around: World, warm_state: Path, machine: Machine, tries: Tries) -> None:
    """The predecessor's guests saw each other's screens at the host's loopback (D2)."""
    async with desktop(around, warm_state, machine, Network(), server_name="none") as (guest, _, _):
        assert guest.plan.way == "restored"
        await tries.compare(guest, routed=False)
        assert await answers(guest)
    tries.note("the network 'none', restored")


async def test_a_list_and_what_it_says(
    around: World, warm_state: Path, machine: Machine, tries: Tries
) -> None:
    asked = Network(mode="allow", allow=(f"{PEERS['LAN']} tcp/{PORT}", f"{PEERS['site 6']}"))

    async with desktop(around, warm_state, machine, asked, server_name="list") as (guest, _, _):
        assert guest.plan.way == "restored"
        await tries.compare(guest, "tcp LAN", *every("site 6"))
        assert await answers(guest)
    tries.note("'allow' with a list, restored")


async def test_internet_with_names_also_when_it_was_put_to_sleep(
    around: World, warm_state: Path, machine: Machine, tries: Tries
) -> None:
    """And what it may reach when it wakes is what is said then."""
    asked = Network(mode="internet")
    async with desktop(around, warm_state, machine, asked, server_name="net") as (guest, prepared, _):
        assert guest.plan.way == "restored"
        await tries.compare(guest, "names", *every(*_INTERNET))
        assert await answers(guest)
        await vms.suspend(guest, prepared)

    less = Network(mode="allow", allow=(NAMES, f"{PEERS['LAN 6']} udp/{PORT}"))
    async with desktop(around, warm_state, machine, less, server_name="net") as (guest, prepared, _):
        assert guest.plan.way == "woken"
        await tries.compare(guest, "names", "udp LAN 6")
        assert await answers(guest)
        await vms.suspend(guest, prepared)

    async with desktop(around, warm_state, machine, Network(), server_name="net") as (guest, _, _):
        assert guest.plan.way == "woken"
        await tries.compare(guest, routed=False)
        assert await answers(guest)
    tries.note("'internet', restored; 'allow' and 'none', woken from it")


# A guest's own manager of networks takes away addresses that it was not told of.
_TAKE_ADDRESS = """
mkdir -p /run/systemd/network
printf '[Match]\\nName=eth1\\n[Network]\\nAddress=%s\\nAddress=%s\\n' "$1" "$2" \\
    > /run/systemd/network/10-lan.network
networkctl reload
has() { ip -oneline address show dev eth1 | grep -v tentative | grep -q "$1"; }
tries=0
while [ $tries -lt 300 ] && ! { has "$1" && has "$2"; }; do
    sleep 0.2
    tries=$((tries + 1))
done
cat /sys/class/net/eth1/address
"""


@pytest.mark.parametrize("mode", ["tap", "bridge"])
async def test_an_interface_of_the_host_is_a_second_card(
    mode: Literal["tap", "bridge"],
    around: World,
    state_dir: Path,
    tmp_path: Path,
    tries: Tries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It boots, since its address is its own, and sleeps and wakes as others do."""
    (state_dir / "images").symlink_to(os.environ["QEMUSPAWNER_TEST_IMAGES"])
    if mode == "tap":
        around.make_tap("guests0")
    else:
        around.make_bridge("guests0")
        helper = network_world.make_bridge_helper(tmp_path, allowed=["guests0"])
        monkeypatch.setattr(lan, "_HELPERS", (helper,))
    asked = Network(mode=mode, interface="guests0")
    demo = load_machine(EXAMPLE_MACHINES / "debian-desktop", state_dir / "images")
    machine = structs.replace(demo, network=asked)
    places = {f"{kind} at {at}": (kind, at, PORT) for kind in ("tcp", "udp") for at in AT_GUESTS}
    async with desktop(around, state_dir, machine, asked, server_name=mode) as (guest, prepared, spec):
        assert guest.plan.way == "cold"
        assert guest.agent is not None
        own = [f"{address}0/{size}" for address, size in zip(AT_GUESTS, (24, 64), strict=True)]
        taken = await guest.agent.run("/bin/sh", "-c", _TAKE_ADDRESS, "take", *own, timeout_s=90)
        assert taken == (0, f"{mac_address(spec.session_id)}\n")
        await tries.compare(guest, *places, routed=False, **places)
        assert await answers(guest)
        await vms.suspend(guest, prepared)

    async with desktop(around, state_dir, machine, asked, server_name=mode) as (guest, prepared, _):
        assert guest.plan.way == "woken"
        await tries.compare(guest, *places, routed=False, **places)
        await vms.suspend(guest, prepared)

    # Its user may have no more than that now.
    async with desktop(around, state_dir, machine, Network(), server_name=mode) as (guest, _, _):
        assert guest.plan.way == "woken"
        await tries.compare(guest, routed=False, **places)
        assert await answers(guest)
    around.delete("guests0")
    tries.note(f"'{mode}' to an interface of the host, booted and woken, and 'none', woken from it")


async def test_the_ports_of_a_guest_are_nobody_elses(
    around: World, warm_state: Path, machine: Machine, tries: Tries
) -> None:
    """Two with the internet: the port of one is tried from the other, from the host and from its LAN."""
    asked = Network(mode="internet")
    async with (
        desktop(around, warm_state, machine, asked, server_name="one") as (one, _, _),
        desktop(around, warm_state, machine, asked, server_name="two") as (two, _, _),
    ):
        assert await answers(one)
        inner = next(iter(one.ports.inner.values()))
        places = {f"port at {name}": ("tcp", address, inner) for name, address in (HOST | QEMUS).items()}

        await tries.compare(two, "names", *every(*_INTERNET), **places)
        for namespace in (around.host, around.peers):
            for address in (*HOST.values(), "10.0.2.15"):
                assert not around.connects(namespace, address, inner)
    tries.note("'internet', and the ports of another desktop")


# As on hosts that allow no account to have them: the account is itself in one, and that has no more.
_WITHOUT_NAMESPACES = """
import contextlib, ctypes, json, os, sys
from pathlib import Path
from qemuspawner.errors import QemuSpawnerError
from qemuspawner.session.vm.prepare import prepare
from qemuspawner.spec import SessionSpec
uid, gid = os.getuid(), os.getgid()
if ctypes.CDLL(None).unshare(0x10000000):
    raise OSError("There are none to begin with.")
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
os.umask(0o077)
ended = []
for text in sys.stdin:
    with contextlib.ExitStack() as stack:
        try:
            prepare(SessionSpec.from_json(text), stack, lambda text, progress: None)
            ended.append("started")
        except QemuSpawnerError as exc:
            ended.append(exc.message)
print(json.dumps(ended))
"""


async def test_without_user_namespaces_a_network_is_refused(
    state: StatePaths, around: World, proof: Proof
) -> None:
    """Rather than opened. Only who needs no jail has a desktop then, without a network."""
    disk = guests.make_disk(state.root / "painter")
    painter = vms.make_machine(image={"file": str(disk), "format": "raw"})
    networks = (Network(), Network(mode="allow", allow=("198.51.100.1",)), Network(mode="internet"))
    asked = [(network, jail) for network in networks for jail in (True, False)]
    specs = [vms.make_spec(state.root, painter, network=network, jail=jail) for network, jail in asked]
    uid, gid = account()
    with around.on_host():
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_NAMESPACES],
            input="".join(f"{spec.to_json()}\n" for spec in specs),
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
            user=uid, group=gid, extra_groups=[], capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ended = dict(zip([(network.mode, jail) for network, jail in asked], json.loads(done.stdout), strict=True))

    opened = [mode for (mode, _), how in ended.items() if mode != "none" and how == "started"]
    proof.note(
        done="without user namespaces: starts with 'allow' and 'internet', with the jail and without",
        found=f"{len(opened)} of 4 started",
        limit="0",
    )
    assert not opened
    assert {how for (_, jail), how in ended.items() if jail} == {
        "The jail around QEMU cannot be built on this host: unshare: unshare failed: No space left on device."
    }
    assert ended["none", False] == "started"
