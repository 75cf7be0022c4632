"""The pages of the site's staff in a real browser, at real desktops; and nobody else gets anything there."""

import asyncio
import io
import json
import platform
import re
import socket
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any

import guests
import live
import pytest
import pytest_asyncio
from axe import find_barriers
from chromium import LogIn, visitors
from PIL import Image
from playwright.async_api import Browser, Page, expect
from tornado.routing import PathMatches

from qemuspawner.staff.app import make_app

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

SCREENSHOTS = live.PROJECT / "screenshots"
SERVICE = "services/desktops/"

MORE = """
from qemuspawner import staff
c.JupyterHub.services.append(staff.service(url="http://127.0.0.1:{port}"))
c.QemuSpawner.staff = {staff!r}
# Of the site's staff, and may open nobody's desktop.
c.JupyterHub.load_roles.append(
    {{"name": "helper", "users": ["demo"], "scopes": ["admin:servers", "access:services!service=desktops"]}}
)
"""

ICON = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)

# Whatever method and path: who is not staff gets nothing.
ROUTES = [
    ("GET", ""),
    ("GET", "api/desktops"),
    ("DELETE", "api/desktops/alice/"),
    ("POST", "api/desktops/alice//message"),
    ("GET", "api/desktops/alice//picture"),
    ("GET", "api/hosts"),
    ("POST", "api/hosts/here/drain"),
    ("DELETE", "api/hosts/here/drain"),
    ("GET", "api/announcements"),
    ("POST", "api/announcements"),
    ("DELETE", "api/announcements/1"),
    ("GET", "nothing"),
]


# Open to whoever comes: the way in, the files of the page, and an address that is typed in short.
OPEN = {"/oauth_callback", "/static/staff.js", ""}


async def test_every_route_of_the_service_is_looked_at() -> None:
    for rule in make_app("/").wildcard_router.rules:
        assert isinstance(rule.matcher, PathMatches)
        methods = rule.target_kwargs.get("paths", {"GET": ()})
        for method in methods:
            known = {"/" + path for verb, path in ROUTES if verb == method} | OPEN
            assert any(rule.matcher.regex.match(path) for path in known), (method, rule.matcher.regex.pattern)


def more(*, staff: str = "ask") -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return MORE.format(port=free.getsockname()[1], staff=staff)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    async with live.live_hub(more=more()) as hub:
        await hub.start_server("alice", machine="painter")
        await hub.start_server("bob", "desk", machine="painter")
        await wait_for_service(hub)
        yield hub


async def wait_for_service(hub: live.LiveHub) -> None:
    """The hub starts before its services answer."""
    async with hub.person() as nobody, asyncio.timeout(30):
        while (await nobody.request("GET", hub.url / SERVICE)).status != 200:
            await asyncio.sleep(0.1)


@pytest_asyncio.fixture(loop_scope="module")
async def page(hub: live.LiveHub, log_in: LogIn) -> Page:
    """The page, as the administrator sees it."""
    page = await log_in("admin", to=hub.url / SERVICE)
    await expect(page.get_by_role("row").filter(has_text="bob")).to_contain_text("Running")
    return page


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


# Nobody else


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_who_is_not_staff_gets_nothing(hub: live.LiveHub, method: str, path: str) -> None:
    """Neither logged in nor with a token, nor who is not logged in."""
    url = hub.url / SERVICE / path if path else hub.url / SERVICE
    token = await hub.new_token("bob")
    async with hub.person("bob") as browser, hub.person("bob", token=token) as script, hub.person() as nobody:
        answers = [await person.request(method, url, json={}) for person in (browser, script, nobody)]

    assert answers[0].status == 403
    assert answers[1].status == 403
    # The page of the login, to which the page itself leads.
    assert answers[2].status == (200 if not path else 403)
    assert all("api/desktops" not in answer.text and "staff.js" not in answer.text for answer in answers)


async def test_it_cannot_be_made_to_act_from_another_page(hub: live.LiveHub) -> None:
    """With an administrator's cookies, but without what only its own page knows."""
    async with hub.person("admin") as admin:
        assert (await admin.request("GET", hub.url / SERVICE)).status == 200
        headers = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        answers = [
            await admin.request(method, hub.url / SERVICE / path, json={}, headers=headers)
            for method, path in ROUTES
            if path.startswith("api/")
        ]

    assert {answer.status for answer in answers} == {403}


