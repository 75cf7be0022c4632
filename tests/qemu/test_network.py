"""The network's walls without a guest: their rules, and a program of the test behind them."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import network_world
import pytest
from network_world import HOST, OTHER_PORT, PEERS, PORT, World

from qemuspawner.errors import HostError
from qemuspawner.network import NAMES, Network
from qemuspawner.qemu import network
from qemuspawner.qemu.network import NO_NETWORK, Outside, plan_network

# What each address answers, by TCP and UDP; refused at once or not at all is the same.
_PROBE = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def reaches(probe):
    kind, address, port = probe
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as one:
        one.settimeout(1.5)
        try:
            one.connect((address, port))
            if kind == "udp":
                one.send(b"?")
            return one.recv(100) == b"here\\n"
        except OSError:
            return False
probes = json.loads(sys.argv[1])
with ThreadPoolExecutor(100) as pool:
    print(json.dumps(list(pool.map(reaches, probes))))
"""


# The last four bytes of a name server's answer.
_ASK_NAME = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(3)
    one.connect((sys.argv[1], 53))
    one.send(bytes(2) + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7]) + b"example" + bytes([0, 0, 1, 0, 1]))
    print(*one.recv(512)[-4:], sep=".")
"""


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with network_world.world(tmp_path_factory.mktemp("world")) as around:
        yield around


@pytest.fixture(autouse=True)
def name_servers(around: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_RESOLVERS", (around.resolv_conf,))


def run_behind(outside: Outside, *command: str) -> "subprocess.CompletedProcess[str]":
    jail = ["unshare", "--map-current-user", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return subprocess.run([*jail, *outside.enter(command)], capture_output=True, text=True, timeout=30)


def reached(around: World, asked: Network, *, deny: tuple[str, ...] = ()) -> set[str]:
    """What a program behind the walls of `asked` gets an answer from, as "tcp LAN"."""
    probes = {
        f"{kind} {name}{suffix}": (kind, address, port)
        for kind in ("tcp", "udp")
        for name, address in (HOST | PEERS).items()
        for suffix, port in (("", PORT), (" other port", OTHER_PORT))
    }
    with around.on_host():
        outside = plan_network(asked, deny=deny)
        assert outside is not None
        done = run_behind(outside, "python3", "-c", _PROBE, json.dumps(list(probes.values())))
    assert done.returncode == 0, done.stderr
    return {name for name, is_there in zip(probes, json.loads(done.stdout), strict=True) if is_there}


def every(*names: str) -> set[str]:
    return {
        f"{kind} {name}{port}" for kind in ("tcp", "udp") for name in names for port in ("", " other port")
    }


def test_without_walls_everything_would_be_reached(around: World) -> None:
    """Or the tests below proved nothing."""
    probes = [(kind, address, PORT) for kind in ("tcp", "udp") for address in (HOST | PEERS).values()]
    with around.on_host():
        done = subprocess.run(
            ["python3", "-c", _PROBE, json.dumps(probes)], capture_output=True, text=True, check=True
        )
    assert all(json.loads(done.stdout))


def test_the_internet_is_reached_and_nothing_else(around: World) -> None:
    assert reached(around, Network(mode="internet")) == every("internet", "internet 6", "hub elsewhere")


def test_the_hub_is_never_reached(around: World) -> None:
    """Also where it is elsewhere on the internet, and somebody has allowed it."""
    asked = Network(mode="internet", allow=(PEERS["hub elsewhere"],))

    assert reached(around, asked, deny=(PEERS["hub elsewhere"],)) == every("internet", "internet 6")


def test_with_a_list_only_that_is_reached(around: World) -> None:
    allow = (f"{PEERS['LAN']} tcp/{PORT}", f"{PEERS['site 6']} udp/{PORT - 10}-{PORT}", "192.168.9.0/24")

    assert reached(around, Network(mode="allow", allow=allow)) == {
        "tcp LAN",
        "udp site 6",
        *every("site"),
    }


def test_a_list_adds_to_the_internet(around: World) -> None:
    asked = Network(mode="internet", allow=(f"{PEERS['LAN']} tcp/{OTHER_PORT}",))

    assert reached(around, asked) == {
        "tcp LAN other port",
        *every("internet", "internet 6", "hub elsewhere"),
    }


@pytest.mark.parametrize("asked", [Network(mode="internet"), Network(mode="allow", allow=(NAMES,))])
def test_names_are_found_by_the_hosts_name_servers(asked: Network, around: World) -> None:
    """Which are in its LAN, and behind a resolver at the host's loopback that is left out."""
    with around.on_host():
        outside = plan_network(asked)
        assert outside is not None
        (server,) = [line.split()[1] for line in outside.resolv_conf.splitlines()]
        done = run_behind(outside, "python3", "-c", _ASK_NAME, server)

    assert done.stdout.strip() == "198.51.100.1", done.stderr


