"""What is kept of desktops: offered, counted, shown and deleted by the hub. Nothing here runs a guest."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hubs
import keeping
import pytest
from jupyterhub import orm

from qemuspawner.hub.desktops import keeps, kept
from qemuspawner.hub.desktops.kept import (
    Sweeper,
    delete_kept,
    find_owner,
    list_kept,
    load_kept,
    sweep_expired,
)
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.saved import disk_usage
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec

StartHub = Callable[..., Awaitable[hubs.Hub]]
WAKES_BY_ITSELF = "requestSubmit("
NASTY = "</label><script>x()</script>'\"&"


async def spec_of(hub: hubs.Hub, user: str, server: str = "") -> SessionSpec:
    """What the session that was started was given."""
    url = await hub.wait_until_ready(user, server_name=server)
    person = await hub.with_token(user)
    answer = json.loads((await person.request("GET", url / "environment")).text)
    return SessionSpec.from_json(answer["env"][SPEC_VARIABLE])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """As a session that runs holds its lock: another process does."""
    script = "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX)"
    script += "; print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.kill()


# Options


async def test_a_start_without_options_wakes_what_sleeps_with_its_own_size(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"cpus": 2, "memory": "nonsense", "lifetime": "45 min"})
    spec = await spec_of(hub, "alice")

    assert answer.status in (201, 202), answer.text
    assert (spec.sleeping, spec.cpus, spec.memory_mib, spec.lifetime_s) == ("wake", 1, 128, 2700)
    assert "sleeping" not in hub.spawner("alice").user_options


async def test_what_sleeps_wakes_though_its_machine_has_left_the_catalogue(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", machine={"id": "gone", "name": "Gone"})
    alice = await hub.with_token("alice")

    await hub.start(alice)

    assert (await spec_of(hub, "alice")).machine.id == "gone"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sleeping": "boot"}, "The option 'sleeping' is 'boot', and nothing is kept of this desktop"),
        ({"sleeping": "abcdef01"}, "'abcdef01', which is no checkpoint of this desktop; it has none."),
        ({"sleeping": "<b>"}, "The option 'sleeping' is '<b>'; it is 'wake', 'boot', 'discard' or the name"),
        ({"sleeping": ["wake"]}, "The option 'sleeping' is '['wake']'; it is 'wake'"),
        ({"branch": "../x"}, "The option 'branch' is '../x'; it is 'SERVER/CHECKPOINT'"),
        ({"branch": 7}, "The option 'branch' is '7'; it is 'SERVER/CHECKPOINT'"),
        ({"branch": "work/abcdef01"}, "'work/abcdef01', and you have no such checkpoint."),
        ({"branch": "/abcdef01", "sleeping": "discard"}, "cannot be given together with 'sleeping'"),
        ({"sleeping": "wake"}, "Nothing sleeps here any more that could be woken; start a new desktop"),
    ],
)
async def test_what_is_not_kept_is_refused_in_a_sentence(
    hub: hubs.Hub, options: dict[str, object], sentence: str
) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, options)

    assert answer.status == 400
    assert sentence in json.loads(answer.text)["message"]
    assert hub.spawner("alice").orm_spawner.user_options is None


@pytest.mark.parametrize("sleeping", ["boot", "discard", "19a0000001"])
async def test_what_is_done_with_it_is_asked_for_once(hub: hubs.Hub, sleeping: str) -> None:
    keeping.keep(hub, "alice")
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    alice = await hub.with_token("alice")

    await hub.start(alice, {"sleeping": sleeping})

    assert (await spec_of(hub, "alice")).sleeping == sleeping
    assert set(hub.spawner("alice").user_options) == {"machine", "cpus", "memory", "lifetime", "profile"}


@pytest.mark.parametrize("sleeping", ["boot", "discard"])
async def test_what_is_stored_without_a_start_is_not_done(hub: hubs.Hub, sleeping: str) -> None:
    keeping.keep(hub, "alice", "second")
    alice = await hub.log_in("alice")
    hub.user("alice").get_or_create_spawner("second", "second")
    hub.app.db.commit()
    url = hub.url / "api/users/alice/servers/second"

    stored = await hub._ask(
        alice, "PATCH", url, json={"user_options": {"sleeping": sleeping, "lifetime": 2700}}
    )
    form = await hub.get_form(alice, server_name="second")
    await hub._ask(alice, "PATCH", url, json={"user_options": {"sleeping": sleeping, "lifetime": 2700}})
    await hub.start(alice, server_name="second")
    spec = await spec_of(hub, "alice", "second")

    assert stored.status in (200, 204), stored.text
    assert ways(form.text)["wake"]
    assert (spec.sleeping, spec.lifetime_s) == ("wake", 2700)


@pytest.mark.parametrize(
    ("scopes", "options", "sentence"),
    [
        (["start:servers"], {"sleeping": "discard"}, "but not delete what is kept of it."),
        (["start:servers", "access:servers"], {"sleeping": "discard"}, "but not delete what is kept of it."),
        (["start:servers", "delete:servers"], {"sleeping": "discard"}, ""),
        (["start:servers"], {"branch": "/19a0000001"}, "a checkpoint of a desktop that you may not open."),
        (["start:servers", "access:servers!server=alice/second"], {"branch": "/19a0000001"}, "may not open."),
        (["start:servers", "access:servers!server=alice/"], {"branch": "/19a0000001"}, ""),
        (["start:servers"], {}, ""),
    ],
)
async def test_who_may_only_start_it_neither_deletes_nor_copies(
    hub: hubs.Hub, scopes: list[str], options: dict[str, str], sentence: str
) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    keeping.keep(hub, "alice", "second", name="19a0000002", kind="checkpoint")
    mine = [scope if "!" in scope else f"{scope}!user=alice" for scope in scopes]
    token = hub.user("alice").new_api_token(scopes=mine)
    script = await hub.person("alice", token=token)

    answer = await hub.start(script, options, server_name="second")

    if sentence:
        assert answer.status == 400
        assert sentence in answer.text
        assert keeping.paths_of(hub.state_dir, "alice", "second").saved.exists()
    else:
        assert answer.status in (201, 202), answer.text


async def test_a_branch_goes_on_from_another_servers_checkpoint(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    alice = await hub.with_token("alice")

    await hub.start(alice, {"branch": "/19a0000001"}, server_name="second")

    spec = await spec_of(hub, "alice", "second")
    assert spec.branch == f"{session_id('alice', '')}/19a0000001"


async def test_a_branch_never_takes_the_place_of_what_sleeps(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    keeping.keep(hub, "alice", "second")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"branch": "/19a0000001"}, server_name="second")

    assert "this desktop is asleep; branch off to another server." in answer.text


@pytest.mark.parametrize("option", [{"sleeping": "19a0000001"}, {"branch": "/19a0000001"}])
async def test_another_users_checkpoint_does_not_exist(hub: hubs.Hub, option: dict[str, str]) -> None:
    keeping.keep(hub, "bob", name="19a0000001", kind="checkpoint")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, option)

    assert answer.status == 400
    assert "checkpoint" in answer.text


async def test_a_manifest_of_another_user_is_not_believed(hub: hubs.Hub) -> None:
    """Whoever put it there."""
    folder = keeping.keep(hub, "bob")
    stolen = keeping.paths_of(hub.state_dir, "alice")
    stolen.saved.mkdir(parents=True)
    folder.root.rename(stolen.saved / folder.root.name)

    state = StatePaths(root=hub.state_dir)
    assert not load_kept(state, user="alice", server_name="")
    assert (list_kept(state, "alice"), list_kept(state, "bob")) == ([], [])


async def test_what_has_expired_is_not_offered(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", expires=time.time() - 1)
    alice = await hub.log_in("alice")

    assert "asleep" not in (await hub.get_form(alice)).text.partition("</style>")[2].partition("<style>")[0]
    assert not load_kept(StatePaths(root=hub.state_dir), user="alice", server_name="")


# Quota


async def test_a_full_quota_refuses_a_new_desktop_with_the_numbers(standin: StartHub) -> None:
    hub = await standin(saved_quota="2 MiB")
    keeping.keep(hub, "alice", "other", size=3)
    alice = await hub.with_token("alice")

    answer = await hub.start(alice)

    assert answer.status == 409
    assert json.loads(answer.text)["message"] == (
        "Quota 'Saved desktops' of 'alice': 3 MiB of 2 MiB are used. "
        "Delete some of them on the hub's home page, or wake one of them."
    )


@pytest.mark.parametrize("options", [None, {"sleeping": "boot"}, {"sleeping": "discard"}])
async def test_a_full_quota_keeps_nobody_from_what_is_kept(standin: StartHub, options: Any) -> None:
    hub = await standin(saved_quota="2 MiB")
    keeping.keep(hub, "alice", size=3)
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, options)

    assert answer.status in (201, 202), answer.text


@pytest.mark.parametrize(
    ("trait", "value"),
    [
        ("keep_for", "soon"),
        ("keep_for", 5),
        ("checkpoint_every", "-1 h"),
        ("saved_quota", "much"),
        ("disk_limit", "little"),
        ("max_disk_limit", -1),
        ("suspend_on", ["sometimes"]),
        ("max_checkpoints", -1),
    ],
)
async def test_a_wrong_setting_is_refused(hub: hubs.Hub, trait: str, value: object) -> None:
    with pytest.raises(Exception, match=trait.split("_", maxsplit=1)[0]):
        setattr(hub.spawner("alice"), trait, value)


async def test_the_session_is_told_the_settings(standin: StartHub) -> None:
    hub = await standin(
        suspend_on=["idle"],
        keep_for="2 d",
        saved_quota="3 GiB",
        checkpoint_every="1 h",
        max_checkpoints=4,
        templates=False,
        disk_limit="20 GiB",
        max_disk_limit="60 GiB",
    )
    alice = await hub.with_token("alice")

    await hub.start(alice)
    spec = await spec_of(hub, "alice")

    assert (spec.suspend_on, spec.keep_s, spec.quota_mib) == (("idle",), 2 * 86400, 3072)
    assert (spec.disk_limit_mib, spec.max_disk_limit_mib) == (20 * 1024, 60 * 1024)
    assert (spec.checkpoint_every_s, spec.max_checkpoints, spec.templates) == (3600, 4, False)


# The form


def ways(page: str) -> dict[str, bool]:
    """The values of the form's choices, and which is chosen."""
    found = re.findall(r'name="sleeping"\s+value="(\w*)"\s+(checked)?', page)
    return {value: bool(checked) for value, checked in found}