async def test_its_menu_entry_is_shown_to_staff_only(hub: live.LiveHub) -> None:
    async with hub.person("admin") as admin, hub.person("bob") as bob:
        homes = [await person.request("GET", hub.url / "hub/home") for person in (admin, bob)]

    assert [f'href="/{SERVICE}"' in home.text for home in homes] == [True, False]


async def test_the_service_and_the_hub_behind_it_speak_the_readers_language(hub: live.LiveHub) -> None:
    german = {"Accept-Language": "de"}
    async with hub.person("admin", token=await hub.new_token("admin")) as admin:
        page = await admin.request("GET", hub.url / SERVICE, headers=german)
        missing = await admin.request("GET", hub.url / SERVICE / "nothing", headers=german)
        refused = await admin.request("DELETE", hub.url / SERVICE / "api/hosts/none/drain", headers=german)

    assert '<html lang="de">' in page.text
    assert '<h1 class="h2">Desktops von allen</h1>' in page.text
    assert json.loads(missing.text)["message"] == "Diese Seite gibt es nicht."
    assert json.loads(refused.text)["message"] == "Der Host „none“ ist nicht stillgelegt."


# The page


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("admin", ["Home", "Users", "Machines", "Statistics"]),
        ("demo", ["Home", "Users", "Statistics"]),
    ],
)
async def test_its_bar_leads_to_what_its_reader_may_see(
    hub: live.LiveHub, log_in: LogIn, name: str, links: list[str]
) -> None:
    page = await log_in(name, to=hub.url / SERVICE)
    bar = page.get_by_role("navigation")

    assert await bar.get_by_role("link").filter(has_text=re.compile(r"\w")).all_inner_texts() == links
    for link in ("Machines", "Statistics"):
        if link in links:
            await page.goto(str(hub.url / SERVICE))
            await bar.get_by_role("link", name=link).click()
            await expect(page.get_by_role("heading", level=1)).to_contain_text(link)


async def test_the_language_that_is_chosen_is_that_of_the_hubs_pages(hub: live.LiveHub, page: Page) -> None:
    await page.get_by_label("Language of this page").select_option("Deutsch")

    await expect(page.get_by_role("heading", level=1)).to_have_text("Desktops von allen")
    await shoot(page, "staff-german")
    await page.goto(str(hub.url / "hub/home"))
    await expect(page.get_by_role("heading", name="Ihre Desktops")).to_be_visible()


async def test_desktops_are_filtered_and_sorted(page: Page) -> None:
    await shoot(page, "staff-desktops")
    rows = page.locator("#rows tr")
    await expect(rows).to_have_count(2)

    owner = page.get_by_role("columnheader", name="Owner")
    await expect(owner).to_have_attribute("aria-sort", "ascending")
    await owner.get_by_role("button").click()
    await expect(owner).to_have_attribute("aria-sort", "descending")
    await expect(rows.first).to_contain_text("bob")

    await page.get_by_label("Filter by owner").fill("painter ali")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("alice")
    await expect(page.locator("#count")).to_have_text("1 of 2 desktops")
    await page.get_by_label("Filter by owner").fill("nothing")
    await expect(page.get_by_text("No desktop matches this.")).to_be_visible()


async def test_a_screen_that_staff_may_not_see_is_said_to_be_private(page: Page) -> None:
    """What its session answers is made up; who may see it is the session's to say."""
    refusal = {"message": "There is no picture now."}
    await page.route("**/alice//picture", lambda route: route.fulfill(status=403, json=refusal))
    await page.route("**/bob/desk/picture", lambda route: route.fulfill(body=ICON, content_type="image/png"))
    await page.reload()

    await expect(page.get_by_text("Private: staff may not look")).to_have_count(1)
    await expect(page.get_by_role("img", name="Screen of desk of bob")).to_be_visible()


async def test_staff_who_may_look_see_what_sessions_show(browser: Browser) -> None:
    """The painter's own screen, as its session makes it small."""
    async with live.live_hub(more=more(staff="view")) as hub, visitors(browser) as log_in:
        await hub.start_server("alice", machine="painter")
        await wait_for_service(hub)
        page = await log_in(hub, "admin", to=hub.url / SERVICE)
        screen = page.get_by_role("img", name="Screen of the default desktop of alice")
        await expect(screen).not_to_have_js_property("naturalWidth", 0)
        await shoot(page, "staff-pictures")
        picture = Image.open(io.BytesIO(await screen.screenshot())).convert("RGB")

    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(middle, tuple)
    assert all(abs(one - other) < 24 for one, other in zip(middle, guests.GREEN, strict=True))