def test_a_list_without_names_finds_none(around: World) -> None:
    with around.on_host():
        outside = plan_network(Network(mode="allow"))
        assert outside is not None
        done = run_behind(outside, "python3", "-c", _ASK_NAME, "169.254.1.53")

    assert outside.resolv_conf == ""
    assert done.returncode != 0


def test_the_hosts_loopback_cannot_be_allowed(around: World) -> None:
    """Behind the walls these addresses are another loopback's."""
    assert (
        reached(around, Network(mode="allow", allow=(HOST["host loopback"], HOST["host loopback 6"])))
        == set()
    )


def test_what_is_behind_the_walls_cannot_undo_them(around: World) -> None:
    """In a user namespace of its own, as the jail puts QEMU into one."""
    script = "unshare --map-root-user true && nft flush ruleset; ip link set lo down; ip -o link"
    with around.on_host():
        outside = plan_network(Network(mode="internet"))
        assert outside is not None
        jail = [
            "bwrap",
            "--unshare-user",
            "--cap-drop",
            "ALL",
            "--dev-bind",
            "/",
            "/",
            "--",
            "sh",
            "-c",
            script,
        ]
        done = run_behind(outside, *jail)

    assert done.stderr.count("Operation not permitted") == 2
    assert "LOOPBACK,UP" in done.stdout


@pytest.mark.parametrize("broken", ["pasta", "nft"])
def test_where_a_wall_does_not_stand_nothing_is_started(
    broken: str, around: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = tmp_path / broken
    fails.write_text("#!/bin/sh\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with around.on_host():
        outside = plan_network(Network(mode="internet"))
        assert outside is not None
        done = run_behind(outside, "touch", str(tmp_path / "started"))

    assert done.returncode == NO_NETWORK
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(("tool", "package"), [("pasta", "passt"), ("nft", "nftables")])
def test_a_missing_program_is_named(tool: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.shutil, "which", lambda name: None if name == tool else f"/usr/bin/{name}")

    with pytest.raises(HostError, match=f"needs the packages {package}"):
        plan_network(Network(mode="internet"))


def test_a_device_that_may_not_be_opened_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network, "_TUN", tmp_path / "tun")

    with pytest.raises(HostError, match="tun, which this account may not open"):
        plan_network(Network(mode="allow"))


def test_a_name_server_at_the_loopback_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\nnameserver ::1\noptions edns0\n")
    monkeypatch.setattr(network, "_RESOLVERS", (tmp_path / "resolv.conf",))

    with pytest.raises(HostError, match="No name server"):
        plan_network(Network(mode="allow", allow=(NAMES,)))
    assert plan_network(Network(mode="allow")) is not None


def test_an_allowed_name_that_is_not_found_is_named() -> None:
    with pytest.raises(HostError, match=r"'nowhere\.invalid'"):
        plan_network(Network(mode="allow", allow=("nowhere.invalid tcp/80",)))


@pytest.mark.parametrize("mode", ["none", "bridge", "tap"])
def test_other_modes_need_no_such_walls(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "check_tools", lambda: pytest.fail("nobody needs them"))

    assert plan_network(Network(mode=mode, interface="br0")) is None  # type: ignore[arg-type]
