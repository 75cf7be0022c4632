"""Who asks, be it a page of the hub or a session, is answered in their own language."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import pytest
from jupyterhub import orm

from qemuspawner import scopes

StartHub = Callable[..., Awaitable[hubs.Hub]]
GERMAN = {"Accept-Language": "de-CH, en;q=0.5"}
FRENCH = {"Accept-Language": "fr"}


async def test_a_page_of_the_hub_speaks_the_browsers_language(start_hub: StartHub) -> None:
    """Names in it stay text, and several readers at once get each their own."""
    hub = await start_hub(jupyterhub={"custom_scopes": scopes.CUSTOM_SCOPES})
    owner = hub.user("<b>alice</b>")
    granted = [f"{scope}!server={owner.name}/" for scope in ("access:servers", scopes.VIEW)]
    _, code = orm.ShareCode.new(hub.app.db, hub.spawner(owner.name).orm_spawner, scopes=granted)
    url = (hub.url / "accept-share").with_query(code=code)
    bob = await hub.log_in("bob")

    pages = await asyncio.gather(
        *(bob.request("GET", url, headers=headers) for headers in (GERMAN, FRENCH, {}, GERMAN))
    )

    german, french, english, again = (page.text for page in pages)
    assert '<h1 class="h2">&lt;b&gt;alice&lt;/b&gt; gibt einen Desktop für Sie frei</h1>' in german
    assert "<strong>Nur ansehen:</strong>" in german
    assert 'lang="de"' in german
    assert "Voir seulement\N{NO-BREAK SPACE}:</strong>" in french
    assert "shares a desktop with you" in english
    assert "gibt einen Desktop für Sie frei" in again
    assert all("<b>alice</b>" not in page for page in (german, french, english))


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    return await start_hub()


async def test_a_session_tells_each_viewer_in_their_language(hub: hubs.Hub) -> None:
    """Its steps and its refusals; the hub and its logs have them in English."""
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    session = hub.spawner("alice").server.url

    async def ask(method: str, path: str, headers: dict[str, str], body: Any = None) -> dict[str, Any]:
        answer = await alice.request(method, f"{session}{path}", headers=headers, json=body)
        return dict(json.loads(answer.text))

    german, french, english = [
        [step["text"] for step in (await ask("GET", "api/status", headers))["steps"]]
        for headers in (GERMAN, FRENCH, {})
    ]
    assert german[0] == "Host und Abbild der Maschine werden geprüft"
    assert french[0].startswith("Vérification de l")
    assert english[0] == "Checking the host and the machine's image"
    assert len(german) == len(french) == len(english)

    refused = await ask("POST", "api/answers", GERMAN, {"name": "bob", "grant": None})
    assert refused["message"] == "„bob“ bittet um nichts."
    assert refused["hint"] == "Vielleicht hat schon jemand anderes geantwortet."


async def test_the_page_of_a_session_speaks_the_chosen_language(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    session = hub.spawner("alice").server.url

    answer = await alice.request("GET", session, headers=GERMAN | {"Cookie": "qemuspawner-language=fr"})

    assert '<html lang="fr">' in answer.text
    found = re.search('id="session-config">(.*?)</script>', answer.text)
    assert found is not None
    assert json.loads(found[1])["cookie_path"] == hub.app.base_url
    assert "Accept-Language" in answer.headers["Vary"]
