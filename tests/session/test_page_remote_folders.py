"""The menu of folders of servers, in Debian's Chromium."""

from typing import Any

import pytest
from pages import Open, Session, browser, bundle, open_page, session, vnc_socket
from playwright.async_api import Page, expect

from qemuspawner.spec import RemoteFolderStatus

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

__all__ = ["browser", "bundle", "open_page", "session", "vnc_socket"]

HOSTILE = "<img src=x onerror=document.title='owned'>"


def offer(session: Session, **keys: Any) -> None:
    home = RemoteFolderStatus(
        name="home", kind="cifs", server="files.example.org", mount="/mnt/home", read_only=False, asks=True
    )
    data = RemoteFolderStatus(
        name="data", kind="nfs", server="10.1.2.3", mount="/mnt/data", read_only=True, asks=False,
        state="connected",
    )  # fmt: skip
    session.remote_folders = (home, data)
    session.set_folder("home", **keys)


async def open_menu(page: Page) -> None:
    await page.get_by_role("button", name="Folders of servers").click()


async def test_the_menu_says_what_is_where(session: Session, open_page: Open) -> None:
    offer(session)
    page = await open_page()
    await open_menu(page)

    rows = page.locator("#remote-list li")
    await expect(rows.locator(".about")).to_have_text(
        ["home/mnt/home, from files.example.org", "data/mnt/data, read only, from 10.1.2.3"]
    )
    await expect(rows.get_by_role("button")).to_have_text(["Connect", "Disconnect"])


async def test_an_account_and_a_password_connect_a_folder(session: Session, open_page: Open) -> None:
    """And the page keeps no password."""
    offer(session)
    page = await open_page()
    await open_menu(page)

    await page.get_by_role("button", name="Connect: home").click()
    await expect(page.get_by_role("textbox", name="Account")).to_be_focused()
    await page.keyboard.type("alice")
    await page.get_by_label("Password").fill("open sesame")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("button", name="Disconnect: home")).to_be_visible()
    await expect(page.locator("#remote-form")).to_be_hidden()
    assert await page.locator("#remote-password").input_value() == ""
    login = {"account": "alice", "password": "open sesame"}
    assert session.actions() == [("connect", {"name": "home", **login})]


async def test_a_refusal_is_told_and_can_be_tried_again(session: Session, open_page: Open) -> None:
    offer(session)
    session.refusal = (503, f"The folder 'home' is not connected: {HOSTILE}.", "")
    page = await open_page()
    await open_menu(page)
    await page.get_by_role("button", name="Connect: home").click()
    await page.get_by_role("textbox", name="Account").fill("alice")
    await page.get_by_label("Password").fill("guessed")

    await page.keyboard.press("Enter")
    await expect(page.locator("#remote-note")).to_have_text(f"The folder 'home' is not connected: {HOSTILE}.")
    session.refusal = None
    await page.get_by_label("Password").fill("open sesame")
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("button", name="Disconnect: home")).to_be_visible()
    assert await page.title() != "owned"


async def test_what_fails_by_itself_is_told_with_a_way_to_try_again(
    session: Session, open_page: Open
) -> None:
    """Where the session knows the login still, it is not asked for."""
    offer(session, state="connected", asks=False)
    page = await open_page()
    await expect(page.locator("#remote-list li")).to_have_count(2)
    problem = "The folder 'home' is not connected: its server does not answer."
    session.set_folder("home", state="failed", problem=problem)
    session.listeners[0].tell(status=session.status())

    await expect(page.locator("#toast")).to_have_text(problem)
    await open_menu(page)
    await expect(page.locator("#remote-list")).to_contain_text(problem)
    await page.get_by_role("button", name="Try again: home").click()

    await expect(page.get_by_role("button", name="Disconnect: home")).to_be_visible()
    assert session.actions() == [("connect", {"name": "home"})]


async def test_a_folder_is_taken_out(session: Session, open_page: Open) -> None:
    """The keyboard stays where it was."""
    offer(session, state="connected", asks=False)
    page = await open_page()
    await open_menu(page)

    await page.get_by_role("button", name="Disconnect: home").press("Enter")

    await expect(page.get_by_role("button", name="Connect: home")).to_be_focused()
    assert session.actions() == [("disconnect", {"name": "home"})]


@pytest.mark.parametrize("role", ["control", "view"])
async def test_only_the_owner_has_the_menu(session: Session, open_page: Open, role: str) -> None:
    session.role = role
    offer(session)
    page = await open_page()

    await expect(page.locator("#remote-button")).to_be_hidden()


async def test_without_such_folders_there_is_no_menu(open_page: Open) -> None:
    page = await open_page()

    await expect(page.locator("#remote-button")).to_have_count(0)
