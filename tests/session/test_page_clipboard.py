"""The page's clipboard in Chromium: real page, relay and QEMU, which passes texts among its VNC clients."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from clipboard_peer import ClipboardPeer, clipboard_peer
from guests import GREEN, RED
from pages import (  # noqa: F401
    NOTE_MESSAGES,
    Open,
    Session,
    browser,
    bundle,
    open_page,
    people,
    session,
    vnc_socket,
    wait_for_colour,
)
from playwright.async_api import Page, expect

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = "clipboard-read"
# Text that is more than letters: other directions, beyond 16 bits, a terminal's escapes.
HOSTILE = "a\x1b[31m\u202eb\u0301 שלום 😀 <img src=x onerror=alert(1)> \x07"


CTRL, SHIFT, V, B, INSERT, SUPER = 0x1D, 0x2A, 0x2F, 0x30, 0xD2, 0xDB
TEXT = "a text is announced"
# RFB's ServerCutText of the extended clipboard, which announces no format at all.
EMPTIED = bytes([3, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFC, 0x08, 0, 0, 0])


def done(session: Session) -> list[Any]:
    """What people did, in the order in which QEMU was told: (scan code, is down), TEXT."""
    deeds: list[Any] = []
    for message in session.messages():
        if message[0] == 255:
            deeds.append((int.from_bytes(message[8:12], "big"), message[3] == 1))
        elif message[0] == 6 and message[8] & 0x09 == 0x08:  # notifies, and does not list what it can
            deeds.append(TEXT)
    return deeds


async def wait_for_deeds(session: Session, *wanted: Any) -> None:
    """Wait until people did this, and nothing else."""
    async with asyncio.timeout(10):
        while len(done(session)) < len(wanted):
            await asyncio.sleep(0.02)
    assert done(session) == list(wanted)


@pytest_asyncio.fixture(loop_scope="module")
async def guest(vnc_socket: Path) -> AsyncIterator[ClipboardPeer]:
    async with clipboard_peer(vnc_socket) as peer:
        yield peer


@pytest_asyncio.fixture(loop_scope="module")
async def open_clipboard_page(open_page: Open) -> Open:
    """Opens the page; with what the browser says about reading the clipboard."""

    async def open_one(permission: str = "denied", *, init_script: str = "", **options: Any) -> Page:
        page = await open_page(init_script=NOTE_MESSAGES + init_script, **options)
        # It has said what it can: from now on QEMU tells it of other clients' texts.
        await page.wait_for_function("() => sent.some(([kind]) => kind === 6)")
        cdp = await page.context.new_cdp_session(page)
        target = await cdp.send("Target.getTargetInfo")
        where = {"browserContextId": target["targetInfo"]["browserContextId"]}
        await cdp.send(
            "Browser.setPermission", {"permission": {"name": READ}, "setting": permission, **where}
        )
        state = f"navigator.permissions.query({{ name: '{READ}' }}).then(({{ state }}) => state)"
        assert await page.evaluate(state) == permission
        return page

    return open_one


async def copy_here(page: Page, text: str) -> None:
    """Copy on the device, as another program would: the page has not the focus for it."""
    await page.evaluate("text => navigator.clipboard.writeText(text)", text)


async def wait_for_clipboard(page: Page, text: str) -> None:
    async with asyncio.timeout(10):
        while await page.evaluate("navigator.clipboard.readText()") != text:
            await asyncio.sleep(0.02)


async def paste_here(page: Page) -> str:
    """What the device's clipboard has."""
    await page.evaluate("document.body.append(document.createElement('textarea'))")
    await page.locator("body > textarea").focus()
    await page.keyboard.press("Control+v")
    return str(await page.locator("body > textarea").evaluate("area => area.value"))


# From this device to the desktop


