"""Which folders of servers a start offers its session."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubs
import pytest
import vms
from traitlets import TraitError

from qemuspawner.hub.remote_folders import RemoteFolderTraits
from qemuspawner.network import Network
from qemuspawner.spec import SPEC_VARIABLE, RemoteFolder, SessionSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJQa2qVyPITuVMfoLH4+cyVsuT81ecJsRD55muy0RCPa"
HOME = {"name": "home", "kind": "cifs", "server": "files.example.org", "path": "/homes/{username}"}
ANYWHERE = Network(mode="bridge", interface="br0")


def make_remote_folders(
    *entries: dict[str, Any], user: str = "alice", network: Network = ANYWHERE, agent: bool = True
) -> tuple[RemoteFolder, ...]:
    """Those of a start of the machine "mini"."""
    made = RemoteFolderTraits(remote_folders=list(entries))
    made.user = SimpleNamespace(name=user, groups=[SimpleNamespace(name="staff")])
    machine = vms.make_machine(id="mini", image={"file": "/x", "format": "raw"}, agent=agent)
    return made.make_remote_folders(SimpleNamespace(machine=machine), network)  # type: ignore[arg-type]


async def test_a_session_is_told_of_what_its_network_reaches(
    standin: Callable[..., Awaitable[hubs.Hub]], machines_dir: Path
) -> None:
    """Through the whole hub, with the user's name in it."""
    recipe = machines_dir / "mini/machine.toml"
    recipe.write_text("agent = true\n" + recipe.read_text())
    near = {**HOME, "name": "near", "server": "10.1.2.3"}
    hub = await standin(
        remote_folders=[HOME, near], network="allow", allow_servers=["dns", "files.example.org tcp/445"]
    )
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")
    url = await hub.wait_until_ready("alice")
    told = json.loads((await alice.request("GET", url / "environment")).text)
    spec = SessionSpec.from_json(told["env"][SPEC_VARIABLE])

    assert [(one.name, one.path) for one in spec.remote_folders] == [("home", "/homes/alice")]


def test_a_session_is_told_of_the_server_and_of_no_account() -> None:
    (home,) = make_remote_folders({**HOME, "read_only": False, "domain": "SITE"})

    assert home == RemoteFolder(
        name="home", kind="cifs", server="files.example.org", path="/homes/alice", mount="/mnt/home",
        read_only=False, domain="SITE",
    )  # fmt: skip
    assert home.needs_login


def test_a_folder_can_be_for_some_machines_groups_and_users() -> None:
    assert make_remote_folders({**HOME, "machines": ["mini"], "groups": ["staff"]})
    assert not make_remote_folders({**HOME, "machines": ["other"]})
    assert not make_remote_folders({**HOME, "groups": ["others"]})
    assert not make_remote_folders({**HOME, "users": ["bob"]})
    assert not make_remote_folders(HOME, agent=False)


@pytest.mark.parametrize("user", ["..", "a/b", "a,sec=none", "a:b"])
def test_no_user_name_leads_elsewhere_or_becomes_an_option(user: str) -> None:
    assert make_remote_folders(HOME, user=user) == ()


@pytest.mark.parametrize(
    ("network", "servers"),
    [
        (Network(), ""),
        (Network(mode="bridge", interface="br0"), "name address lan"),
        (Network(mode="internet"), "name address"),
        (Network(mode="internet", allow=("10.1.2.0/24",)), "name address lan"),
        (Network(mode="allow", allow=("files.example.org", "8.8.8.8 udp/445", "10.0.0.0/8 tcp/22")), ""),
        (Network(mode="allow", allow=("dns", "Files.example.org tcp/400-500")), "name"),
        (Network(mode="allow", allow=("10.0.0.0/8 tcp/445", "8.8.8.8")), "address lan"),
    ],
)
def test_what_the_machines_network_does_not_reach_is_not_offered(network: Network, servers: str) -> None:
    """A name is reached where the guest can ask for its address."""
    known = {"name": "files.example.org", "address": "8.8.8.8", "lan": "10.1.2.3"}

    found = make_remote_folders(
        *({**HOME, "name": name, "server": server} for name, server in known.items()), network=network
    )

    assert [folder.name for folder in found] == servers.split()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "ftp"}, "'kind' is none of nfs, cifs, sshfs"),
        ({"server": "files.example.org:22"}, "'server' is neither an address nor the name of a host"),
        ({"server": "10.0.0.0/8"}, "'server' is neither an address nor the name of a host"),
        ({"server": "-oProxyCommand=x"}, "'server' is neither an address nor the name of a host"),
        ({"port": "22"}, "'port' is no number from 1 to 65535"),
        ({"port": 65536}, "'port' is no number from 1 to 65535"),
        ({"path": "homes"}, "'path' is not an absolute and plain path"),
        ({"path": "/homes,uid=0"}, "'path' has one of"),
        ({"mount": "/mnt/{home}"}, "'mount' has a placeholder"),
        ({"kind": "sshfs"}, "'host_key' is missing"),
        ({"kind": "sshfs", "host_key": "files.example.org " + KEY}, "'host_key' is none"),
        ({"host_key": KEY}, "'host_key' is for the kind sshfs only"),
        ({"domain": "A,B"}, "'domain' is none"),
        ({"password": "secret"}, "'password' is none of"),
        ({"read_only": 1}, "'read_only' is neither true nor false"),
        ({"name": "a/b"}, "'name' is not fit"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_wrong(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TraitError, match=words):
        make_remote_folders({**HOME, **change})


def test_two_folders_of_one_name_are_refused() -> None:
    with pytest.raises(TraitError, match="two entries of the name 'home'"):
        make_remote_folders(HOME, HOME)