async def test_a_message_reaches_the_chosen_desktop_only(hub: live.LiveHub, page: Page) -> None:
    await page.get_by_label("Select default desktop of alice").check()
    await page.get_by_role("button", name="Message 1 desktop…").click()
    dialog = page.get_by_role("dialog", name="A message to 1 desktop")
    await expect(dialog).to_contain_text("It belongs to alice.")
    await dialog.get_by_label("Message").fill("The host is <serviced> at noon.")
    await shoot(page, "staff-message")
    # As long as the hub takes one, as if it was pasted there.
    await dialog.get_by_label("Message").press("End")
    await page.keyboard.insert_text(" " + "x" * 1000)
    await dialog.get_by_role("button", name="Send to 1 desktop").click()
    await expect(page.get_by_role("status")).to_have_text("The message is at 1 desktop.")

    async with hub.person("alice") as alice, hub.person("bob") as bob:
        await hub.open_session(alice, hub.url / "user/alice/")
        await hub.open_session(bob, hub.url / "user/bob/desk/")
        read = [
            json.loads((await person.request("GET", hub.url / f"user/{path}/api/status")).text)
            for person, path in ((alice, "alice"), (bob, "bob/desk"))
        ]
    assert read[0]["staff_message"]["text"] == "The host is <serviced> at noon. ".ljust(1000, "x")
    assert read[0]["staff_message"]["by"] == "admin"
    assert read[1]["staff_message"] is None


async def test_many_are_stopped_after_a_question_that_says_how_many(hub: live.LiveHub, page: Page) -> None:
    await hub.start_server("carol", "one", machine="painter")
    await hub.start_server("carol", "two", machine="painter")
    await page.reload()
    await page.get_by_label("Filter by owner").fill("carol")
    await expect(page.locator("#rows tr")).to_have_count(2)
    await page.get_by_label("Select all that are shown").check()

    await page.get_by_role("button", name="Stop 2 desktops…").click()
    dialog = page.get_by_role("dialog", name="Stop 2 desktops?")
    await expect(dialog).to_contain_text(
        "They belong to carol. 2 end; what is not saved outside them is lost."
    )
    await shoot(page, "staff-stop")
    await page.keyboard.press("Escape")
    assert all(server["ready"] for server in (await hub.servers("carol")).values())

    await page.get_by_role("button", name="Stop 2 desktops…").click()
    await dialog.get_by_role("button", name="Stop 2 desktops").click()
    await expect(page.get_by_role("status")).to_have_text("2 desktops are stopped.", timeout=30_000)
    await expect(page.locator("#rows tr")).to_have_count(0)
    async with asyncio.timeout(30):
        while any(not server["stopped"] for server in (await hub.servers("carol")).values()):
            await asyncio.sleep(0.1)
    assert (await hub.servers("bob"))["desk"]["ready"]


async def test_the_walls_around_a_hosts_desktops_are_told(page: Page) -> None:
    """As each session saw them around its own QEMU."""
    row = page.locator("#host-rows tr").filter(has_text=platform.node())

    await expect(row.get_by_role("cell", name="All", exact=True)).to_be_visible()


async def test_a_drained_host_takes_nothing_new_until_that_is_undone(hub: live.LiveHub, page: Page) -> None:
    host = platform.node()
    await page.get_by_role("button", name=f"Drain {host}…").click()
    await page.get_by_role("dialog").get_by_label("Reason").fill("Its disk is changed")
    await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await expect(page.get_by_role("row").filter(has_text="says admin: Its disk is changed")).to_be_visible()
    await shoot(page, "staff-drained")

    status, answer = await hub.ask("POST", "users/dave/server", json={"user_options": {"machine": "painter"}})
    assert status == 503
    assert "at the moment: Its disk is changed." in answer["message"]

    await page.get_by_role("button", name=f"Take new desktops again on {host}").click()
    await expect(page.get_by_role("button", name=f"Drain {host}…")).to_be_visible()
    await hub.start_server("dave", machine="painter")
    await hub.stop_server("dave")


