"""Keyboards of several countries in Debian's Chromium, and what arrives in the demo machine's terminal.

Keys are pressed as browsers report them from such a keyboard. A shell in the guest puts each line into its
clipboard, which the page shows.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

import live
import pytest
import pytest_asyncio
from chromium import LogIn, visitors
from playwright.async_api import Browser, CDPSession, Page, expect
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

ECHO = r"""clear; while IFS= read -r line; do printf %s "$line" | xclip -selection clipboard; done"""

# Keys and what they write; s+ with Shift, a+ with AltGr; a comma: one after the other, the first is dead.
KEYBOARDS = {
    "English (US)": "KeyY=y KeyZ=z s+Digit2=@ s+Digit3=# BracketLeft=[ s+BracketRight=} Backslash=\\ "
    "s+Backslash=| Quote=' s+Backquote=~ Minus=- s+KeyA=A",
    "English (UK)": 'KeyY=y s+Digit3=£ s+Digit2=" s+Quote=@ Backslash=# s+Backslash=~ IntlBackslash=\\ '
    "s+IntlBackslash=| a+Digit4=€ s+Backquote=¬",
    "German": "KeyY=z KeyZ=y s+KeyY=Z BracketLeft=ü Semicolon=ö Quote=ä s+Quote=Ä Minus=ß a+KeyQ=@ a+KeyE=€ "
    "a+Digit7={ a+Digit8=[ a+Digit9=] a+Digit0=} a+Minus=\\ a+IntlBackslash=| IntlBackslash=< "
    "s+IntlBackslash=> a+BracketRight=~ s+Digit3=§ Backslash=# Slash=- Backquote,KeyA=â Equal,KeyE=é "
    "s+Equal,KeyA=à Backquote,Space=^",
    "French": "KeyQ=a KeyA=q KeyW=z KeyZ=w Semicolon=m KeyM=, Digit2=é Digit7=è Digit9=ç Digit0=à Quote=ù "
    "s+Digit1=1 a+Digit0=@ a+KeyE=€ a+Digit4={ a+Digit5=[ a+Minus=] a+Equal=} a+Digit8=\\ a+Digit6=| "
    "a+Digit3=# IntlBackslash=< s+BracketRight=£ BracketLeft,KeyE=ê s+BracketLeft,KeyI=ï",
    "Spanish": "KeyY=y Semicolon=ñ s+Semicolon=Ñ Backslash=ç a+Digit2=@ a+KeyE=€ a+Quote={ a+Backslash=} "
    "a+BracketLeft=[ a+BracketRight=] a+Backquote=\\ a+Digit1=| a+Digit3=# Minus=' s+Equal=¿ Equal=¡ "
    "Backquote=º Quote,KeyA=á s+Quote,KeyU=ü BracketLeft,KeyE=è",
    "German (Switzerland)": "KeyY=z KeyZ=y BracketLeft=ü s+BracketLeft=è Semicolon=ö s+Semicolon=é Quote=ä "
    "s+Quote=à a+Digit2=@ a+KeyE=€ a+Quote={ a+Backslash=} a+BracketLeft=[ a+BracketRight=] "
    "a+IntlBackslash=\\ a+Digit7=| s+Digit4=ç Backslash=$ s+Backslash=£ Equal,KeyE=ê BracketRight,KeyU=ü",
    "French (Switzerland)": "KeyY=z BracketLeft=è s+BracketLeft=ü Semicolon=é s+Semicolon=ö Quote=à "
    "s+Quote=ä a+Digit2=@ a+KeyE=€ a+Quote={ a+Backslash=} a+BracketLeft=[ a+BracketRight=] "
    "a+IntlBackslash=\\ a+Digit7=| s+Digit4=ç Equal,KeyE=ê",
}

# By the layout in the guest: all but the last two characters can be typed, in some cases by dead keys.
TYPED = {
    "English (US)": "Hello, World! ~@{}[]\\|",
    "German": "Zäh, größer & schöner: ~@€{}[]\\|^ âé",
    "French": "Où ça? Très bien: ~@€{}[]\\|^ êï",
    "Spanish": "¿Mañana? ¡Sí! ~@€{}[]\\|^ áü",
}

SHIFT, CTRL, ALT = 8, 2, 1


class Stroke(NamedTuple):
    code: str
    key: str
    shift: bool
    altgr: bool


def parse(text: str) -> list[tuple[list[Stroke], str]]:
    """What to press for each of a keyboard's characters."""
    parsed = []
    for one in text.split():
        keys, _, wanted = one.partition("=")
        strokes = keys.split(",")
        parsed.append(
            (
                [
                    Stroke(
                        code=key.rpartition("+")[2],
                        key=wanted if number == len(strokes) - 1 else "Dead",
                        shift=key.startswith("s+"),
                        altgr=key.startswith("a+"),
                    )
                    for number, key in enumerate(strokes)
                ],
                wanted,
            )
        )
    return parsed


