"""The home page in a real browser: very many desktops, hostile words, new ones, and what keeps nobody out."""

import asyncio
import io
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import guests
import hubs
import keeping
import live
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from jupyterhub import orm
from PIL import Image
from playwright.async_api import Page, Request, expect

from qemuspawner import scopes
from qemuspawner.spec import ChosenProposal

HOSTILE = "<img src=x onerror=document.title='ran'>\"'& 😀"
# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
MANY = 120
PICTURE = re.compile("/(picture|thumbnail)")
# All that is put where screen readers hear it, in `heard`.
LISTEN = """
window.heard = [];
document.addEventListener("DOMContentLoaded", () => {
    const place = document.getElementById("qs-desktops-said");
    const hear = () => window.heard.push(place.textContent);
    if (place) new MutationObserver(hear).observe(place, { childList: true });
});
"""


@pytest.fixture
async def hub(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub that is configured as the example is."""
    settings = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    return await start_hub(jupyterhub=settings)


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The home page of alice."""
    page = await log_in(hub, "alice")
    await page.wait_for_function("window._jupyterhub_page_loaded")
    return page


def draw() -> bytes:
    """A screenshot that compresses as badly as a busy desktop: 300 KiB."""
    noise = Image.frombytes("L", (640, 400), os.urandom(640 * 400))
    file = io.BytesIO()
    noise.convert("RGB").save(file, "PNG")
    return file.getvalue()


def add_server(hub: hubs.Hub, name: str, options: dict[str, object] | None = None) -> None:
    user = hub.user("alice").orm_user
    hub.app.db.add(orm.Spawner(name=name, user=user, user_options=options or {"machine": "mini"}))
    hub.app.db.commit()


async def test_a_page_of_very_many_desktops_asks_for_the_pictures_in_view(hub: hubs.Hub, page: Page) -> None:
    picture = draw()
    for number in range(MANY):
        add_server(hub, f"desk-{number:03}")
        if number % 2:
            keeping.keep(hub, "alice", f"desk-{number:03}", size=0).picture.write_bytes(picture)
    requests: list[Request] = []
    page.on("requestfinished", lambda request: requests.append(request))

    await page.reload()
    await page.wait_for_load_state("networkidle")

    assert await page.get_by_role("article").count() == MANY + 1
    at_first = [request for request in requests if PICTURE.search(request.url)]
    assert 3 <= len(at_first) <= MANY / 4

    last = page.get_by_role("article", name="“desk-119”")
    await last.scroll_into_view_if_needed()
    await expect(last.get_by_role("img")).to_have_js_property("naturalWidth", 640)


async def test_what_people_write_is_text(hub: hubs.Hub, page: Page) -> None:
    add_server(hub, "desk", {"machine": "mini", "name": HOSTILE, "notes": HOSTILE * 20})
    keeping.keep(hub, "alice", "desk", machine={"name": HOSTILE}, problem=HOSTILE)
    keeping.keep(hub, "alice", "desk", name="19a0000001", kind="checkpoint", title=HOSTILE)
    await page.reload()

    card = page.get_by_role("article", name=HOSTILE)
    await expect(card).to_contain_text(f"It could not be woken the last time: {HOSTILE}")
    await card.get_by_text("1 checkpoint").click()
    await expect(card.get_by_role("button", name=f"Delete: {HOSTILE} of")).to_be_visible()
    assert await page.locator("img[src=x]").count() == 0
    assert await page.title() != "ran"
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "home-hostile.png", full_page=True)


async def test_a_desktop_whose_system_has_crashed_says_so_on_its_card(
    hub: hubs.Hub, page: Page, machines_dir: Path, state_dir: Path
) -> None:
    """A real guest, that says so by the panic device."""
    hubs.add_machine(machines_dir, state_dir, "panic")
    (disk,) = (state_dir / "images" / "panic").iterdir()
    disk.unlink()
    guests.make_disk(disk, sector=guests.boot_sector(guests.PANICKER))
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "panic"}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")

    # The guest boots meanwhile, and the page asks when it is opened.
    said = page.get_by_role("article", name="“desk”").get_by_text("Its system has crashed.")
    async with asyncio.timeout(60):
        while not await said.count():
            await page.reload()
            await page.wait_for_load_state("networkidle")

    await expect(said).to_have_text("Its system has crashed. Open it to restart the machine.")


async def test_an_end_that_is_near_is_emphasised_and_told_once(
    start_hub: Callable[..., Awaitable[hubs.Hub]], log_in: LogIn, machines_dir: Path, state_dir: Path
) -> None:
    """From 10 min of lifetime and 5 min of idle time on, with what becomes of each; not the others."""
    hubs.add_machine(machines_dir, state_dir, "idle", more='idle = "4 min"\n')
    hubs.add_machine(machines_dir, state_dir, "patient", more='idle = "20 min"\n')
    hub = await start_hub(suspend_on=["lifetime"])
    alice = await hub.with_token("alice")
    for server, options in (
        ("brief", {"machine": "mini", "lifetime": "9 min"}),
        ("idle", {"machine": "idle"}),
        ("patient", {"machine": "patient"}),
    ):
        await hub.start(alice, options, server_name=server)
        await hub.wait_until_ready("alice", server_name=server)

    page = await log_in(hub, "alice", has_clock=True, init_script=LISTEN)
    soon = page.locator(".qs-soon")
    await expect(soon).to_have_count(2)
    await expect(soon.first).to_have_text(re.compile(r"^Falls asleep in \d min"))
    await expect(soon.last).to_have_text(re.compile(r"^Nobody uses it: it ends in \d min"))
    await expect(page.get_by_role("article", name="“patient”")).to_contain_text(
        "Nobody uses it: it ends in 1"
    )
    SCREENSHOTS.mkdir(exist_ok=True)
    for theme in ("light", "dark"):
        await page.evaluate(f"document.documentElement.setAttribute('data-bs-theme', '{theme}')")
        await page.screenshot(path=SCREENSHOTS / f"home-soon-{theme}.png", full_page=True)
    await page.evaluate("document.documentElement.setAttribute('data-bs-theme', 'light')")
    assert await find_barriers_in_both_looks(page) == []
    # The hub is asked again, and time has gone on.
    async with page.expect_response("**/desktop-cards"):
        await page.clock.run_for(16_000)
    await page.clock.run_for(2_000)

    (heard,) = await page.evaluate("window.heard")
    assert re.fullmatch(r"“brief” falls asleep in \d min\. “idle” is not used and ends in \d min\.", heard)