async def test_announcements_are_made_and_deleted(hub: live.LiveHub, page: Page) -> None:
    await page.get_by_label("New announcement").fill("The hub is <updated> tonight.")
    await page.get_by_label("It is").select_option(label="a warning")
    await page.get_by_label("Nobody starts a desktop before").check()
    await page.get_by_role("button", name="Announce").click()
    item = page.get_by_role("listitem").filter(has_text="The hub is <updated> tonight.")
    await expect(item).to_contain_text("A warning by admin. 0 people have acknowledged it.")
    await item.scroll_into_view_if_needed()
    await shoot(page, "staff-announcements")

    async with hub.person("carol") as carol:
        home = await carol.request("GET", hub.url / "hub/home")
        await item.get_by_role("button", name="Delete").click()
        await expect(item).to_have_count(0)
        after = await carol.request("GET", hub.url / "hub/home")
    assert "The hub is &lt;updated&gt; tonight." in home.text
    assert "data-announcement=" not in after.text


async def test_an_announcement_that_ends_before_it_begins_is_refused_and_kept(page: Page) -> None:
    await page.get_by_label("New announcement").fill("Never")
    await page.get_by_label("Until").fill("2020-01-01T10:00")

    await page.get_by_role("button", name="Announce").click()

    await expect(page.locator("#announce-problem")).to_have_text("It ends before it begins.")
    await expect(page.get_by_label("New announcement")).to_have_value("Never")


async def test_a_hub_that_does_not_answer_is_said(page: Page) -> None:
    await page.route("**/api/desktops", lambda route: route.abort())
    await page.reload()

    await expect(page.get_by_role("alert")).to_have_text("The hub does not answer. Try again in a moment.")


async def test_phones_and_the_dark(page: Page) -> None:
    """Nothing but the tables, which scroll, is wider than a phone."""
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.reload()
    await expect(page.locator("#rows tr")).to_have_count(2)
    await shoot(page, "staff-phone-dark")

    assert await page.evaluate("document.documentElement.scrollWidth") == 390
    await page.set_viewport_size({"width": 1280, "height": 800})
    await shoot(page, "staff-dark")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_keeps_anybody_out(page: Page, scheme: Any) -> None:
    await page.emulate_media(color_scheme=scheme)
    await page.reload()
    await expect(page.locator("#rows tr")).to_have_count(2)
    await expect(page.locator("#hosts")).to_be_visible()
    assert await find_barriers(page) == []

    await page.get_by_label("Select default desktop of alice").check()
    await page.get_by_role("button", name="Message 1 desktop…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()

    assert await find_barriers(page) == []


async def test_everything_is_reached_by_the_keyboard_alone(page: Page) -> None:
    await page.get_by_label("Select default desktop of alice").focus()
    await page.keyboard.press("Space")
    await page.get_by_role("button", name="Stop 1 desktop…").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Stop 1 desktop?")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Stop 1 desktop…")).to_be_focused()
    sort = page.get_by_role("button", name="Runs for")
    await sort.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("columnheader", name="Runs for")).to_have_attribute(
        "aria-sort", "ascending"
    )
    await expect(sort).to_be_focused()


async def test_five_hundred_hostile_desktops_stay_text_and_quick(page: Page) -> None:
    """The hub's answer is made up; the page is the real one."""
    hostile = "<img src=x onerror=document.title='ran'>\"'&"
    found = [made_up(f"{hostile}{number}") for number in range(500)]

    async def answer(route: Any) -> None:
        await route.fulfill(json={"desktops": found})

    await page.route("**/api/desktops", answer)
    await page.reload()
    await expect(page.locator("#rows tr")).to_have_count(500)
    await page.get_by_label("Filter by owner").fill("499")
    await expect(page.locator("#rows tr")).to_have_count(1)
    await page.get_by_label("Filter by owner").fill("")
    await expect(page.locator("#rows tr")).to_have_count(500)

    assert await page.title() != "ran"
    assert await page.locator("img[src=x]").count() == 0


def made_up(user: str) -> dict[str, Any]:
    return {
        "user": user,
        "server": "",
        "url": "/user/x/",
        "machine": user,
        "cpus": 2,
        "memory_mib": 4096,
        "node": user,
        "state": "running",
        "age_s": 100,
        "answers": True,
        "left_s": 3000,
        "idle_s": 5,
        "idle_left_s": None,
        "viewers": 1,
        "load": {"cpu_percent": 150, "disk_kib_s": 3000, "gpu_percent": 3},
        "awake": ["cpu"],
        "sleeps": True,
        "asks_for_time": False,
    }
