"""The home page, the waiting page and what is told of ends, in the language of who reads them."""

import html
import json
import re
import runpy
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from chromium import LogIn
from jupyterhub import orm
from keeping import keep
from playwright.async_api import expect
from pseudo import find_untranslated, make_pseudo_language
from sqlalchemy import insert

from qemuspawner import languages, scopes
from qemuspawner.hub.notices.notify import Event
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.spec import SessionEnd
from qemuspawner.texts import Text, pack
from qemuspawner.units import render_seconds

Start = Callable[..., Awaitable[hubs.Hub]]

PROJECT = Path(__file__).parent.parent.parent
SCREENSHOTS = PROJECT / "screenshots"
GERMAN = {"Accept-Language": "de"}
FRENCH = {"Accept-Language": "fr"}
SETTINGS = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
ENDED = Text("The session's lifetime of {lifetime} is over.", lifetime=render_seconds(5400))

# What people and the site say has no Latin letters, so that these are ours.
USER, OTHER = "1001", "1002"
MACHINE = {"name": "豊富"}

# All text of the page that can be read, by eyes or by ears, a line for each.
READ = """() => {
    const lines = [];
    const walk = (node) => {
        if (node.nodeType === Node.TEXT_NODE) lines.push(node.textContent);
        if (node.nodeType !== Node.ELEMENT_NODE || ["SCRIPT", "STYLE"].includes(node.tagName)) return;
        const said = ["aria-label", "title", "placeholder", "alt"];
        lines.push(...said.map((name) => node.getAttribute(name) ?? ""));
        node.childNodes.forEach(walk);
    };
    walk(document.getElementById("qs-main"));
    return lines;
}"""


@pytest.fixture
def brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for German gets every message in brackets."""
    messages = runpy.run_path(str(PROJECT / "scripts/messages.py"))["extract"]()
    english = languages.load_languages()["en"]
    spoken = {"en": english, "de": make_pseudo_language(messages)}
    monkeypatch.setattr(languages, "load_languages", lambda: spoken)


def add_server(hub: hubs.Hub, owner: str, server: str) -> orm.Spawner:
    user = hub.user(owner).orm_user
    if server not in user.orm_spawners:
        hub.app.db.add(orm.Spawner(name=server, user=user, user_options={"machine": "mini"}))
        hub.app.db.commit()
    return user.orm_spawners[server]


def add_run(hub: hubs.Hub, server: str, **more: Any) -> None:
    """A desktop of the user that has ended."""
    now = time.time()
    run = {
        **{"session_id": session_id(USER, server), "user": USER, "server": server, "machine": "mini"},
        **{"machine_name": "豊富", "cpus": 2, "memory_mib": 256, "node": "1", "way": "cold", "gpus": 0},
        **{"started": now - 7200, "ready": now - 7200, "seen": now, "ended": now - 60, "outcome": "ended"},
        **{"end": str(ENDED), "end_text": json.dumps(pack(ENDED))},
    }
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        session.execute(insert(Run), [run | more])


def add_shares(hub: hubs.Hub) -> None:
    """The user shares "3", and may open a desktop of somebody else's."""
    for owner, server, user in ((USER, "3", OTHER), (OTHER, "5", USER)):
        granted = [f"{scope}!server={owner}/{server}" for scope in ("access:servers", scopes.VIEW)]
        orm.Share.grant(hub.app.db, add_server(hub, owner, server), hub.user(user).orm_user, scopes=granted)


def add_desktops(hub: hubs.Hub) -> None:
    """One of every kind that has a word of its own, but none that runs."""
    hub.user(OTHER)
    (hub.machines / "mini/machine.toml").write_text(hubs.MACHINE.format(name="豊富", description="説明。"))
    for server in ("2", "3", "4"):
        add_server(hub, USER, server)
    problem = Text("The desktop cannot be woken: {why}.", why=Text("its size is another one"))
    keep(hub, USER, "2", machine=MACHINE, memory="lost", problem=problem, expires=time.time() + 3600)
    keep(hub, USER, "2", machine=MACHINE, name="19a0000001", kind="checkpoint", title="以前")
    keep(hub, USER, "2", machine=MACHINE, name="19a0000002", kind="checkpoint", automatic=True)
    add_run(hub, "3")
    add_run(hub, "4", ready=None, outcome="failed")
    add_shares(hub)


