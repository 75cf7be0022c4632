"""Debian's Chromium, for tests of pages: one for all tests of a process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from playwright.async_api import Browser, Download, Page, async_playwright
from yarl import URL

# A moment as pages show it; one that is not today, as near midnight, has its date.
MOMENT = r"(?:\w+ \d+, \d{4}, )?\d+:\d\d\s[AP]M"
LogIn = Callable[..., Awaitable[Page]]

_LAUNCH = {
    "executablePath": "/usr/bin/chromium",
    "args": ["--no-sandbox", "--disable-gpu"],
    "host": "127.0.0.1",
}


class Site(Protocol):
    """A hub with people who have passwords."""

    @property
    def pages(self) -> URL:
        """Where its own pages are; ends in /hub/."""

    def password(self, user: str, /) -> str: ...


@contextlib.contextmanager
def running_chromium() -> Iterator[str]:
    """Start it; where browsers of any event loop reach it.

    Playwright's own object of a browser belongs to one event loop, and each test of a hub has its own.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        json.dump(_LAUNCH, config)
        config.flush()
        command = [sys.executable, "-m", "playwright", "launch-server", "--browser", "chromium"]
        # Playwright's command starts another program, to which a signal is to go, too.
        server = subprocess.Popen(
            [*command, "--config", config.name], stdout=subprocess.PIPE, text=True, process_group=0
        )
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            assert url.startswith("ws://"), "Chromium did not start."
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            # Closed by the other program when it has ended Chromium.
            server.stdout.read()
            server.stdout.close()


@contextlib.asynccontextmanager
async def connected_browser(chromium_url: str) -> AsyncIterator[Browser]:
    """The running one, in this event loop; whatever was opened in it is closed at the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect(chromium_url)
        yield browser
        await browser.close()


async def read_download(download: Download) -> bytes:
    """Chromium's own file is not for those who are only connected."""
    with tempfile.NamedTemporaryFile() as file:
        await download.save_as(file.name)
        return Path(file.name).read_bytes()


@contextlib.asynccontextmanager
async def visitors(browser: Browser) -> AsyncIterator[LogIn]:
    """Opens a page of a hub as somebody who has just logged in, each in a new browser; see `log_in`.

    No script of any such page may fail.
    """
    problems: list[str] = []
    async with contextlib.AsyncExitStack() as stack:

        async def log_in(
            hub: Site,
            name: str,
            *,
            to: URL | str = "home",
            init_script: str = "",
            has_clock: bool = False,
            **options: Any,
        ) -> Page:
            """`to` is a URL or comes after the hub's; `has_clock`: the page's time is the test's."""
            options = {"viewport": {"width": 1280, "height": 800}} | options
            context = await browser.new_context(**options)
            stack.push_async_callback(context.close)
            await context.add_init_script(init_script)
            page = await context.new_page()
            if has_clock:
                await page.clock.install()
            page.on("pageerror", lambda error: problems.append(str(error)))
            target = hub.pages / to if isinstance(to, str) else to
            await page.goto(str((hub.pages / "login").with_query(next=target.path)))
            await page.get_by_label("Username").fill(name)
            await page.get_by_label("Password").fill(hub.password(name))
            await page.get_by_role("button", name="Sign in").click()
            await page.wait_for_url(lambda url: "/hub/login" not in url)
            return page

        yield log_in
    assert problems == [], problems
