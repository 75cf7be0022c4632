"""Programs where the site's policy has a word: switched off, and where only one at a time may drive."""

import asyncio
from collections.abc import Awaitable, Callable

import hubs
import pytest
from rfb_client import RfbClient
from yarl import URL

from qemuspawner import scopes

Start = Callable[..., Awaitable[tuple[hubs.Hub, hubs.Person, URL]]]


@pytest.fixture
def start(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> Start:
    """Start a hub with these traits, and alice's desktop on it."""

    async def start(**spawner: object) -> tuple[hubs.Hub, hubs.Person, URL]:
        known = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
        hub = await start_hub(jupyterhub=known, **spawner)
        alice = await hub.with_token("alice")
        answer = await hub.start(alice, {"machine": "mini"})
        assert answer.status in (201, 202), answer.text
        return hub, alice, await hub.wait_until_ready("alice")

    return start


async def type_a(person: hubs.Person, desktop: URL) -> hubs.Answer:
    return await person.request("POST", desktop / "api/type", json={"text": "a"})


async def test_programs_that_are_switched_off_have_no_hand(start: Start) -> None:
    _, alice, desktop = await start(agents=False)

    answer = await type_a(alice, desktop)

    assert answer.status == 403
    assert "lets no programs act" in answer.text


async def test_where_one_drives_the_programs_of_others_wait_until_nobody_does(start: Start) -> None:
    hub, alice, desktop = await start(one_driver=True)
    bob = await hub.with_token("bob")
    granted = ["access:servers", scopes.CONTROL, scopes.AGENT]
    shared = await alice.request(
        "POST",
        hub.url / "api/shares/alice/",
        json={"user": "bob", "scopes": [f"{scope}!server=alice/" for scope in granted]},
    )
    assert shared.status == 200, shared.text

    async with RfbClient(alice, desktop):
        own, others = await type_a(alice, desktop), await type_a(bob, desktop)
    async with asyncio.timeout(10):
        while (afterwards := await type_a(bob, desktop)).status == 409:
            await asyncio.sleep(0.05)

    assert (own.status, others.status, afterwards.status) == (200, 409, 200)
    assert "Somebody else drives this desktop" in others.text
    assert "0 of 1 keys were pressed before." in others.text