def forgotten(lines: list[str]) -> list[str]:
    """What has Latin letters outside of all brackets."""
    left = "\n".join(lines)
    while left != (left := re.sub("⟦[^⟦⟧]*⟧", "", left)):
        pass
    return [line for line in left.splitlines() if re.search("[A-Za-z]", line)]


@pytest.mark.usefixtures("brackets")
async def test_nothing_of_the_home_page_is_left_in_english(standin: Start, log_in: LogIn) -> None:
    """Nor of the dialog that it opens; what scripts say later is looked for in them."""
    # The table of quotas is tested with the form.
    hub = await standin(jupyterhub=SETTINGS, notify=print, saved_quota=0)
    add_desktops(hub)
    user = await hub.log_in(USER)
    await hub.start(user, {"machine": "mini"})
    await hub.wait_until_ready(USER)

    page = await log_in(hub, USER, locale="de")
    await page.locator("[data-state=running]").wait_for()
    await page.locator("#qs-shared tbody tr").wait_for()
    home = await page.evaluate(READ)
    await page.locator("[data-server='3'] [data-key*=Share]").click()
    await page.locator("#qs-with [data-key]").first.wait_for()
    dialog = await page.evaluate(READ)
    source = await user.request("GET", hub.url / "home", headers=GERMAN)

    assert len(home) > 100
    assert forgotten(home) == []
    assert forgotten(dialog) == []
    assert find_untranslated(source.text, within="qs-home") == []


@pytest.mark.usefixtures("brackets")
async def test_nothing_of_the_waiting_page_is_left_in_english(standin: Start) -> None:
    hub = await standin("slow", jupyterhub=SETTINGS)
    add_desktops(hub)
    user = await hub.log_in(USER)

    await hub.submit_form(user, machine="mini")
    page = await user.request("GET", hub.url / "spawn-pending" / USER, headers=GERMAN)
    await hub.wait_until_ready(USER)

    assert find_untranslated(page.text, within="qs-pending") == []
    assert "qs-steps" in page.text


@pytest.mark.usefixtures("brackets")
@pytest.mark.parametrize("server", ["2", "3"])
async def test_nothing_of_the_page_of_a_desktop_that_does_not_run_is_left_in_english(
    standin: Start, server: str
) -> None:
    """Whether it sleeps or not."""
    hub = await standin(jupyterhub=SETTINGS)
    add_desktops(hub)
    user = await hub.log_in(USER)

    page = await user.request("GET", hub.url / "user" / USER / server, headers=GERMAN)

    assert find_untranslated(page.text, within="qs-not-running") == []


@pytest.mark.usefixtures("brackets")
async def test_nothing_that_a_route_answers_is_left_in_english(standin: Start) -> None:
    hub = await standin(jupyterhub=SETTINGS)
    user = await hub.log_in(USER)
    hub.user(OTHER)
    add_server(hub, USER, "2")
    refused = [
        ("POST", f"users/{USER}/desktops//extend", {}),
        ("DELETE", f"users/{USER}/saved/{'0' * 20}", None),
        ("GET", f"users/{USER}/desktop-shares/7", None),
        ("POST", f"users/{OTHER}/access-requests/", {}),
        ("POST", f"users/{USER}/desktop-people/2", {"drop": OTHER}),
        ("POST", "announcements/7/acknowledgement", {}),
    ]

    for method, path, body in refused:
        headers = GERMAN | {"X-XSRFToken": user.xsrf(hub.url)}
        answer = await user.request(method, f"{hub.url}api/{path}", json=body, headers=headers)
        assert forgotten([json.loads(answer.text)["message"]]) == [], path


async def test_the_steps_of_a_start_come_in_the_language_of_who_waits(standin: Start) -> None:
    """JupyterHub's own and the session's."""
    hub = await standin("slow")
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")

    german = await alice.request("GET", hub.url / "api/users/alice/desktops//progress", headers=GERMAN)

    said = [json.loads(line[6:]) for line in german.text.splitlines() if line.startswith("data: ")]
    messages = [event.get("message") for event in said]
    assert messages[0] == "Der Desktop ist angefordert"
    assert "Der Desktop ist bereit" in messages
    assert said[-1]["ready"] is True


