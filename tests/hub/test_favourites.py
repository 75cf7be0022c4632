"""Stars, as people and programs set them by the hub's API."""

import json
from urllib.parse import quote

import hubs
import pytest

from qemuspawner.hub.form.favourites import MAX_FAVOURITES, add_favourite
from qemuspawner.hub.records import Records
from qemuspawner.paths import StatePaths

HOSTILE = "10.5072/<i>é</i> \"'&?#%2F../x"


async def favourites(hub: hubs.Hub, person: hubs.Person, kind: str = "machine") -> list[str]:
    return list(json.loads((await hub.ask(person, "GET", f"users/{person.name}/favourites/{kind}")).text))


async def test_a_star_stays_until_it_is_taken_away(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    for name in ("mini", "other", "mini"):
        answer = await hub.ask(alice, "PUT", f"users/alice/favourites/machine/{name}")
        assert answer.status == 204

    before = await favourites(hub, alice)
    await hub.ask(alice, "DELETE", "users/alice/favourites/machine/mini")

    assert before == ["mini", "other"]
    assert await favourites(hub, alice) == ["other"]


async def test_kinds_and_users_have_their_own(hub: hubs.Hub) -> None:
    alice, bob = await hub.with_token("alice"), await hub.with_token("bob")
    await hub.ask(alice, "PUT", "users/alice/favourites/machine/mini")

    assert await favourites(hub, alice, "proposal") == []
    assert await favourites(hub, bob) == []
    assert (await hub.ask(bob, "PUT", "users/alice/favourites/machine/mini")).status == 404
    assert (await hub.ask(alice, "PUT", "users/alice/favourites/colour/red")).status == 404


async def test_any_key_comes_back_as_it_was(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    url = f"{hub.url}api/users/alice/favourites/proposal/{quote(HOSTILE, safe='')}"

    assert (await alice.request("PUT", hubs.URL(url, encoded=True))).status == 204

    assert await favourites(hub, alice, "proposal") == [HOSTILE]


@pytest.mark.parametrize(
    ("taken", "key", "why"), [(MAX_FAVOURITES, "one-more", "already"), (0, "x" * 201, "201")]
)
async def test_they_are_bounded(hub: hubs.Hub, taken: int, key: str, why: str) -> None:
    records = Records(StatePaths(root=hub.state_dir))
    for number in range(taken):
        add_favourite(records, user="alice", kind="machine", key=f"m{number}")
    alice = await hub.with_token("alice")

    answer = await hub.ask(alice, "PUT", f"users/alice/favourites/machine/{key}")

    assert answer.status == 400
    assert why in answer.text
