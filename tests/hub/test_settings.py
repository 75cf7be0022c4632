"""Options saved under names, by the hub's API and in links."""

import json
from typing import Any
from urllib.parse import quote

import hubs
import pytest

from qemuspawner.hub.form.settings import MAX_SETTINGS, list_settings, save_setting
from qemuspawner.hub.records import Records
from qemuspawner.paths import StatePaths

HOSTILE = "<b>\"'& \U0001f9ea / ?#"


def saved(hub: hubs.Hub) -> dict[str, dict[str, object]]:
    return list_settings(Records(StatePaths(root=hub.state_dir)), user="alice")


async def put(hub: hubs.Hub, person: hubs.Person, name: str, options: Any) -> hubs.Answer:
    url = hubs.URL(f"{hub.url}api/users/alice/settings/{quote(name, safe='')}", encoded=True)
    return await person.request("PUT", url, json=options)


async def test_options_are_saved_and_started_with(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    options = {"machine": "mini", "cpus": "2", "memory": "256 MiB", "notes": "a\nb"}

    answer = await put(hub, alice, HOSTILE, options)
    await hub.start(alice, {"setting": HOSTILE, "cpus": 1})
    await hub.wait_until_ready("alice")

    assert answer.status == 204
    kept = {"machine": "mini", "cpus": 2, "memory": 256, "lifetime": 3600, "notes": "a\nb"}
    assert saved(hub) == {HOSTILE: kept}
    assert hub.spawner("alice").user_options == {**kept, "cpus": 1, "profile": "Mini"}
    assert json.loads((await hub.ask(alice, "GET", "users/alice/settings")).text) == saved(hub)


async def test_a_link_fills_in_what_is_saved(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await put(hub, alice, HOSTILE, {"machine": "mini", "notes": "</textarea><b>"})
    browser = await hub.log_in("alice")

    form = await hub.get_form(browser, query={"opt-setting": HOSTILE})
    unknown = await hub.get_form(browser, query="opt-setting=other")

    assert "&lt;/textarea&gt;&lt;b&gt;" in form.text
    assert "</textarea><b>" not in form.text
    assert not hub.spawner("alice").active
    assert "you have saved no settings of this name" in unknown.text


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("x" * 61, {}, "1 to 60 characters"),
        (" a", {}, "1 to 60 characters"),
        ("a\nb", {}, "1 to 60 characters"),
        ("a", {"cpus": 7}, "The option 'cpus' is '7'"),
        ("a", {"colour": "red"}, "There is no option 'colour'"),
        ("a", ["cpus"], "must be an object"),
    ],
)
async def test_what_cannot_be_kept_is_refused(hub: hubs.Hub, name: str, options: Any, why: str) -> None:
    alice = await hub.with_token("alice")

    answer = await put(hub, alice, name, options)

    assert (answer.status, saved(hub)) == (400, {})
    assert why in answer.text


async def test_there_are_so_many_and_no_more(hub: hubs.Hub) -> None:
    records = Records(StatePaths(root=hub.state_dir))
    for number in range(MAX_SETTINGS):
        save_setting(records, user="alice", name=f"s{number}", options={})
    alice = await hub.with_token("alice")

    more = await put(hub, alice, "one more", {})
    over = await put(hub, alice, "s0", {"cpus": 2})
    await hub.ask(alice, "DELETE", "users/alice/settings/s1")

    assert (more.status, over.status, len(saved(hub))) == (400, 204, MAX_SETTINGS - 1)
    assert saved(hub)["s0"]["cpus"] == 2


async def test_they_are_ones_own(hub: hubs.Hub) -> None:
    alice, bob = await hub.with_token("alice"), await hub.with_token("bob")
    await put(hub, alice, "mine", {})

    assert (await put(hub, bob, "mine", {"cpus": 2})).status == 404
    assert (await hub.ask(bob, "GET", "users/alice/settings")).status == 404
    assert (await hub.ask(bob, "DELETE", "users/alice/settings/mine")).status == 404
    assert saved(hub)["mine"]["cpus"] == 1
