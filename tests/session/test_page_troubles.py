"""The strip above the desktop that says what is wrong with it, in Debian's Chromium."""

import pytest
from pages import Open, Session, browser, bundle, open_page, session, vnc_socket
from playwright.async_api import expect

from qemuspawner.spec import Act, Trouble

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

__all__ = ["browser", "bundle", "open_page", "session", "vnc_socket"]

FULL = "The desktop has written all that it may, 8 MiB: the machine is paused, and nothing is lost."
HOSTILE = "<img src=x onerror=document.title='owned'>"


def hit(session: Session, *acts: Act) -> None:
    session.trouble = Trouble(kind="disk-limit", acts=acts)
    session.message, session.hint = FULL, HOSTILE


async def test_what_is_wrong_is_said_until_it_is_over(session: Session, open_page: Open) -> None:
    """As text, and above the desktop; nothing hides it meanwhile."""
    hit(session, "retry", "extend")
    page = await open_page()
    strip = page.locator("#trouble")
    await expect(strip.locator("p")).to_have_text(f"{FULL} {HOSTILE}")
    await expect(strip).to_have_role("alert")
    await expect(strip.get_by_role("button")).to_have_text(
        ["Try again now", "Allow it more room", "Stop the desktop"]
    )
    assert await page.title() != "owned"

    session.trouble, session.message, session.hint = None, "", ""
    await strip.get_by_role("button", name="Try again now").click()

    await expect(strip).to_be_hidden()
    assert session.actions() == [("trouble", {"act": "retry"})]


async def test_a_restart_is_asked_for_twice(session: Session, open_page: Open) -> None:
    hit(session, "reset")
    page = await open_page()

    await page.get_by_role("button", name="Restart the machine").click()
    assert not session.actions()
    async with page.expect_response("**/api/trouble"):
        await page.locator("#confirm-yes").click()

    assert session.actions() == [("trouble", {"act": "reset"})]


async def test_the_owner_can_stop_what_cannot_be_helped(session: Session, open_page: Open) -> None:
    hit(session)
    page = await open_page()

    await page.get_by_role("button", name="Stop the desktop").click()

    await expect(page.locator("#confirm-title")).to_have_text("Force the machine off?")


@pytest.mark.parametrize(("role", "names"), [("control", ["Allow it more room"]), ("view", [])])
async def test_others_can_do_what_their_role_may(
    session: Session, open_page: Open, role: str, names: list[str]
) -> None:
    session.role = role
    hit(session, "extend")
    page = await open_page()

    await expect(page.locator("#trouble p")).to_contain_text(FULL)
    await expect(page.locator("#trouble button")).to_have_text(names)