async def test_every_card_says_what_proposal_its_desktop_is_on(
    start_hub: Callable[..., Awaitable[hubs.Hub]], log_in: LogIn, tmp_path: Path
) -> None:
    """Of one that runs, sleeps or has ended, as its session knew it; of one that has never run the number."""
    (tmp_path / "proposals.toml").write_text(
        f"[20260001]\ntitle = {json.dumps(HOSTILE, ensure_ascii=False)}\nmembers = ['alice']\n"
    )
    hub = await start_hub(
        more={"TomlProposals": {"path": str(tmp_path / "proposals.toml")}}, proposal_source="toml"
    )
    alice = await hub.with_token("alice")
    for server in ("running", "ended"):
        await hub.start(alice, {"machine": "mini", "proposal": "20260001"}, server_name=server)
        await hub.wait_until_ready("alice", server_name=server)
    await hub.stop(alice, server_name="ended")
    await hub.wait_until_stopped("alice", server_name="ended")
    # A start that was refused is remembered by JupyterHub, and it sleeps on what it slept on.
    add_server(hub, "asleep", {"machine": "mini", "proposal": "20260001"})
    keeping.keep(hub, "alice", "asleep", proposal=ChosenProposal(id="20250002", title="Old <b>"))
    earlier = ChosenProposal(id="20240003", title="Older")
    keeping.keep(hub, "alice", "asleep", name="19a0000001", kind="checkpoint", proposal=earlier)
    add_server(hub, "planned", {"machine": "mini", "proposal": "20260009"})
    add_server(hub, "alone")

    page = await log_in(hub, "alice")

    cards = {name: page.get_by_role("article", name=f"“{name}”") for name in ("running", "ended")}
    for card in cards.values():
        await expect(card.get_by_text(f"Proposal 20260001: {HOSTILE}", exact=True)).to_be_visible()
    asleep = page.get_by_role("article", name="“asleep”")
    await expect(asleep.get_by_text("Proposal 20250002: Old <b>", exact=True)).to_be_visible()
    await asleep.get_by_text("1 checkpoint").click()
    await expect(asleep.get_by_text("Proposal 20240003: Older", exact=True)).to_be_visible()
    await expect(asleep.get_by_text("Proposal")).to_have_count(2)
    planned = page.get_by_role("article", name="“planned”")
    await expect(planned.get_by_text("Proposal 20260009", exact=True)).to_be_visible()
    await expect(page.get_by_role("article", name="“alone”")).not_to_contain_text("Proposal")
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "home-proposals.png", full_page=True)


async def test_a_desktop_that_its_cluster_has_paused_says_so_on_its_card(hub: hubs.Hub, page: Page) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")
    hub.spawner("alice", "desk").is_paused = True

    await page.reload()

    said = page.get_by_role("article", name="“desk”").get_by_text("The cluster has paused")
    await expect(said).to_have_text("The cluster has paused the desktop; it goes on by itself.")


async def test_a_new_desktop_has_a_name_and_is_started_by_the_form(hub: hubs.Hub, page: Page) -> None:
    """Nothing starts by that alone."""
    await page.get_by_label("Name of a new desktop").fill("Fit of Run 7")
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile("/spawn/alice/"))

    [server] = [spawner for name, spawner in hub.user("alice").orm_user.orm_spawners.items() if name]
    assert server.display_name == "Fit of Run 7"
    assert page.url.endswith(f"/spawn/alice/{server.name}")
    assert server.server is None
    await page.goto(str(hub.url / "home"))
    card = page.get_by_role("article", name="“Fit of Run 7”")
    await expect(card.get_by_role("link", name="Start: “Fit of Run 7”")).to_be_visible()

    # And gone again
    page.on("dialog", lambda dialog: dialog.accept())
    await card.get_by_role("button", name="Delete").click()
    await expect(card).to_have_count(0)
    await expect(page.get_by_role("heading", name="Your desktops")).to_be_focused()


async def test_a_start_that_is_refused_says_so_at_the_cards(hub: hubs.Hub, page: Page) -> None:
    add_server(hub, "desk", {"machine": "gone"})
    await page.reload()

    await page.get_by_role("button", name="Start again: “desk”").click()

    await expect(page.get_by_role("alert")).to_contain_text("gone")
    assert page.url.endswith("/home")


async def test_the_page_keeps_nobody_out(hub: hubs.Hub, page: Page) -> None:
    add_server(hub, "desk")
    keeping.keep(hub, "alice", "asleep", expires=time.time() + 3600)
    keeping.keep(hub, "alice", "asleep", name="19a0000001", kind="checkpoint", title="Before")
    await page.reload()
    await page.get_by_text("1 checkpoint").click()

    assert await find_barriers_in_both_looks(page) == []
