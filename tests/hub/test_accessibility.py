"""The way to a desktop by axe-core, in light and dark, and as a phone shows it."""

from collections.abc import Awaitable, Callable

import hubs
import pytest
from axe import find_barriers
from chromium import LogIn
from playwright.async_api import expect

from qemuspawner import scopes

Start = Callable[..., Awaitable[hubs.Hub]]

CONFIG = {"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True},
}


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> dict[str, object]:
    return LOOKS[request.param]


async def test_the_form_and_its_errors(standin: Start, log_in: LogIn, look: dict[str, object]) -> None:
    hub = await standin(jupyterhub=CONFIG)
    page = await log_in(hub, "alice", **look)
    await page.goto(str((hub.url / "spawn/alice/desk").with_query({"opt-cpus": "7", "opt-memory": "lots"})))
    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()

    assert await find_barriers(page) == []


async def test_a_start_that_goes_on(standin: Start, log_in: LogIn, look: dict[str, object]) -> None:
    hub = await standin("hang", jupyterhub=CONFIG)
    page = await log_in(hub, "alice", **look)
    await page.goto(str(hub.url / "spawn"))
    await page.get_by_role("button", name="Start", exact=True).click()
    await expect(page.get_by_text("The <b>machine</b> boots")).to_be_visible()

    assert await find_barriers(page) == []


async def test_a_desktop_that_does_not_run(standin: Start, log_in: LogIn, look: dict[str, object]) -> None:
    hub = await standin(jupyterhub=CONFIG)
    page = await log_in(hub, "alice", **look)
    await page.goto(str(hub.url / "user/alice/"))

    assert await find_barriers(page) == []
