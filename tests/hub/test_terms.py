"""The terms of use: nobody's own desktop starts before they are accepted, and who accepted what is kept."""

import json
import time
from collections.abc import Awaitable, Callable

import hubs
import pytest

from qemuspawner.hub.form.terms import list_acceptances
from qemuspawner.hub.records import Records
from qemuspawner.paths import StatePaths

Start = Callable[..., Awaitable[hubs.Hub]]


@pytest.fixture
async def hub(standin: Start) -> hubs.Hub:
    return await standin(terms="Be <kind>.", terms_version="2")


def accepted(hub: hubs.Hub, user: str = "alice") -> dict[str, float]:
    return list_acceptances(Records(StatePaths(root=hub.state_dir)), user=user)


async def test_a_start_by_the_api_says_how_to_accept(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    refused = await hub.start(alice, {"machine": "mini"})

    assert refused.status == 400
    assert json.loads(refused.text)["message"] == (
        "The terms of use, version '2', are not accepted yet; read them by GET at "
        "/hub/api/users/alice/terms, and accept them with the option 'terms', which is '2' then."
    )
    assert accepted(hub) == {}
    shown = json.loads((await hub.ask(alice, "GET", "users/alice/terms")).text)
    assert shown == {"version": "2", "text": "Be <kind>.", "accepted": {}}
    began = time.time()
    assert (await hub.start(alice, {"machine": "mini", "terms": "2"})).status in (201, 202)
    assert began <= accepted(hub)["2"] <= time.time()


async def test_what_was_accepted_is_not_asked_again_until_there_is_a_new_version(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini", "terms": "2"})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    assert "terms" not in hub.spawner("alice").user_options

    again = await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    hub.spawner("alice").terms_version = "3"
    newer = await hub.start(alice, {"machine": "mini"})

    assert again.status in (201, 202)
    assert (newer.status, list(accepted(hub))) == (400, ["2"])


async def test_another_version_is_not_accepted(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    refused = await hub.start(alice, {"machine": "mini", "terms": "1"})

    assert refused.status == 400
    assert "The option 'terms' is '1'; the terms of use have the version '2'" in refused.text
    assert accepted(hub) == {}


async def test_an_administrator_starts_for_others_and_accepts_nothing_for_them(hub: hubs.Hub) -> None:
    hub.user("alice")
    admin = await hub.with_token("admin", admin=True)

    started = await hub.start(admin, {"machine": "mini", "terms": "2"}, owner="alice")

    assert started.status in (201, 202)
    assert accepted(hub) == accepted(hub, "admin") == {}


async def test_a_link_cannot_accept(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")

    form = await hub.get_form(alice, query="opt-terms=2")

    assert "A link cannot accept the terms of use" in form.text
    assert "Be &lt;kind&gt;." in form.text
    assert not (set(accepted(hub)) or 'value="2" required checked' in " ".join(form.text.split()))


async def test_terms_where_there_are_none_are_refused(standin: Start) -> None:
    hub = await standin()
    alice = await hub.with_token("alice")

    refused = await hub.start(alice, {"machine": "mini", "terms": "1"})

    assert refused.status == 400
    assert "there are no terms of use here" in refused.text
