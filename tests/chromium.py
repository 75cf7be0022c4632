"""Debian's Chromium, for tests of pages."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import live
from playwright.async_api import Browser, Page, async_playwright
from yarl import URL

LogIn = Callable[..., Awaitable[Page]]


@contextlib.asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def visitors(hub: live.LiveHub, browser: Browser) -> AsyncIterator[LogIn]:
    """Opens `to`, by default the hub's home page, as somebody who has just logged in, each in a new browser.

    No script of any such page may fail.
    """
    problems: list[str] = []
    async with contextlib.AsyncExitStack() as stack:

        async def log_in(name: str, *, to: URL | None = None, init_script: str = "", **options: Any) -> Page:
            options = {"viewport": {"width": 1280, "height": 800}} | options
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            await context.add_init_script(init_script)
            page = await context.new_page()
            page.on("pageerror", lambda error: problems.append(str(error)))
            target = to or hub.url / "hub/home"
            await page.goto(str((hub.url / "hub/login").with_query(next=target.path)))
            await page.get_by_label("Username").fill(name)
            await page.get_by_label("Password").fill(hub.password(name))
            await page.get_by_role("button", name="Sign in").click()
            await page.wait_for_url(lambda url: "/hub/login" not in url)
            return page

        yield log_in
    assert problems == [], problems
