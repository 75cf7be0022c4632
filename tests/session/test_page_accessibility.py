"""The desktop page by axe-core: nothing in it keeps anybody out, whatever is open."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import pytest
from axe import find_barriers
from pages import Open, Session, browser, bundle, open_page, session, vnc_socket  # noqa: F401
from playwright.async_api import expect

from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.spec import Extension

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_and_its_menus_have_no_barriers(
    session: Session, open_page: Open, scheme: str
) -> None:
    session.script = {"state": "failed", "code": 1, "output": "no such package\n" * 100}
    page = await open_page(color_scheme=scheme)
    assert await find_barriers(page) == []
    buttons = await page.locator("#tools [aria-controls$='-menu']:visible").all()
    assert len(buttons) > 4

    for button in buttons:
        await button.click()
        await expect(button).to_have_attribute("aria-expanded", "true")
        assert await find_barriers(page) == []
        await page.keyboard.press("Escape")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_warnings_and_requests_have_none(session: Session, open_page: Open, scheme: str) -> None:
    session.left_s = session.max_left_s = 100
    session.extension = Extension(by="bob", reason="The fit needs a night.", seconds=7200, at=0)
    session.is_staff = True
    page = await open_page(color_scheme=scheme)
    await expect(page.locator("#banner")).to_be_visible()
    await expect(page.locator("#more-time")).to_be_visible()

    assert await find_barriers(page) == []


@pytest.mark.parametrize("dialog", ["help", "confirm", "ask"])
async def test_dialogs_have_none(session: Session, open_page: Open, dialog: str) -> None:
    session.left_s = session.max_left_s = 3600
    page = await open_page()
    if dialog == "confirm":
        await page.locator("#power-button").click()
    await page.locator(
        {"help": "#help-button", "confirm": "[data-power=reset]", "ask": "#extend"}[dialog]
    ).click()
    await expect(page.locator(f"dialog#{dialog}")).to_be_visible()

    assert await find_barriers(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_end_has_none(session: Session, open_page: Open, scheme: str) -> None:
    page = await open_page(color_scheme=scheme)

    await session.relay.close_all(CloseCode.ENDED, "Its time was over.")
    await expect(page.locator("#notice")).to_be_visible()

    assert await find_barriers(page) == []


async def test_a_phones_sheet_and_keys_have_none(session: Session, open_page: Open) -> None:
    page = await open_page(**PHONE)
    await page.locator("#fold").tap()
    assert await find_barriers(page) == []

    await page.locator("#keyboard").tap()
    await expect(page.locator("#strip")).to_be_visible()

    assert await find_barriers(page) == []
