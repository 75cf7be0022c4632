"""Interfaces of the host's that guests are put onto: real taps and bridges, in a namespace of the test."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import network_world
import pytest
import vms
from network_world import World

from qemuspawner.errors import HostError
from qemuspawner.machines.templates import find_template_obstacle
from qemuspawner.network import Network
from qemuspawner.qemu import lan
from qemuspawner.qemu.lan import mac_address, opened_lan


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with network_world.world(tmp_path_factory.mktemp("world")) as around:
        yield around


def links(around: World) -> str:
    command = ["ip", "-n", around.host, "-oneline", "link"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that serves br0 alone."""
    monkeypatch.setattr(lan, "_HELPERS", (network_world.make_bridge_helper(tmp_path, allowed=["br0"]),))


def test_a_guest_is_put_onto_a_bridge_that_is_allowed(around: World) -> None:
    around.make_bridge("br0")
    asked = Network(mode="bridge", interface="br0")

    with around.on_host(), opened_lan(asked) as descriptor:
        assert descriptor is not None
        assert not os.get_inheritable(descriptor)
        assert "tap0" in links(around)
        assert "master br0" in links(around)

    assert "tap0" not in links(around)


def test_another_bridge_is_refused(around: World) -> None:
    asked = Network(mode="bridge", interface="br1")

    with around.on_host(), pytest.raises(HostError, match=r"onto 'br1': .*access denied"), opened_lan(asked):
        pass


def test_without_the_helper_a_bridge_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan, "_HELPERS", ())

    with (
        pytest.raises(HostError, match="helper was not found"),
        opened_lan(Network(mode="bridge", interface="br0")),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "why"), [("absent0", "no such interface"), ("lan", "Invalid argument"), ("busy0", "busy")]
)
def test_what_is_no_free_tap_is_refused(name: str, why: str, around: World) -> None:
    """And none is made, though root could."""
    if name == "busy0":
        around.make_tap(name)
    asked = Network(mode="tap", interface=name)
    with around.on_host(), opened_lan(Network(mode="tap", interface=name) if name == "busy0" else Network()):
        before = links(around)
        with pytest.raises(HostError, match=f"onto '{name}': .*{why}"), opened_lan(asked):
            pass
        assert links(around) == before


def test_each_session_has_an_address_of_its_own() -> None:
    assert mac_address("a") == mac_address("a") != mac_address("b")
    assert mac_address("a").startswith("52:54:")
    assert len(mac_address("a")) == 17


def test_such_a_machine_has_no_template() -> None:
    machine = vms.make_machine(
        image={"file": "disk", "format": "raw"}, agent=True, network={"mode": "bridge", "interface": "br0"}
    )

    assert "an address of its own" in find_template_obstacle(machine)
