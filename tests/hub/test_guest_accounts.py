"""Who a user is in guests, as a start of theirs tells it, and what their desktops are given."""

import grp
import json
import pwd
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import hubs
import pytest
from traitlets import TraitError

from qemuspawner.account import Account, Group
from qemuspawner.hub.records import Records
from qemuspawner.hub.sessions.accounts import account_name, find_host_account
from qemuspawner.hub.sessions.uids import find_uid
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.paths import StatePaths
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec

Start = Callable[..., Awaitable[hubs.Hub]]

# No host has an account of that name.
NOBODY_HERE = "zoe.mueller"


async def start(hub: hubs.Hub, name: str = NOBODY_HERE, **headers: str) -> SessionSpec:
    """What a start asks of the session."""
    person = await hub.with_token(name)
    answer = await person.request(
        "POST", hub.url / "api/users" / name / "server", json={"user_options": {}}, headers=headers
    )
    assert answer.status in (201, 202), answer.text
    url = await hub.wait_until_ready(name)
    told = json.loads((await person.request("GET", url / "environment")).text)
    return SessionSpec.from_json(told["env"][SPEC_VARIABLE])


# The account


async def test_who_has_no_account_anywhere_gets_a_number_of_their_own(hub: hubs.Hub) -> None:
    one, two = await start(hub), await start(hub, "walter.mueller")

    assert one.account is not None
    assert two.account is not None
    assert (one.account.name, two.account.name) == ("zoe-mueller", "walter-mueller")
    assert (one.account.uid, two.account.uid) == (70000, 70001)
    assert one.account.gid == one.account.uid
    assert one.sudo == ""


def test_a_number_stays_its_users(tmp_path: Path) -> None:
    """Another hub on the same records gives the same ones."""
    state = StatePaths(root=tmp_path)
    first = [find_uid(Records(state), name) for name in ("a", "b", "a")]

    assert [find_uid(Records(state), name) for name in ("c", "b", "a")] == [first[1] + 1, first[1], first[0]]


async def test_the_language_is_that_of_the_page_that_asks(hub: hubs.Hub) -> None:
    spec = await start(hub, **{"Accept-Language": "de-CH, fr;q=0.5"})

    assert spec.account is not None
    assert spec.account.language == "de_DE"


async def test_a_function_of_the_administrators_says_who_somebody_is(standin: Start) -> None:
    asked = []

    def account(spawner: Any) -> Mapping[str, Any]:
        asked.append(spawner.user.name)
        return {"name": "zoe", "uid": 4711, "groups": {"beamline": 5000}, "full_name": "Zoë Müller"}

    hub = await standin(guest_account=account)

    spec = await start(hub)

    assert set(asked) == {NOBODY_HERE}
    assert spec.account == Account(
        name="zoe",
        uid=4711,
        gid=4711,
        groups=(Group(name="beamline", gid=5000),),
        full_name="Zoë Müller",
        language="en_US",
    )


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"name": "root;reboot"}, "name"),
        ({"name": "-rf"}, "name"),
        ({"uid": 0}, "uid"),
        ({"uid": "4711"}, "uid"),
        ({"groups": {"sudo": 27}}, "groups"),
        ({"groups": ["sudo"]}, "something that is no account"),
        ("zoe", "something that is no account"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_an_account_that_cannot_be_one_is_refused(given: object, why: str, standin: Start) -> None:
    hub = await standin(guest_account=lambda _spawner: given)
    person = await hub.with_token(NOBODY_HERE)

    answer = await hub.start(person, {"machine": "mini"})

    assert answer.status == 500
    assert why in answer.text
    assert "The administrator" in answer.text


# An account of the hub's host


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with accounts of a person, of the system, and of who is in many groups."""
    people = {
        "zoe": pwd.struct_passwd(("zoe", "x", 4711, 100, "Zoë Müller,Room 5", "/home/zoe", "/bin/sh")),
        "backup": pwd.struct_passwd(("backup", "x", 34, 34, "", "/", "/bin/sh")),
        "ghost": pwd.struct_passwd(("ghost", "x", 65534, 65534, "", "/", "/bin/sh")),
    }
    names = {100: "users", 27: "sudo", 5000: "Beam Line", 5001: "cryo"}
    monkeypatch.setattr(pwd, "getpwnam", people.__getitem__)
    monkeypatch.setattr("os.getgrouplist", lambda _name, gid: [gid, 27, 5000, 5001, 5002])
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((names[gid], "x", gid, [])))


@pytest.mark.usefixtures("host")
def test_a_persons_account_is_taken_without_the_systems_own_groups() -> None:
    assert find_host_account("zoe") == {
        "name": "zoe",
        "uid": 4711,
        "gid": 4711,
        "groups": {"beam-line": 5000, "cryo": 5001, "g5002": 5002},
        "full_name": "Zoë Müller",
    }


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", ["backup", "ghost", "nobody-here", "a\0b"])
def test_an_account_of_the_system_is_nobodys(name: str) -> None:
    assert find_host_account(name) == {}


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("alice", "alice"),
        ("Zoë.Müller@esrf.fr", "zoe-muller-esrf-fr"),
        ("42", "u-42"),
        ("-rf /", "rf"),
        ("数据", "user"),
        ("$(reboot)\n", "reboot"),
        ("x" * 31 + "-y", "x" * 31),
    ],
)
def test_a_name_is_made_such_as_an_account_can_have_it(user: str, name: str) -> None:
    assert account_name(user) == name


# Root


@pytest.mark.parametrize(
    ("sudo", "groups", "admin", "expected"),
    [
        ("machine", (), False, ""),
        ("everybody", (), False, "yes"),
        ("nobody", ("staff",), True, "no"),
        (["group:staff"], ("staff",), False, "yes"),
        (["group:staff"], ("students",), True, "no"),
        (["admin"], (), True, "yes"),
        (["user:alice"], (), False, "yes"),
        (["user:bob"], (), False, "no"),
        ([], (), True, "no"),
    ],
)
async def test_who_may_become_root_follows_from_ones_roles(
    sudo: object, groups: tuple[str, ...], admin: bool, expected: str, quick_hub: Start
) -> None:
    hub = await quick_hub(sudo=sudo)
    user = hub.user("alice", admin=admin, groups=groups)
    await hub.start(await hub.log_in("alice", admin=admin), {"machine": "mini"})

    assert user.spawners[""].make_spec().sudo == expected


@pytest.mark.parametrize(
    ("trait", "value", "why"),
    [
        ("sudo", "all", "machine"),
        ("sudo", ["staff"], '"admin", "group:NAME" or "user:NAME"'),
        ("sudo", ["group:"], "group:"),
        ("guest_files", {"staff": "/srv"}, '"everybody", "group:NAME" or "user:NAME"'),
        ("guest_files", {"everybody": "srv"}, "an absolute path"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(trait: str, value: object, why: str) -> None:
    with pytest.raises(TraitError, match=why):
        QemuSpawner(**{trait: value})


# What is given


async def test_everybodys_comes_first_then_the_groups_then_the_users_own(quick_hub: Start) -> None:
    folders = {
        "user:alice": "/srv/alice",
        "group:b": "/srv/b",
        "group:other": "/srv/other",
        "group:a": "/srv/a",
        "everybody": "/srv/all",
    }
    hub = await quick_hub(guest_files=folders)
    hub.user("alice", groups=("b", "a"))
    await hub.start(await hub.log_in("alice"), {"machine": "mini"})

    assert hub.spawner("alice").make_spec().gifts == ("/srv/all", "/srv/a", "/srv/b", "/srv/alice")