@pytest.mark.parametrize("permission", ["denied", "prompt", "granted"])
@pytest.mark.parametrize(
    ("keys", "codes"),
    [("Control+v", [CTRL, V]), ("Control+Shift+V", [CTRL, SHIFT, V]), ("Shift+Insert", [SHIFT, INSERT])],
)
async def test_a_key_that_pastes_brings_the_text_along(
    session: Session,
    open_clipboard_page: Open,
    guest: ClipboardPeer,
    permission: str,
    keys: str,
    codes: list[int],
) -> None:
    """Text first, then the key; the browser is asked for nothing."""
    page = await open_clipboard_page(permission)
    await copy_here(page, HOSTILE)

    await page.keyboard.press(keys)

    assert await guest.take() == HOSTILE.encode()
    *modifiers, key = codes
    await wait_for_deeds(
        session,
        *[(code, True) for code in modifiers],
        TEXT,
        *[(code, True) for code in [key]],
        *[(code, False) for code in reversed(codes)],
    )


async def test_what_is_typed_meanwhile_waits_behind_the_text(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """In the order in which it was typed, and no key stays down."""
    page = await open_clipboard_page()
    await copy_here(page, "first")

    await page.keyboard.down("Control")
    await page.keyboard.press("v")
    await page.keyboard.up("Control")
    await page.keyboard.press("b")

    await wait_for_deeds(
        session,
        (CTRL, True), TEXT, (V, True), (V, False), (CTRL, False), (B, True), (B, False),
    )  # fmt: skip


async def test_the_same_text_is_given_once(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """The second key goes at once."""
    page = await open_clipboard_page()
    await copy_here(page, "once")

    await page.keyboard.press("Control+v")
    assert await guest.take() == b"once"
    await page.keyboard.press("Control+v")

    stroke = [(V, True), (V, False), (CTRL, False)]
    await wait_for_deeds(session, (CTRL, True), TEXT, *stroke, (CTRL, True), *stroke)


async def test_keys_come_up_when_the_page_loses_the_keyboard_meanwhile(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """The text is pasted by a whole chord then."""
    page = await open_clipboard_page()
    await copy_here(page, "first")

    await page.keyboard.down("Control")
    await page.evaluate(
        """() => window.addEventListener("paste", () => window.dispatchEvent(new Event("blur")))"""
    )
    await page.keyboard.down("v")

    await wait_for_deeds(
        session,
        (CTRL, True), TEXT, (CTRL, False), (CTRL, True), (V, True), (V, False), (CTRL, False),
    )  # fmt: skip


async def test_a_macs_cmd_v_is_the_desktops_ctrl_v(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """Where the browser brings no text with the key, the page reads it."""
    page = await open_clipboard_page(
        "granted", init_script="Object.defineProperty(navigator, 'platform', { get: () => 'MacIntel' })"
    )
    await copy_here(page, "from a Mac")

    await page.keyboard.press("Meta+v")

    assert await guest.take() == b"from a Mac"
    await wait_for_deeds(
        session,
        (SUPER, True), TEXT, (CTRL, True), (SUPER, False),
        (CTRL, True), (V, True), (V, False), (CTRL, False),
    )  # fmt: skip


async def test_what_was_copied_elsewhere_is_there_before_it_is_pasted(
    open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """On the way back to the page, where it may read the clipboard: for pasting with the mouse."""
    page = await open_clipboard_page("granted")
    await copy_here(page, "from elsewhere")

    await page.evaluate("window.dispatchEvent(new Event('focus'))")

    assert await guest.take() == b"from elsewhere"


@pytest.mark.parametrize("permission", ["denied", "prompt"])
async def test_nothing_is_read_or_asked_by_itself(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer, permission: str
) -> None:
    """The panel says what works, and offers to ask."""
    page = await open_clipboard_page(permission)
    await page.evaluate("() => { navigator.clipboard.readText = async () => { window.hasRead = true; }; }")

    await page.evaluate("window.dispatchEvent(new Event('focus'))")
    await page.locator("#clipboard-button").click()

    await expect(page.locator("#clipboard-hint")).to_contain_text("Ctrl+V brings")
    await expect(page.locator("#clipboard-allow")).to_be_visible(visible=permission == "prompt")
    assert await page.evaluate("window.hasRead") is None
    assert done(session) == []


async def test_before_others_only_a_key_brings_text(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """Whoever looks on gets what is in the desktop's clipboard, and it may be a password."""
    session.people = people("bob")
    page = await open_clipboard_page("granted")
    await page.locator("#clipboard-button").click()
    await expect(page.locator("#clipboard-hint")).to_contain_text("while others see that")
    await copy_here(page, "secret")
    await page.locator("#screen canvas").focus()
    await page.evaluate("window.dispatchEvent(new Event('focus'))")

    await copy_here(page, "meant for them")
    await page.keyboard.press("Control+v")

    assert await guest.take() == b"meant for them"


async def test_a_text_too_long_is_refused_and_not_half_pasted(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """With a sentence; the key would paste something else."""
    page = await open_clipboard_page()
    await copy_here(page, "é" * (100 * 1024) + "1")

    await page.keyboard.press("Control+v")

    await expect(page.locator("#toast")).to_have_text(
        "The text is too long for the clipboard: at most 200 KiB."
    )
    await wait_for_deeds(session, (CTRL, True), (CTRL, False))


async def test_the_longest_text_passes(open_clipboard_page: Open, guest: ClipboardPeer) -> None:
    """In one line, which does not pack well."""
    page = await open_clipboard_page()
    text = random.Random(1).randbytes(75 * 1024).hex() + "é" * (25 * 1024)
    await copy_here(page, text)

    await page.keyboard.press("Control+v")

    assert await guest.take() == text.encode()


async def test_a_nul_is_left_out(open_clipboard_page: Open, guest: ClipboardPeer) -> None:
    """Programs in C would end there."""
    page = await open_clipboard_page()
    await copy_here(page, "one\0two")

    await page.keyboard.press("Control+v")

    assert await guest.take() == b"onetwo"


async def test_the_off_switch_is_remembered(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """On by default; off, the keys are the desktop's alone."""
    page = await open_clipboard_page("granted")
    await page.locator("#clipboard-button").click()
    await page.get_by_label("Share automatically").uncheck()
    await page.reload()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await copy_here(page, "not this")

    await page.keyboard.press("Control+v")
    guest.copy(b"nor that")
    await expect(page.locator("#clipboard-text")).to_have_value("nor that")

    await expect(page.locator("#clipboard-auto")).not_to_be_checked()
    await wait_for_deeds(session, (CTRL, True), (V, True), (V, False), (CTRL, False))
    assert await page.evaluate("navigator.clipboard.readText()") == "not this"


# From the desktop to this device


async def test_what_the_guest_copies_is_on_the_device(
    open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """At once, as text; nothing on the page takes it for more."""
    page = await open_clipboard_page("denied")

    guest.copy(HOSTILE.encode() + b"\0")

    await expect(page.locator("#clipboard-text")).to_have_value(HOSTILE)
    assert await paste_here(page) == HOSTILE
    assert await page.locator("img").count() == 0


async def test_what_was_copied_while_the_page_was_away_comes_with_it(
    open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """Unless there is something newer on the device."""
    page = await open_clipboard_page("granted")
    await copy_here(page, "old")
    await page.evaluate("window.dispatchEvent(new Event('focus'))")
    assert await guest.take() == b"old"
    await page.evaluate("document.hasFocus = () => false")
    guest.copy(b"meanwhile")
    await expect(page.locator("#clipboard-text")).to_have_value("meanwhile")

    await page.evaluate("window.dispatchEvent(new Event('focus'))")

    await wait_for_clipboard(page, "meanwhile")


async def test_a_browser_that_wants_a_key_gets_one(open_clipboard_page: Open, guest: ClipboardPeer) -> None:
    """Safari writes the clipboard only while a key is handled."""
    page = await open_clipboard_page("granted")
    await page.evaluate(
        """() => {
            const write = navigator.clipboard.writeText.bind(navigator.clipboard);
            window.refused = [];
            navigator.clipboard.writeText = (text) =>
                window.event?.type === "keydown" ? write(text) : Promise.reject(refused.push(text));
        }"""
    )
    guest.copy(b"late")
    await page.wait_for_function("() => refused.length")

    await page.keyboard.press("a")

    await wait_for_clipboard(page, "late")


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"a" * 524288, None), (b"a" * 524289, "at most 512 KiB"), (b"\xff\xfe\x80", None)],
)
async def test_the_guest_may_copy_anything(
    open_clipboard_page: Open, guest: ClipboardPeer, text: bytes, words: str | None
) -> None:
    """What is too long is refused with a sentence, what is no UTF-8 is shown as such; the picture goes on."""
    page = await open_clipboard_page()

    guest.copy(text)

    if words:
        await expect(page.locator("#toast")).to_contain_text(words)
        await expect(page.locator("#clipboard-text")).to_have_value("")
    else:
        await expect(page.locator("#clipboard-text")).to_have_value(text.decode(errors="replace"))
    before = await wait_for_colour(page, GREEN, RED)
    await page.keyboard.press("a")
    await wait_for_colour(page, RED if before == GREEN else GREEN)


async def test_an_emptied_clipboard_is_filled_again(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """The guest has lost what it was given: the same text is given once more."""
    page = await open_clipboard_page()
    async with page.expect_websocket(lambda websocket: websocket.url.endswith("vnc")) as opening:
        await page.reload()
    websocket = await opening.value
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await copy_here(page, "again")
    await page.keyboard.press("Control+v")
    assert await guest.take() == b"again"
    await wait_for_deeds(session, (CTRL, True), TEXT, (V, True), (V, False), (CTRL, False))

    # What the relay has at one time may be in one frame.
    async with websocket.expect_event("framereceived", lambda frame: EMPTIED in frame):
        guest.empty()
    await page.keyboard.press("Control+v")

    assert await guest.take() == b"again"


# Policy


@pytest.mark.parametrize(
    ("copies_in", "copies_out", "words"),
    [
        (True, False, "Text goes into this desktop, but you may not copy out of it."),
        (False, True, "You can copy out of this desktop, but it takes no text from you."),
        (False, False, "You cannot copy here, neither into the desktop nor out of it."),
    ],
)
async def test_the_panel_says_what_may_be_copied(
    session: Session,
    open_clipboard_page: Open,
    guest: ClipboardPeer,
    copies_in: bool,
    copies_out: bool,
    words: str,
) -> None:
    """And offers nothing else; a key that pastes is then the desktop's alone."""
    session.people = people(copies_in=copies_in, copies_out=copies_out)
    page = await open_clipboard_page()

    await page.locator("#clipboard-button").click()

    await expect(page.locator("#clipboard-policy")).to_have_text(words)
    await expect(page.locator("#clipboard-send")).to_be_enabled(enabled=copies_in)
    await expect(page.locator("#clipboard-type")).to_be_enabled(enabled=copies_in)
    await expect(page.locator("#clipboard-take")).to_be_enabled(enabled=copies_out)
    await copy_here(page, "mine")
    await page.locator("#screen canvas").focus()
    await page.keyboard.press("Control+v")
    text = [TEXT] if copies_in else []
    await wait_for_deeds(session, (CTRL, True), *text, (V, True), (V, False), (CTRL, False))


async def test_who_looks_on_may_copy_where_the_session_lets_them(
    session: Session, open_clipboard_page: Open, guest: ClipboardPeer
) -> None:
    """The panel is there then."""
    session.role = "control"
    session.people = people(role="view", drives=False, copies_in=False)
    page = await open_clipboard_page()
    await expect(page.locator("#connection-text")).to_have_text("View only")

    guest.copy(b"for all")

    await expect(page.locator("#clipboard-button")).to_be_visible()
    await expect(page.locator("#clipboard-text")).to_have_value("for all")
    assert await paste_here(page) == "for all"
