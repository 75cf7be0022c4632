"""The hub's pages of sharing in a real browser: hostile names, groups, and desktops that do not run."""

from collections.abc import Awaitable, Callable

import hubs
import pytest
from chromium import LogIn
from jupyterhub import orm
from playwright.async_api import Page, expect

from qemuspawner import scopes

HOSTILE = "<img src=x onerror=document.title='ran'>\"'&"


@pytest.fixture
async def hub(start_hub: Callable[..., Awaitable[hubs.Hub]]) -> hubs.Hub:
    """A hub that is configured as the example is."""
    settings = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    return await start_hub(jupyterhub=settings)


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The home page of alice, who has a server "desk"."""
    add_server(hub, "alice", "desk")
    hub.user("alice", groups=("team",))
    page = await log_in(hub, "alice")
    await page.get_by_role("button", name="Share “desk”").wait_for()
    return page


def add_server(hub: hubs.Hub, owner: str, server: str) -> orm.Spawner:
    """A server that the hub knows of."""
    user = hub.user(owner).orm_user
    if server not in user.orm_spawners:
        hub.app.db.add(orm.Spawner(name=server, user=user))
        hub.app.db.commit()
    return user.orm_spawners[server]


def add_share(hub: hubs.Hub, owner: str, server: str, *, user: str = "", group: str = "", role: str) -> None:
    spawner = add_server(hub, owner, server)
    share_with = hub.user(user).orm_user if user else orm.Group.find(hub.app.db, group)
    granted = [f"{scope}!server={owner}/{server}" for scope in ("access:servers", role)]
    orm.Share.grant(hub.app.db, spawner, share_with, scopes=granted)


async def test_hostile_names_are_text(hub: hubs.Hub, page: Page) -> None:
    hub.user("bob", groups=(HOSTILE,))
    add_share(hub, "alice", "desk", user=HOSTILE, role=scopes.VIEW)
    add_share(hub, "alice", "desk", group=HOSTILE, role=scopes.CONTROL)
    add_share(hub, HOSTILE, "", user="alice", role=scopes.CONTROL)
    await page.reload()

    row = page.get_by_role("row").filter(has_text=f"default desktop of {HOSTILE}")
    await expect(row).to_contain_text("Control")
    await page.get_by_role("button", name="Share “desk”").click()
    await expect(page.get_by_label(f"What {HOSTILE} may do")).to_have_value("view")
    await expect(page.get_by_label(f"What the group {HOSTILE} may do")).to_have_value("control")
    await page.get_by_role("button", name=f"Take back from the group {HOSTILE}").click()
    await expect(page.get_by_label(f"What the group {HOSTILE} may do")).to_have_count(0)
    await expect(page.get_by_role("heading", name="Share “desk”")).to_be_focused()
    assert await page.locator("img[src=x]").count() == 0
    assert await page.title() != "ran"


async def test_a_group_is_shared_with_by_the_keyboard_alone(hub: hubs.Hub, page: Page) -> None:
    await page.get_by_role("button", name="Share the default desktop").focus()
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Share the default desktop")
    await dialog.get_by_label("Share with", exact=True).focus()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await page.keyboard.type("team")
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await page.keyboard.type("1 day")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")

    await expect(dialog.get_by_label("What the group team may do")).to_have_value("control")
    [share] = hub.app.db.query(orm.Share)
    assert (share.group.name, share.expires_at is None) == ("team", False)
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(page.get_by_role("button", name="Share the default desktop")).to_be_focused()


async def test_what_a_group_shares_cannot_be_left_and_the_most_counts(hub: hubs.Hub, page: Page) -> None:
    hub.user("bob")
    add_share(hub, "bob", "", group="team", role=scopes.VIEW)
    add_share(hub, "bob", "", user="alice", role=scopes.CONTROL)
    await page.reload()
    row = page.get_by_role("row").filter(has_text="default desktop of bob")
    await expect(row).to_contain_text("Control")
    await expect(row).to_contain_text("also by the group team")
    await expect(row).to_contain_text("not running")

    await row.get_by_role("button", name="Leave: the default desktop of bob").click()

    await expect(row).to_contain_text("View only")
    await expect(row).to_contain_text("by the group team, which you cannot leave here")
    await expect(row.get_by_role("button")).to_have_count(0)


async def test_ends_can_be_dates_and_only_such_that_come(hub: hubs.Hub, page: Page) -> None:
    hub.user("bob")
    await page.get_by_role("button", name="Share “desk”").click()
    await page.get_by_label("Name on this hub").fill("bob")
    await page.get_by_label("Lasts", exact=True).select_option(label="a date…")
    await page.get_by_label("Lasts: date and time").fill("2020-01-01T10:00")
    # The browser itself says that it is too early; a program that fills the form in does not hear it.
    await page.evaluate("document.getElementById('qs-add').noValidate = true")

    await page.get_by_role("button", name="Share", exact=True).last.click()

    await expect(page.get_by_text("at least a minute from now")).to_be_visible()
    assert hub.app.db.query(orm.Share).count() == 0

    await page.get_by_label("Lasts: date and time").fill(
        await page.evaluate("new Date(Date.now() + 40 * 86400e3).toISOString().slice(0, 16)")
    )
    await page.get_by_role("button", name="Share", exact=True).last.click()
    await expect(page.get_by_label("What bob may do")).to_be_visible()
    [share] = hub.app.db.query(orm.Share)
    assert share.expires_at is not None


async def test_a_server_that_the_hub_does_not_know_has_to_be_started_first(hub: hubs.Hub, page: Page) -> None:
    """Such as one that another tab has deleted."""
    alice = await hub.with_token("alice")
    await hub._ask(alice, "DELETE", hub.url / "api/users/alice/servers/desk", json={"remove": True})

    await page.get_by_role("button", name="Share “desk”").click()

    await expect(page.get_by_role("alert")).to_have_text(
        "The hub does not know this desktop yet. Start it once first."
    )


# Seen without a browser


async def test_only_who_has_the_scopes_finds_something_to_share_with(
    start_hub: Callable[..., Awaitable[hubs.Hub]],
) -> None:
    """Here the members of a group have them, by a role of the hub."""
    sharers = {"name": "sharers", "groups": ["team"], "scopes": sorted(scopes.USER_SCOPES)}
    settings = {"custom_scopes": scopes.CUSTOM_SCOPES, "load_groups": {"team": {}}, "load_roles": [sharers]}
    hub = await start_hub(jupyterhub=settings)
    hub.user("alice", groups=("team",))

    pages = [await (await hub.log_in(name)).request("GET", hub.url / "home") for name in ("alice", "bob")]

    assert ['id="qs-share"' in page.text for page in pages] == [True, False]
    assert ['id="qs-people"' in page.text for page in pages] == [True, False]
    assert ['id="qs-shared"' in page.text for page in pages] == [True, True]


async def test_who_may_share_nothing_still_has_a_home_page(
    start_hub: Callable[..., Awaitable[hubs.Hub]],
) -> None:
    """On a hub that was told of no scopes."""
    hub = await start_hub()

    home = await (await hub.log_in("alice")).request("GET", hub.url / "home")

    assert (home.status, "qs-share-title" in home.text) == (200, False)


async def test_the_page_of_a_link_says_the_role_and_shows_names_as_text(hub: hubs.Hub) -> None:
    owner = hub.user("<b>alice</b>")
    spawner = hub.spawner(owner.name)
    bob = await hub.log_in("bob")

    pages = []
    for role in (scopes.VIEW, scopes.CONTROL):
        granted = [f"{scope}!server={owner.name}/" for scope in ("access:servers", role)]
        _, code = orm.ShareCode.new(hub.app.db, spawner.orm_spawner, scopes=granted)
        pages.append(await bob.request("GET", (hub.url / "accept-share").with_query(code=code)))

    assert [page.status for page in pages] == [200, 200]
    assert "View only:" in pages[0].text
    assert "Control:" in pages[1].text
    assert all("<b>alice</b>" not in page.text for page in pages)
    assert all("&lt;b&gt;alice&lt;/b&gt; shares a desktop with you" in page.text for page in pages)