async def test_the_form_of_a_sleeping_desktop_offers_to_wake_it_first(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint", title="Before")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert ways(form.text) == {"wake": True, "boot": False, "19a0000001": False, "discard": False}
    assert "This desktop is asleep" in form.text
    assert "1 CPU, 128 MiB · saved 2 h ago · 1 MiB on disk · deleted in 9 d 23 h" in " ".join(
        form.text.split()
    )
    assert "Go back to “Before”" in form.text
    assert re.search(r'<img [^>]*/users/alice/saved/[0-9a-f]{20}/19a0000000/picture"', form.text)
    assert 'name="machine"' in form.text


async def test_the_form_as_it_is_sent_wakes_what_sleeps(hub: hubs.Hub) -> None:
    """With the hidden fields of a new desktop, as every browser sends them."""
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    answer = await hub.submit_form(
        alice, sleeping="wake", kept_lifetime="2400", machine="mini", cpus="2", memory="256", lifetime="60"
    )
    spec = await spec_of(hub, "alice")

    assert answer.status == 302
    assert (spec.sleeping, spec.cpus, spec.memory_mib, spec.lifetime_s) == ("wake", 1, 128, 2400)


async def test_the_form_as_it_is_sent_starts_a_new_desktop(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    await hub.submit_form(
        alice,
        sleeping="discard",
        kept_lifetime="2400",
        machine="mini",
        cpus="2",
        memory="256",
        lifetime="1800",
    )
    spec = await spec_of(hub, "alice")

    assert (spec.sleeping, spec.cpus, spec.memory_mib, spec.lifetime_s) == ("discard", 2, 256, 1800)


async def test_a_link_to_branch_off_leads_to_a_form_that_does(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint", title=NASTY)
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice, server_name="second", query="opt-branch=/19a0000001")
    await hub.submit_form(
        alice, server_name="second", branch="/19a0000001", kept_lifetime="2400", machine="mini", cpus="2"
    )
    spec = await spec_of(hub, "alice", "second")

    assert re.search(r'name="branch" value="/19a0000001" checked', form.text)
    assert "<script>x()" not in form.text
    assert not form.text.count("required")
    assert (spec.branch, spec.cpus) == (f"{session_id('alice', '')}/19a0000001", 1)
    assert spec.lifetime_s == 2400


async def test_a_link_never_asks_to_delete(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice, query="opt-sleeping=discard")

    assert ways(form.text) == {"wake": True, "boot": False, "discard": False}
    assert "A link cannot ask for &#39;discard&#39;" in form.text


async def test_with_checkpoints_alone_a_new_desktop_is_the_usual_way(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)
    await hub.submit_form(alice, sleeping="", kept_lifetime="2400", machine="mini", cpus="2")
    spec = await spec_of(hub, "alice")

    assert ways(form.text) == {"": True, "19a0000001": False, "discard": False}
    assert (spec.sleeping, spec.cpus) == ("wake", 2)


async def test_what_could_not_be_woken_is_not_woken_again_unasked(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", problem="machine.toml has changed <b>")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert ways(form.text) == {"wake": False, "boot": True, "discard": False}
    assert "the last time: machine.toml has changed &lt;b&gt;" in form.text


async def test_a_lost_memory_is_said_before_the_start(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", memory="lost")
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice)

    assert ways(form.text) == {"wake": True, "discard": False}
    assert "only its disk is kept, programs that were open are lost" in form.text


async def test_after_an_error_the_form_is_that_of_the_server_that_was_asked_for(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", "second", machine={"name": "Second"})
    alice = await hub.log_in("alice")

    refused = await hub.submit_form(alice, server_name="second", sleeping="19a0000009")
    other = await hub.get_form(alice)

    assert refused.status == 400
    assert "<strong>Second</strong>" in refused.text
    assert "This desktop is asleep" not in other.text


async def test_a_form_never_shows_what_another_server_keeps(hub: hubs.Hub) -> None:
    """Though what was typed for that one is still there."""
    keeping.keep(hub, "alice", "second")
    alice = await hub.log_in("alice")
    hub.user("alice").get_or_create_spawner("second", "second")
    hub.spawner("alice", "second")._options_from_form({"sleeping": ["boot"]})

    form = await hub.get_form(alice)

    assert "This desktop is asleep" not in form.text


async def test_hostile_titles_and_names_are_escaped(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", machine={"name": NASTY}, problem=NASTY)
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint", title=NASTY)
    alice = await hub.log_in("alice")

    pages = [await hub.get_form(alice), await alice.request("GET", hub.url / "home")]
    pages.append(await alice.request("GET", hub.url / "user/alice/"))

    for page in pages:
        assert "&lt;script&gt;x()" in page.text or r"\u003cscript\u003ex()" in page.text
        assert "<script>x()" not in page.text


@pytest.mark.parametrize("damage", ["garbage", "empty", "nested", "pipe", "unreadable", "wild"])
async def test_a_damaged_manifest_breaks_no_page(hub: hubs.Hub, damage: str) -> None:
    folder = keeping.keep(hub, "alice", **({"saved_at": 1e300, "expires": 1e300} if damage == "wild" else {}))
    manifest = folder.manifest
    if damage == "garbage":
        manifest.write_text('{"kind": "suspended", "spec": {"machine": 7}}')
    elif damage == "empty":
        manifest.write_bytes(b"\xff\xfe")
    elif damage == "nested":
        manifest.write_text('{"x":' + "[" * 500_000)
    elif damage == "pipe":
        manifest.unlink()
        os.mkfifo(manifest)
    elif damage == "unreadable":
        manifest.unlink()
        manifest.mkdir()
    alice = await hub.log_in("alice")

    pages = [await hub.get_form(alice), await alice.request("GET", hub.url / "home")]
    pages.append(await alice.request("GET", hub.url / "user/alice/"))

    assert [page.status for page in pages] == [200, 200, 424]


# The link of a sleeping desktop


async def test_the_link_of_a_sleeping_desktop_wakes_it_by_a_post(hub: hubs.Hub) -> None:
    """The page sends a form: no image and no frame of another site can."""
    keeping.keep(hub, "alice", "second")
    alice = await hub.log_in("alice")
    hub.user("alice").get_or_create_spawner("second", "second")

    page = await alice.request("GET", hub.url / "user/alice/second/lab?x=1")
    assert not hub.spawner("alice", "second").active
    action = re.search(r'<form id="qs-wake" action="([^"]*)"', page.text)
    token = re.search(r'name="_xsrf" value="([^"]*)"', page.text)
    assert action and token
    refused = await alice.request(
        "POST", hub.url.join(hub.url / "spawn/alice/second"), data={"sleeping": "wake"}
    )
    woken = await alice.request(
        "POST",
        hub.url.with_path("/").join(type(hub.url)(action[1].replace("&amp;", "&"), encoded=True)),
        data={"_xsrf": token[1], "sleeping": "wake"},
        allow_redirects=False,
    )

    assert page.status == 424
    assert WAKES_BY_ITSELF in page.text
    assert "The desktop “second” is asleep" in page.text
    assert refused.status == 403
    assert woken.status == 302
    assert "next=" in woken.headers["Location"]
    assert (await spec_of(hub, "alice", "second")).sleeping == "wake"


@pytest.mark.parametrize("trouble", [{"memory": "lost"}, {"problem": "the host's processor is another one"}])
async def test_the_link_starts_nothing_where_something_would_be_lost(
    hub: hubs.Hub, trouble: dict[str, str]
) -> None:
    keeping.keep(hub, "alice", **trouble)
    alice = await hub.log_in("alice")

    page = await alice.request("GET", hub.url / "user/alice/")

    assert WAKES_BY_ITSELF not in page.text
    assert "programs that were open are lost" in page.text


async def test_a_desktop_that_just_failed_is_not_started_again_by_itself(standin: StartHub) -> None:
    hub = await standin("fail")
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")
    await hub.start(alice)
    keeping.keep(hub, "alice", name="19a0000002")

    page = await alice.request("GET", hub.url / "user/alice/")

    assert "disk is &lt;full&gt;" in page.text
    assert WAKES_BY_ITSELF not in page.text
    assert 'value="boot"' in page.text


async def test_who_may_not_start_it_is_not_shown_how(hub: hubs.Hub) -> None:
    """A guest of a share may open the desktop, not start it."""
    keeping.keep(hub, "alice")
    alice, bob = await hub.log_in("alice"), await hub.log_in("bob")
    await hub.get_form(alice)
    hub.user("alice")
    spawner = hub.user("alice").spawner.orm_spawner
    orm.Share.grant(hub.app.db, spawner, hub.user("bob").orm_user)
    hub.app.db.commit()

    page = await bob.request("GET", hub.url / "user/alice/")

    assert "Its owner can wake it." in page.text
    assert 'value="wake"' not in page.text


async def test_a_share_of_one_desktop_shows_nothing_of_another(hub: hubs.Hub) -> None:
    """JupyterHub lets its guest see the page of every server below that address."""
    keeping.keep(hub, "alice", "private", machine={"name": "Secret machine"})
    await hub.log_in("alice")
    bob = await hub.log_in("bob")
    hub.user("alice").get_or_create_spawner("private", "private")
    spawner = hub.user("alice").spawner.orm_spawner
    orm.Share.grant(hub.app.db, spawner, hub.user("bob").orm_user)
    hub.app.db.commit()

    page = await bob.request("GET", hub.url / "user/alice/private/")

    assert page.status == 424
    assert "The desktop “private” is not running" in page.text
    assert "Secret machine" not in page.text
    assert "/picture" not in page.text


async def test_a_server_that_sleeps_not_is_shown_as_before(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    page = await alice.request("GET", hub.url / "user/alice/")

    assert "The desktop is not running" in page.text
    assert WAKES_BY_ITSELF not in page.text


# The home page, and deleting


def cards_of(page: hubs.Answer) -> dict[str, Any]:
    """What the home page shows before it has asked for more."""
    match = re.search(r'<script type="application/json" id="qs-cards-first">(.*?)</script>', page.text, re.S)
    assert match is not None, page.text
    return dict(json.loads(match[1]))


async def test_home_lists_all_that_is_kept(standin: StartHub) -> None:
    """Also of servers that the hub does not know, and only the user's own."""
    hub = await standin(saved_quota="1 GiB")
    keeping.keep(hub, "alice", machine={"name": "Default machine"}, expires=time.time() + 86400)
    keeping.keep(hub, "alice", "forgotten", machine={"name": "Forgotten machine"})
    keeping.keep(hub, "alice", "forgotten", name="19a0000001", kind="checkpoint", title="Before")
    keeping.keep(hub, "bob", machine={"name": "Bob's"})
    alice = await hub.log_in("alice")

    page = await alice.request("GET", hub.url / "home")

    assert page.status == 200
    shown = cards_of(page)
    assert (shown["used"], shown["quota"], shown["is_full"]) == ("3 MiB", "1 GiB", False)
    assert [(card["server"], card["state"], card["machine"]) for card in shown["cards"]] == [
        ("", "asleep", "Default machine"),
        ("forgotten", "asleep", "Forgotten machine"),
    ]
    assert [len(card["checkpoints"]) for card in shown["cards"]] == [0, 1]
    assert 86390 < shown["cards"][0]["suspended"]["expires_s"] <= 86400
    assert "Bob" not in page.text


async def test_checkpoints_alone_are_not_called_sleeping(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint", title="Before")
    alice = await hub.log_in("alice")

    [card] = cards_of(await alice.request("GET", hub.url / "home"))["cards"]

    assert (card["state"], [one["title"] for one in card["checkpoints"]]) == ("off", ["Before"])


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str) -> hubs.Answer:
    return await hub._ask(person, method, hub.url / "api" / path)


async def test_deleting_a_sleeping_desktop_leaves_nothing(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    answer = await ask(hub, alice, "DELETE", f"users/alice/saved/{session_id('alice', '')}")
    again = await ask(hub, alice, "DELETE", f"users/alice/saved/{session_id('alice', '')}")

    assert (answer.status, again.status, hub.session_folders()) == (204, 404, [])


async def test_deleting_a_checkpoint_leaves_the_others(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    keeping.keep(hub, "alice", name="19a0000001", kind="checkpoint")
    alice = await hub.log_in("alice")

    answer = await ask(hub, alice, "DELETE", f"users/alice/saved/{session_id('alice', '')}/19a0000001")

    listed = json.loads((await ask(hub, alice, "GET", "users/alice/saved")).text)
    assert answer.status == 204
    assert [one["kind"] for one in listed["saved"]] == ["suspended"]
    assert (listed["used_mib"], listed["quota_mib"]) == (1, 20480)


async def test_nobody_deletes_what_another_keeps(hub: hubs.Hub) -> None:
    keeping.keep(hub, "bob")
    alice = await hub.log_in("alice")

    direct = await ask(hub, alice, "DELETE", f"users/bob/saved/{session_id('bob', '')}")
    by_own = await ask(hub, alice, "DELETE", f"users/alice/saved/{session_id('bob', '')}")
    without_token = await alice.request("DELETE", hub.url / "api/users/alice/saved" / session_id("alice", ""))

    assert (direct.status, by_own.status, without_token.status) == (404, 404, 403)
    assert hub.session_folders() == [session_id("bob", "")]


async def test_what_belongs_to_a_running_desktop_is_not_deleted(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")

    with locked(keeping.paths_of(hub.state_dir, "alice").lock):
        answer = await ask(hub, alice, "DELETE", f"users/alice/saved/{session_id('alice', '')}")

    assert answer.status == 409
    assert load_kept(StatePaths(root=hub.state_dir), user="alice", server_name="")


async def test_removing_a_named_server_deletes_what_is_kept_of_it(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", "second")
    keeping.keep(hub, "alice")
    alice = await hub.log_in("alice")
    hub.user("alice").get_or_create_spawner("second", "second")

    url = hub.url / "api/users/alice/servers/second"
    answer = await hub._ask(alice, "DELETE", url, json={"remove": True})

    assert answer.status == 204
    assert hub.session_folders() == [session_id("alice", "")]


async def test_deleting_a_user_deletes_what_is_kept_of_their_servers(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice")
    keeping.keep(hub, "bob")
    hub.user("alice")
    admin = await hub.log_in("admin", admin=True)

    answer = await ask(hub, admin, "DELETE", "users/alice")

    assert (answer.status, hub.session_folders()) == (204, [session_id("bob", "")])


async def test_deleting_a_user_deletes_what_forgotten_servers_left(hub: hubs.Hub) -> None:
    keeping.keep(hub, "alice", "forgotten")
    keeping.keep(hub, "bob", "forgotten")
    hub.user("alice")
    admin = await hub.log_in("admin", admin=True)

    answer = await ask(hub, admin, "DELETE", "users/alice")

    assert (answer.status, hub.session_folders()) == (204, [session_id("bob", "forgotten")])


def test_a_lock_is_not_lost_by_looking_who_holds_it(
    state_dir: Path, machines_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel releases it when this process closes any descriptor of the file."""
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    keeping.keep(hub, "alice")
    paths = keeping.paths_of(state_dir, "alice")
    real, free = kept._delete_in, []

    def look(*arguments: Any) -> None:
        assert find_owner(paths) is None
        script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        taken = subprocess.run([sys.executable, "-c", script, paths.lock], check=False, capture_output=True)
        free.append(taken.returncode == 0)
        real(*arguments)

    monkeypatch.setattr(kept, "_delete_in", look)

    assert delete_kept(paths)
    assert free == [False]


def test_a_pipe_in_the_locks_place_is_not_waited_for(state_dir: Path, machines_dir: Path) -> None:
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    keeping.keep(hub, "alice")
    paths = keeping.paths_of(state_dir, "alice")
    paths.lock.unlink()
    os.mkfifo(paths.lock)

    assert not delete_kept(paths)


def test_one_thread_deletes_at_a_time(
    state_dir: Path, machines_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that delete from the same session the first to end would release the other's lock."""
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    keeping.keep(hub, "alice")
    alone: list[bool] = []
    monkeypatch.setattr(kept, "_delete_in", lambda *_: alone.append(kept._one_deletion.locked()))

    delete_kept(keeping.paths_of(state_dir, "alice"))

    assert (alone, kept._one_deletion.locked()) == ([True], False)


# Expiry


def test_a_sweep_deletes_what_has_expired_and_nothing_else(state_dir: Path, machines_dir: Path) -> None:
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    keeping.keep(hub, "alice", expires=time.time() - 1)
    keeping.keep(hub, "bob", expires=time.time() - 1)
    keeping.keep(hub, "bob", name="19a0000001", kind="checkpoint", expires=0)
    keeping.keep(hub, "carol")

    swept = sweep_expired(StatePaths(root=state_dir))

    assert swept == 2
    assert hub.session_folders() == sorted([session_id("bob", ""), session_id("carol", "")])
    assert [path.name for path in keeping.paths_of(state_dir, "bob").saved.iterdir()] == ["19a0000001"]


def test_a_sweep_leaves_running_sessions_alone(state_dir: Path, machines_dir: Path) -> None:
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    folder = keeping.keep(hub, "alice", expires=time.time() - 1)

    with locked(keeping.paths_of(state_dir, "alice").lock):
        swept = sweep_expired(StatePaths(root=state_dir))

    assert (swept, folder.manifest.exists()) == (0, True)


@pytest.mark.parametrize("link", ["root", "saved", "entry", "lock"])
def test_nothing_is_deleted_through_a_link(
    state_dir: Path, machines_dir: Path, tmp_path: Path, link: str
) -> None:
    """A session's account that was taken over could else have a root hub delete whatever it likes."""
    hub = hubs.Hub(app=None, state_dir=state_dir, machines=machines_dir)
    folder = keeping.keep(hub, "alice", expires=time.time() - 1)
    paths = keeping.paths_of(state_dir, "alice")
    victim = {"root": paths.root, "saved": paths.saved, "entry": folder.root, "lock": paths.lock}[link]
    moved = tmp_path / "elsewhere"
    victim.rename(moved)
    victim.symlink_to(moved)
    before = sorted(str(path) for path in moved.rglob("*"))

    sweep_expired(StatePaths(root=state_dir))
    delete_kept(paths)

    assert sorted(str(path) for path in moved.rglob("*")) == before
    assert moved.exists()


async def test_looking_at_the_form_sweeps_once_an_hour(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeper = Sweeper()
    monkeypatch.setattr("qemuspawner.hub.mixin.QemuSpawnerMixin._sweeper", sweeper)
    swept: list[StatePaths] = []
    monkeypatch.setattr(sweeper, "_run", swept.append)
    now = time.monotonic()
    monkeypatch.setattr(kept.time, "monotonic", lambda: now)
    alice = await hub.log_in("alice")

    await hub.get_form(alice)
    await hub.get_form(alice)
    first = len(swept)
    now += 3601
    await hub.get_form(alice)

    assert (first, len(swept)) == (1, 2)


@pytest.mark.parametrize("way", ["program", "form"])
async def test_what_starts_while_its_server_is_deleted_starts_after_that(
    way: str, start_hub: StartHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JupyterHub has forgotten then that it stops, and takes its row away last."""
    hub = await start_hub()
    alice = await (hub.with_token("alice") if way == "program" else hub.log_in("alice"))
    is_deleting, may_go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(keeps, "delete_kept", lambda _paths: is_deleting.set() or may_go_on.wait(60))
    await hub.start(alice, {"machine": "mini"}, server_name="work")
    await hub.wait_until_ready("alice", server_name="work")
    former = hub.user("alice").orm_spawners["work"]
    remove = hub.ask(alice, "DELETE", "users/alice/servers/work", json={"remove": True})
    deleting = asyncio.create_task(remove)
    await asyncio.to_thread(is_deleting.wait)

    if way == "program":
        start = hub.start(alice, {"machine": "mini"}, server_name="work")
    else:
        start = hub.submit_form(alice, server_name="work", machine="mini")
    starting = asyncio.create_task(start)
    await asyncio.sleep(0.5)
    may_go_on.set()
    answers = await asyncio.gather(deleting, starting)

    assert [answer.status // 100 for answer in answers] in ([2, 2], [2, 3])
    await hub.wait_until_ready("alice", server_name="work")
    assert hub.user("alice").orm_spawners["work"] is not former


def test_what_is_deleted_while_it_is_measured_takes_nothing(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    (saved / "kept").mkdir(parents=True)
    (saved / "kept/file").write_bytes(bytes(8192))
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            (saved / "gone/deep").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(saved / "gone")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        sizes = {disk_usage(saved) for _ in range(5000)}
    finally:
        is_over.set()
        thread.join()

    assert min(sizes) >= 8192
