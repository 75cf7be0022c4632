"""The custom scopes: a real hub takes them, for one's own desktops only."""

import json
from collections.abc import Awaitable, Callable

import hubs
import pytest

from qemuspawner import scopes

Ask = Callable[..., Awaitable[hubs.Answer]]


@pytest.fixture
async def ask_for_token(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> Ask:
    """Ask as alice for a token, of a hub that is configured as the example is."""
    settings = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    hub = await start_hub(jupyterhub=settings)
    alice = await hub.with_token("alice")

    async def ask(*wanted: str) -> hubs.Answer:
        return await alice.request("POST", hub.url / "api/users/alice/tokens", json={"scopes": wanted})

    return ask


@pytest.mark.parametrize("scope", sorted(scopes.CUSTOM_SCOPES))
async def test_a_token_can_be_made_for_one_desktop_of_ones_own(ask_for_token: Ask, scope: str) -> None:
    answer = await ask_for_token(f"{scope}!server=alice/desk", "access:servers!server=alice/desk")

    assert answer.status == 201, answer.text
    assert f"{scope}!server=alice/desk" in json.loads(answer.text)["scopes"]


@pytest.mark.parametrize("filter_", ["", "!user=bob", "!server=bob/desk"])
async def test_a_token_for_other_peoples_desktops_is_refused(ask_for_token: Ask, filter_: str) -> None:
    answer = await ask_for_token(scopes.AGENT + filter_)

    assert answer.status == 400, answer.text
