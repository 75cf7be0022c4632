"""Which folders of the host a start asks its session for."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hubs
import pytest
import vms
from traitlets import TraitError

from qemuspawner.hub.folders import FolderTraits
from qemuspawner.spec import SPEC_VARIABLE, ChosenProposal, DataFolder, Folder, SessionSpec

HOME = {"name": "home", "path": "/srv/homes/{username}", "read_only": False, "required": True}


def make_folders(
    *entries: dict[str, Any], user: str = "alice", groups: tuple[str, ...] = (), data: Any = (), **traits: Any
) -> tuple[Folder, ...]:
    """Those of a start of the machine "mini" on a proposal with `data`."""
    made = FolderTraits(folders=list(entries), **traits)
    made.user = SimpleNamespace(name=user, groups=[SimpleNamespace(name=group) for group in groups])
    proposal = ChosenProposal(id="1", title="One", data=data) if data else None
    machine = vms.make_machine(id="mini", image={"file": "/x", "format": "raw"})
    return made.make_folders(SimpleNamespace(machine=machine, proposal=proposal))  # type: ignore[arg-type]


async def test_a_session_is_told_of_its_folders(standin: Callable[..., Awaitable[hubs.Hub]]) -> None:
    """Through the whole hub, with the user's name in them."""
    hub = await standin(folders=[HOME])
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")
    url = await hub.wait_until_ready("alice")
    told = json.loads((await alice.request("GET", url / "environment")).text)
    spec = SessionSpec.from_json(told["env"][SPEC_VARIABLE])

    assert spec.folders == (
        Folder(name="home", path="/srv/homes/alice", mount="/mnt/home", read_only=False, required=True),
    )


def test_a_folder_can_be_for_some_machines_groups_and_users() -> None:
    """Each list that is there has to fit."""
    entry = {"name": "tools", "path": "/srv/tools"}

    assert make_folders({**entry, "machines": ["mini"], "groups": ["a", "b"]}, groups=("b",))
    assert not make_folders({**entry, "machines": ["other"]})
    assert not make_folders({**entry, "groups": ["a"]}, groups=("b",))
    assert not make_folders({**entry, "users": ["bob"]})


@pytest.mark.parametrize("user", ["..", ".", "a/b", "../bob"])
def test_no_user_name_leads_elsewhere(user: str) -> None:
    """Names are what an authenticator lets through; such a user has no such folder."""
    (folder,) = make_folders(HOME, user=user)

    assert folder.path == ""


def test_the_home_of_notebooks_is_that_of_the_hosts_account() -> None:
    (roots,) = make_folders({"name": "home", "path": "{home}"}, user="root")
    (nobodys,) = make_folders({"name": "home", "path": "{home}/x"}, user="no-such-account")

    assert (roots.path, nobodys.path) == (str(Path("~root").expanduser()), "")


def test_a_proposals_data_are_in_one_folder_of_the_guest() -> None:
    """With the access that the proposal says."""
    data = (
        DataFolder(name="raw", path="/data/1/raw"),
        DataFolder(name="work", path="/data/1/work", read_only=False),
    )

    raw, work = make_folders(data=data, data_required=True)

    assert raw == Folder(name="raw", path="/data/1/raw", mount="/data/raw", read_only=True, required=True)
    assert (work.mount, work.read_only) == ("/data/work", False)
    assert make_folders(data=data, data_folder="") == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "srv"}, "'path' is not an absolute and plain path"),
        ({"path": "/srv/../etc"}, "'path' is not an absolute and plain path"),
        ({"path": "/srv/{user}"}, "'path' has a placeholder that is none of home, username"),
        ({"path": "/srv/{username!r}"}, "'path' has a placeholder"),
        ({"path": "/srv/{"}, "'path' has a brace"),
        ({"mount": "/mnt/{home}"}, "'mount' has a placeholder that is none of username"),
        ({"name": "a/b"}, "'name' is not fit"),
        ({"read_only": "yes"}, "'read_only' is neither true nor false"),
        ({"groups": "team"}, "'groups' is no list of names"),
        ({"mode": "rw"}, "'mode' is none of name, path, mount"),
    ],
)
def test_a_wrong_entry_is_refused_with_what_is_wrong(change: dict[str, Any], words: str) -> None:
    with pytest.raises(TraitError, match=words):
        make_folders({"name": "x", "path": "/srv/x", **change})


def test_two_folders_of_one_name_are_refused() -> None:
    with pytest.raises(TraitError, match="two entries of the name 'home'"):
        make_folders(HOME, HOME)
