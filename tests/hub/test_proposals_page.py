"""The picker of proposals in a real browser: many of them, hostile texts, search, stars, invitations."""

import json
import re
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from pathlib import Path

import hubs
import live
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from jupyterhub import orm
from playwright.async_api import Page, expect

from qemuspawner import scopes

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
HOSTILE = "<img src=x onerror=document.title='ran'>\"'&</script>{{ 7*7 }}"
TODAY = date.today()


def toml() -> str:
    """300 proposals of alice and bob, among them hostile ones."""
    tables = [
        f"""
        ["2026{number:04}"]
        title = "Phase transitions of sample {number} under pressure"
        abstract = "{"Neutron diffraction on powders; " * (number % 20)}"
        starts = {TODAY - timedelta(days=5 * number)}
        ends = {TODAY - timedelta(days=5 * number - 200)}
        members = ["alice", "bob"]
        """
        for number in range(296)
    ]
    for number, title in enumerate((HOSTILE, "👩‍🔬 Émulsions — नमस्ते 🧪", "x" * 10_000, "שלום \u202e abc")):
        tables.append(
            f"""
            ["hostile-{number}"]
            title = {json.dumps(title, ensure_ascii=False)}
            abstract = {json.dumps(title * 3, ensure_ascii=False)}
            starts = {TODAY}
            members = ["alice", "bob"]
            """
        )
    tables.append(f"['{HOSTILE.replace(chr(39), '')}']\nmembers = ['alice']\nstarts = {TODAY}\n")
    return "\n".join(tables)


@pytest.fixture
async def hub(standin: Callable[..., Awaitable[hubs.Hub]], tmp_path: Path) -> hubs.Hub:
    path = tmp_path / "proposals.toml"
    path.write_text(toml())
    return await standin(
        jupyterhub={"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)},
        more={"TomlProposals": {"path": str(path)}},
        proposal_source="toml",
    )


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The form of alice."""
    hub.user("bob")
    page = await log_in(hub, "alice", to="spawn", viewport={"width": 1280, "height": 900})
    await page.get_by_role("heading", name="Start a desktop").wait_for()
    return page


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    for width, suffix in ((1280, ""), (360, "-narrow")):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is too wide"
        await page.screenshot(path=SCREENSHOTS / f"{name}{suffix}.png", full_page=True)
    await page.set_viewport_size({"width": 1280, "height": 900})


async def test_hundreds_of_proposals_with_hostile_texts_are_text(page: Page) -> None:
    rows = page.locator("[data-proposal]")

    await expect(rows).to_have_count(301)
    await expect(page.get_by_text(HOSTILE, exact=True)).to_be_visible()
    await expect(page.get_by_text("👩‍🔬 Émulsions — नमस्ते 🧪", exact=True)).to_be_visible()
    assert await page.locator("#qs-proposals img").count() == 0
    assert await page.title() != "ran"
    await shoot(page, "form-proposals")


async def test_words_find_a_proposal_and_what_is_chosen_stays(page: Page) -> None:
    """Enter in the search starts nothing."""
    search = page.get_by_label("Search by number, title or abstract")
    await page.get_by_label("hostile-1: ").check()

    await search.fill("PRESSURE 20260017")
    await search.press("Enter")

    await expect(page.get_by_text("1 of 301 proposals")).to_be_visible()
    shown = page.locator("[data-proposal]:visible")
    assert sorted([await row.get_attribute("data-proposal") for row in await shown.all()]) == [
        "20260017",
        "hostile-1",
    ]
    await expect(page.get_by_role("heading", name="Start a desktop")).to_be_visible()
    await shoot(page, "form-proposals-search")
    assert await find_barriers_in_both_looks(page) == []


async def test_a_star_is_kept_and_comes_first(hub: hubs.Hub, page: Page) -> None:
    """Also of a proposal whose id is anything; by the keyboard."""
    star = page.get_by_role("button", name="Favourite: 20260295")
    await star.focus()
    async with page.expect_response(re.compile("favourites")) as answer:
        await page.keyboard.press("Enter")
    assert (await answer.value).status == 204
    hostile = page.get_by_role("button", name="Favourite: <img")
    async with page.expect_response(re.compile("favourites")) as answer:
        await hostile.click()
    assert (await answer.value).status == 204
    await expect(star).to_have_attribute("aria-pressed", "true")

    await page.reload()

    first = [
        await row.get_attribute("data-proposal") for row in (await page.locator("[data-proposal]").all())[:2]
    ]
    assert first == [HOSTILE.replace("'", ""), "20260295"]


async def test_a_star_that_is_not_stored_is_said(page: Page) -> None:
    await page.route("**/favourites/**", lambda route: route.abort())
    star = page.get_by_role("button", name="Favourite: hostile-0")

    await star.click()

    await expect(page.get_by_text("The hub does not answer; the star is not stored.")).to_be_visible()
    await expect(star).to_have_attribute("aria-pressed", "false")


async def test_the_members_are_invited_with_the_start(hub: hubs.Hub, page: Page) -> None:
    invite = page.get_by_label("Invite the members of the proposal")
    await expect(invite).to_be_disabled()
    await page.get_by_label("hostile-0: ").check()
    await invite.select_option("control")

    await page.get_by_role("button", name="Start").click()
    await hub.wait_until_ready("alice")

    [share] = hub.app.db.query(orm.Share)
    assert (share.user.name, f"{scopes.CONTROL}!server=alice/" in share.scopes) == ("bob", True)
    await page.goto(str(hub.url / "home"))
    await expect(page.get_by_text(f"Proposal hostile-0: {HOSTILE}")).to_be_visible()
    await expect(page.get_by_text("Invited to use it: bob.")).to_be_visible()
    assert await page.title() != "ran"