async def test_a_failed_start_is_told_to_each_reader_in_their_language(standin: Start) -> None:
    """Where it was waited for, on the page of the desktop, and later at its card."""
    hub = await standin("exit")
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")

    waited = await alice.request("GET", hub.url / "api/users/alice/desktops//progress", headers=FRENCH)
    page = await alice.request("GET", hub.url / "user/alice/", headers=GERMAN)
    cards = await alice.request("GET", hub.url / "api/users/alice/desktop-cards", headers=GERMAN)

    french = (
        "Le processus du bureau s\u2019est terminé sans rien dire. "
        "La raison se trouve dans le journal du hub."
    )
    german = "Der Prozess des Desktops hat ohne ein Wort geendet. Der Grund steht im Protokoll des Hubs."
    event = json.loads(waited.text.split("data: ")[-1])
    assert (event["failed"], event["message"]) == (True, french)
    assert "Der Desktop ist nicht gestartet" in html.unescape(page.text)
    assert json.loads(cards.text)["cards"][0]["end"]["why"] == german


async def test_why_a_session_has_ended_can_be_said_in_any_language_later(start_hub: Start) -> None:
    hub = await start_hub()
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    said = []
    for headers in (GERMAN, FRENCH, {}):
        answer = await alice.request("GET", hub.url / "api/users/alice/desktop-cards", headers=headers)
        said.append(json.loads(answer.text)["cards"][0]["end"]["why"])

    assert said == ["Der Desktop wurde angehalten.", "Le bureau a été arrêté.", "The desktop was stopped."]


def test_an_end_may_be_a_plain_text() -> None:
    """As sessions of an older version tell it."""
    end = SessionEnd.from_json(b'{"state": "ended", "message": "The desktop was stopped."}')

    assert end.message == "The desktop was stopped."
    assert languages.load_languages()["fr"].say(end.message) == "Le bureau a été arrêté."


async def test_mails_are_in_the_language_of_the_page_that_was_opened_last(standin: Start) -> None:
    told: list[Event] = []
    hub = await standin(notify=told.append)
    alice = await hub.log_in("alice")
    admin = await hub.log_in("root", admin=True)

    for reader, headers in ((alice, FRENCH), (alice, GERMAN), (admin, FRENCH)):
        await reader.request("GET", hub.url / "home", headers=headers)
    await admin.request("GET", hub.url / "spawn/alice", headers=FRENCH)
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    async with hubs.asyncio.timeout(10):
        while len(told) < 2:
            await hubs.asyncio.sleep(0.05)
    assert {event.language for event in told} == {"de"}


async def test_a_language_is_chosen_on_any_page_of_the_hub(standin: Start, log_in: LogIn) -> None:
    """And the dialog of sharing speaks it: in a browser of a German on a phone, and in French then."""
    hub = await standin(jupyterhub=SETTINGS)
    add_server(hub, "alice", "desk")
    hub.user("bob")
    page = await log_in(hub, "alice", locale="de-CH", viewport={"width": 360, "height": 800})
    await page.get_by_role("button", name="Freigeben: „desk“").click()
    dialog = page.get_by_role("dialog", name="Freigeben: „desk“")
    await dialog.get_by_label("Name auf diesem Hub").fill("nobody")
    await dialog.get_by_role("button", name="Freigeben", exact=True).click()
    await expect(dialog.get_by_role("alert")).to_have_text(
        "Auf diesem Hub gibt es niemanden mit dem Namen „nobody“."
    )
    await dialog.get_by_label("Name auf diesem Hub").fill("bob")
    await dialog.get_by_label("Name auf diesem Hub").press("Enter")
    await expect(dialog.get_by_label("Rechte: bob")).to_have_value("view")
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "share-dialog-german.png")
    assert await page.locator("#qs-main").evaluate("main => main.scrollWidth <= innerWidth")

    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Toggle navigation").click()
    await page.get_by_label("Sprache dieser Seite").select_option("fr")
    await expect(page.get_by_role("heading", name="Vos bureaux")).to_be_visible()
    [cookie] = [one for one in await page.context.cookies() if one["name"] == languages.COOKIE]
    assert (cookie["value"], cookie["path"]) == ("fr", hub.app.base_url)
    await page.screenshot(path=SCREENSHOTS / "home-french.png", full_page=True)
    await page.goto(str(hub.url / "token"))
    await expect(page.locator("#qs-language")).to_have_value("fr")
