from collections.abc import AsyncIterator

import live
import pytest_asyncio
from chromium import LogIn, running_browser, visitors
from playwright.async_api import Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    """The whole product, started once for a module's tests."""
    async with live.live_hub() as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def log_in(hub: live.LiveHub, browser: Browser) -> AsyncIterator[LogIn]:
    """Opens a page as somebody who has just logged in; see `visitors`."""
    async with visitors(hub, browser) as log_in:
        yield log_in
