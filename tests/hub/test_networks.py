"""What a guest may reach is decided on the hub: by machine, group and user, in the form and at a start."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from traitlets import TraitError

from qemuspawner.hub.networks import Networks
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.machine import Image, Machine
from qemuspawner.network import Network
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec

Start = Callable[..., Awaitable[hubs.Hub]]

IMAGE = Image(file="disk", format="raw")
SHARE = "10.1.2.3 tcp/445"


def machine(network: Any = None) -> Machine:
    return Machine(name="Any", image=IMAGE, network=network)


@pytest.mark.parametrize(
    ("asked", "usual", "most", "given"),
    [
        (None, "none", "internet", "none"),
        (None, "internet", "internet", "internet"),
        (None, "internet", "none", "none"),
        ("none", "internet", "bridge", "none"),
        ("internet", "none", "internet", "internet"),
        ("internet", "none", "allow", "allow"),
        (Network(mode="bridge", interface="br0"), "none", "internet", "internet"),
        (Network(mode="tap", interface="tap0"), "none", "bridge", "tap"),
    ],
)
def test_a_machine_gets_what_it_asks_for_up_to_the_bound(
    asked: Any, usual: Any, most: Any, given: str
) -> None:
    assert Networks(usual=usual, most=most).of(machine(asked)).mode == given


def test_the_sites_list_adds_to_the_machines() -> None:
    networks = Networks(servers=(SHARE, "dns"))

    assert networks.of(machine(Network(mode="allow", allow=("10.9.9.9", SHARE)))) == Network(
        mode="allow", allow=("10.9.9.9", SHARE, "dns")
    )
    assert networks.of(machine("none")) == Network()


@pytest.mark.parametrize(
    ("user", "groups", "admin", "most"),
    [
        ("bob", (), False, "allow"),
        ("bob", ("students",), False, "none"),
        ("bob", ("students", "staff"), False, "bridge"),
        ("bob", (), True, "internet"),
        ("mallory", ("staff",), True, "none"),
        # D15 of the predecessor's: the names of users were patterns.
        ("mallory2", (), False, "allow"),
    ],
)
def test_the_bound_is_that_of_ones_role(user: str, groups: tuple[str, ...], admin: bool, most: str) -> None:
    bounds = {"group:students": "none", "group:staff": "bridge", "admin": "internet", "user:mallory": "none"}
    spawner = QemuSpawner(max_network="allow", max_networks=bounds)

    assert spawner.find_networks(user=user, groups=groups, admin=admin).most == most


@pytest.mark.parametrize(
    ("traits", "why"),
    [
        ({"max_networks": {"staff": "none"}}, 'it is "admin", "group:NAME" or "user:NAME"'),
        ({"max_networks": {"group:": "none"}}, 'it is "admin", "group:NAME" or "user:NAME"'),
        ({"allow_servers": ["10.1.2.3 445"]}, "no port such as tcp/445"),
        ({"allow_servers": ["10.1.2.3/8"]}, "no network such as"),
        ({"allow_servers": ["a b; flush ruleset"]}, "no port such as"),
        ({"allow_servers": ["10.1.2.3"] * 101}, "100 is the most"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(traits: dict[str, Any], why: str) -> None:
    with pytest.raises(TraitError, match=why):
        QemuSpawner(**traits)


async def test_it_is_shown_on_the_form_and_told_to_the_session(
    standin: Start, machines_dir: Path, state_dir: Path
) -> None:
    hubs.add_machine(machines_dir, state_dir, "online", more='[network]\nmode = "internet"\n')
    hub = await standin(max_networks={"group:students": "none"}, allow_servers=[SHARE])
    hub.user("bob", groups=("students",))
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")

    forms = [(await hub.get_form(person)).text for person in (alice, bob)]
    for person in (alice, bob):
        assert (await hub.start(person, {"machine": "online"})).status in (201, 202)
    specs = [SessionSpec.from_json(hub.spawner(name).get_env()[SPEC_VARIABLE]) for name in ("alice", "bob")]

    assert [form.count(">Internet</span>") for form in forms] == [1, 0]
    assert [spec.network for spec in specs] == [Network(mode="internet", allow=(SHARE,)), Network()]


async def test_no_option_of_a_start_widens_it(standin: Start) -> None:
    """The predecessor's form named servers that it then asked (D9)."""
    hub = await standin()
    alice = await hub.log_in("alice")

    refused = await hub.start(alice, {"machine": "mini", "network": "internet"})

    assert refused.status == 400
    assert "There is no option 'network'" in refused.text