class Keys:
    """A keyboard at the page, with AltGr as browsers on Linux or on Windows report it."""

    def __init__(self, cdp: CDPSession, *, windows: bool) -> None:
        self._cdp = cdp
        self._windows = windows

    async def press(self, stroke: Stroke) -> None:
        modifiers = SHIFT if stroke.shift else 0
        held: list[tuple[str, str, int]] = []
        if stroke.shift:
            held.append(("ShiftLeft", "Shift", SHIFT))
        if stroke.altgr and self._windows:
            held += [("ControlLeft", "Control", CTRL), ("AltRight", "AltGraph", CTRL | ALT)]
            modifiers |= CTRL | ALT
        elif stroke.altgr:
            held.append(("AltRight", "AltGraph", 0))
        for code, key, flags in held:
            await self._send("rawKeyDown", code, key, flags)
        await self._send("rawKeyDown", stroke.code, stroke.key, modifiers)
        await self._send("keyUp", stroke.code, stroke.key, modifiers)
        for code, key, _ in reversed(held):
            await self._send("keyUp", code, key, 0)
        # A PS/2 keyboard holds 16 bytes, and an emulated guest may be slow to take them.
        await asyncio.sleep(0.04)

    async def enter(self) -> None:
        await self._send("rawKeyDown", "Enter", "Enter", 0)
        await self._send("keyUp", "Enter", "Enter", 0)

    async def _send(self, kind: str, code: str, key: str, modifiers: int) -> None:
        location = 1 if code.endswith("Left") and code[0] in "SC" else 2 if code == "AltRight" else 0
        event = {"type": kind, "code": code, "key": key, "modifiers": modifiers, "location": location}
        await self._cdp.send("Input.dispatchKeyEvent", event)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    """Alice's, booted once for all tests here."""
    return await hub.start_server("alice", "keys", machine="debian-desktop", memory="1 GiB")


async def open_desktop(log_in: LogIn, desktop: URL, *, windows: bool = False) -> Page:
    script = "Object.defineProperty(navigator, 'platform', { get: () => 'Win32' })" if windows else ""
    page = await log_in("alice", to=desktop, init_script=script)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    # Set by the page itself, as Chromium is sure of its US keyboard here.
    await expect(page.locator("#keyboard-hint")).to_have_text(
        "The desktop has: English (US).", timeout=60_000
    )
    return page


async def type_as_keys(page: Page, text: str) -> None:
    await page.get_by_role("button", name="Clipboard").click()
    await page.locator("#clipboard-text").fill(text)
    await page.locator("#clipboard-type").click()


async def choose(page: Page, layout: str) -> None:
    await page.get_by_role("button", name="Send keys").click()
    await page.get_by_label("Keyboard layout").select_option(layout)
    await expect(page.locator("#keyboard-hint")).to_have_text(f"The desktop has: {layout}.", timeout=30_000)
    await page.locator("#screen canvas").click(position={"x": 500, "y": 420})


async def expect_line(page: Page, line: str, send: Callable[[], Awaitable[None]]) -> None:
    """Send it; as a person does, once more where a busy guest has lost a key."""
    text = page.locator("#clipboard-text")
    for _ in range(3):
        await send()
        with contextlib.suppress(AssertionError):
            await expect(text).to_have_value(line, timeout=10_000)
            return
        await page.screenshot(path=live.PROJECT / "screenshots/keyboard-in-vain.png")
    await expect(text).to_have_value(line, timeout=1)


async def press_all(keys: Keys, strokes: Sequence[Stroke]) -> None:
    for stroke in strokes:
        await keys.press(stroke)
    await keys.enter()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def log_in(hub: live.LiveHub, browser: Browser) -> AsyncIterator[LogIn]:
    """One page serves all tests here."""
    async with visitors(browser) as log_in:
        yield functools.partial(log_in, hub)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(log_in: LogIn, desktop: URL) -> Page:
    """The desktop's page; in its terminal the shell that answers with the clipboard."""
    page = await open_desktop(log_in, desktop)
    await page.locator("#screen canvas").click(position={"x": 500, "y": 420})
    # The guest follows the window's size; a key typed meanwhile may be lost.
    async with asyncio.timeout(120):
        while await page.evaluate("document.querySelector('#screen canvas').width") != 1280:
            await asyncio.sleep(0.5)

    async def begin() -> None:
        # Out of what went wrong.
        await page.locator("#screen canvas").focus()
        await page.keyboard.press("Control+c")
        await type_as_keys(page, f"{ECHO}\nready\n")

    await expect_line(page, "ready", begin)
    return page


@pytest.mark.parametrize("layout", KEYBOARDS)
async def test_every_key_writes_what_is_printed_on_it(layout: str, page: Page) -> None:
    await choose(page, layout)
    keys = Keys(await page.context.new_cdp_session(page), windows=False)
    pressed = parse(KEYBOARDS[layout])

    strokes = [stroke for group, _ in pressed for stroke in group]

    await expect_line(page, "".join(wanted for _, wanted in pressed), lambda: press_all(keys, strokes))


@pytest.mark.parametrize("layout", TYPED)
async def test_a_text_is_typed_as_keys_of_the_guests_layout(layout: str, page: Page) -> None:
    await choose(page, layout)

    await expect_line(page, TYPED[layout], lambda: type_as_keys(page, TYPED[layout] + "\n"))


async def test_windows_reports_altgr_as_two_keys_and_the_guest_gets_one(
    log_in: LogIn, desktop: URL, page: Page
) -> None:
    """Control and Alt together would make a shortcut of each of them."""
    windows = await open_desktop(log_in, desktop, windows=True)
    await choose(windows, "German")
    keys = Keys(await windows.context.new_cdp_session(windows), windows=True)
    pressed = [(strokes, wanted) for strokes, wanted in parse(KEYBOARDS["German"]) if strokes[0].altgr]

    strokes = [group[0] for group, _ in pressed]

    await expect_line(windows, "".join(wanted for _, wanted in pressed), lambda: press_all(keys, strokes))
    await windows.screenshot(path=live.PROJECT / "screenshots/keyboard.png")
    await windows.context.close()
