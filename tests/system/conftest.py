import functools
from collections.abc import AsyncIterator

import live
import pytest_asyncio
from chromium import LogIn, connected_browser, visitors
from playwright.async_api import Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    """The whole product, started once for a module's tests."""
    async with live.live_hub() as hub:
        yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_url: str) -> AsyncIterator[Browser]:
    async with connected_browser(chromium_url) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def log_in(hub: live.LiveHub, browser: Browser) -> AsyncIterator[LogIn]:
    """Opens a page of the hub as somebody who has just logged in; see `visitors`."""
    async with visitors(browser) as log_in:
        yield functools.partial(log_in, hub)
