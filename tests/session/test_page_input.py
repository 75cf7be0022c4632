"""Keys, fingers and the view of the page in Chromium: real page, relay and QEMU."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import asyncio
import re
import struct
from typing import Any

import pytest
from pages import NOTE_MESSAGES, Open, Session, browser, bundle, open_page, people, session, vnc_socket  # noqa: F401
from playwright.async_api import Page, expect

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
LEFT, MIDDLE, RIGHT, UP, DOWN = 1, 2, 4, 8, 16  # buttons, as RFB has them

SCAN_CODES = {
    "Escape": 0x01, "1": 0x02, "Backspace": 0x0E, "Tab": 0x0F, "W": 0x11, "T": 0x14, "N": 0x31, "Ctrl": 0x1D,
    "A": 0x1E, "S": 0x1F, "Shift": 0x2A, "Alt": 0x38, "F1": 0x3B, "F4": 0x3E, "F7": 0x41, "F12": 0x58,
    "Up": 0xC8, "Left": 0xCB, "Delete": 0xD3, "Super": 0xDB, "PrintScreen": 0x54,
}  # fmt: skip
NAMES = {code: name for name, code in SCAN_CODES.items()}


def strokes(session: Session) -> str:
    """The keys that QEMU was told of, such as "+Ctrl +A -A -Ctrl"."""
    return " ".join(
        ("+" if data[3] else "-") + NAMES.get(int.from_bytes(data[8:12], "big"), data[8:12].hex())
        for data in session.messages()
        if data[0] == 255
    )


async def wait_for_strokes(session: Session, wanted: str) -> None:
    async with asyncio.timeout(10):
        while strokes(session).count(" ") < wanted.count(" "):
            await asyncio.sleep(0.02)
    assert strokes(session) == wanted


# Chords


@pytest.mark.parametrize(
    ("chord", "wanted"),
    [
        ("ControlLeft AltLeft Delete", "+Ctrl +Alt +Delete -Delete -Alt -Ctrl"),
        ("ControlLeft AltLeft Backspace", "+Ctrl +Alt +Backspace -Backspace -Alt -Ctrl"),
        ("AltLeft F4", "+Alt +F4 -F4 -Alt"),
        ("AltLeft Tab", "+Alt +Tab -Tab -Alt"),
        ("MetaLeft", "+Super -Super"),
        ("PrintScreen", "+PrintScreen -PrintScreen"),
        ("ControlLeft AltLeft F1", "+Ctrl +Alt +F1 -F1 -Alt -Ctrl"),
        ("ControlLeft AltLeft F7", "+Ctrl +Alt +F7 -F7 -Alt -Ctrl"),
        ("ControlLeft KeyW", "+Ctrl +W -W -Ctrl"),
        ("ControlLeft KeyT", "+Ctrl +T -T -Ctrl"),
        ("ControlLeft KeyN", "+Ctrl +N -N -Ctrl"),
    ],
)
async def test_the_menu_sends_what_the_browser_keeps(
    session: Session, open_page: Open, chord: str, wanted: str
) -> None:
    """Pressed in order, let go in reverse; the keyboard is the desktop's again."""
    page = await open_page()

    await page.locator("#keys-button").click()
    await page.locator(f"[data-chord='{chord}']").click()

    await wait_for_strokes(session, wanted)
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_a_key_held_by_the_menu_is_down_until_it_is_pressed_again(
    session: Session, open_page: Open
) -> None:
    """Through other keys; the button says so."""
    page = await open_page()
    await page.locator("#keys-button").click()
    hold = page.locator("[data-hold=ControlLeft]")
    await hold.click()
    await expect(hold).to_have_attribute("aria-pressed", "true")
    await page.locator("#screen canvas").focus()
    await page.keyboard.press("a")
    await page.keyboard.press("s")

    await page.locator("#keys-button").click()
    await hold.click()

    await wait_for_strokes(session, "+Ctrl +A -A +S -S -Ctrl")
    await expect(hold).to_have_attribute("aria-pressed", "false")


async def test_full_screen_captures_the_keys(session: Session, open_page: Open) -> None:
    """All of them, by the browser's keyboard lock; Esc is the desktop's then."""
    page = await open_page(
        init_script="""
            const lock = Keyboard.prototype.lock;
            Keyboard.prototype.lock = async function (...keys) {
                await lock.apply(this, keys);
                window.locked = keys;
            };
            const unlock = Keyboard.prototype.unlock;
            Keyboard.prototype.unlock = function () {
                window.locked = null;
                unlock.call(this);
            };
        """
    )

    await page.locator("#fullscreen").click()
    await page.wait_for_function("() => window.locked")
    await expect(page.locator("#toast")).to_have_text("Hold Esc to leave full screen.")
    await page.keyboard.press("Escape")
    await wait_for_strokes(session, "+Escape -Escape")
    await page.keyboard.press("Control+Alt+Shift+KeyF")

    await page.wait_for_function("() => window.locked === null")


# The strip of keys


async def open_strip(open_page: Open) -> Page:
    page = await open_page(**PHONE)
    await page.locator("#fold").tap()
    await page.locator("#keyboard").tap()
    await expect(page.locator("#strip")).to_be_visible()
    await expect(page.locator("#typing")).to_be_focused()
    return page


async def tap(page: Page, *names: str) -> None:
    for name in names:
        await page.locator("#strip").get_by_role("button", name=name, exact=True).tap()


async def test_a_phone_has_the_keys_that_its_keyboard_lacks(session: Session, open_page: Open) -> None:
    """Beside its own keyboard, which stays."""
    page = await open_strip(open_page)

    await tap(page, "Escape", "Tab", "Left", "Up", "More keys", "F1", "F12", "Delete")

    await wait_for_strokes(
        session,
        "+Escape -Escape +Tab -Tab +Left -Left +Up -Up +F1 -F1 +F12 -F12 +Delete -Delete",
    )
    await expect(page.locator("#typing")).to_be_focused()
    assert await page.evaluate("document.documentElement.scrollWidth") == 390


async def test_a_tapped_modifier_is_for_the_next_key(session: Session, open_page: Open) -> None:
    """Of the strip or of the phone's keyboard."""
    page = await open_strip(open_page)
    control = page.locator("[data-latch=ControlLeft]")

    await tap(page, "More keys", "Ctrl", "Alt", "F4")
    await expect(control).to_have_attribute("aria-pressed", "false")
    await tap(page, "Ctrl")
    await expect(control).to_have_attribute("aria-pressed", "true")
    await page.keyboard.insert_text("as")

    await expect(control).to_have_attribute("aria-pressed", "false")
    await wait_for_strokes(session, "+Ctrl +Alt +F4 -F4 -Ctrl -Alt +Ctrl +A -A -Ctrl +S -S")


async def test_a_modifier_tapped_twice_is_held(session: Session, open_page: Open) -> None:
    """Until it is tapped once more."""
    page = await open_strip(open_page)

    await tap(page, "Alt", "Alt", "Tab", "Tab", "Alt")

    await wait_for_strokes(session, "+Alt +Tab -Tab +Tab -Tab -Alt")


async def test_a_tap_on_the_desktop_uses_a_latched_modifier(session: Session, open_page: Open) -> None:
    """As in Ctrl and a click."""
    page = await open_strip(open_page)

    await tap(page, "Ctrl")
    await page.locator("#screen canvas").tap()

    await wait_for_strokes(session, "+Ctrl -Ctrl")


# Input methods


async def compose(page: Page, *steps: str, commit: str) -> None:
    """As an input method does: what it shows on the way, then what was meant."""
    cdp = await page.context.new_cdp_session(page)
    for text in steps:
        await cdp.send(
            "Input.imeSetComposition",
            {"text": text, "selectionStart": len(text), "selectionEnd": len(text)},
        )
    await cdp.send("Input.insertText", {"text": commit})


async def test_a_composed_word_goes_to_the_clipboard(session: Session, open_page: Open) -> None:
    """No key makes it; what was typed on the way is taken back, and nothing else is."""
    page = await open_strip(open_page)
    await page.keyboard.insert_text("a")

    await compose(page, "s", commit="是😀")

    await expect(page.locator("#toast")).to_have_text(
        "“是😀” is on none of the desktop\u2019s keys. It is in its clipboard: paste it there."
    )
    await page.keyboard.press("Backspace")
    await page.keyboard.press("Backspace")
    await page.keyboard.press("Backspace")
    await wait_for_strokes(session, "+A -A +S -S +Backspace -Backspace +Backspace -Backspace")
    await expect(page.locator("#clipboard-text")).to_have_value("是😀")


async def test_a_word_of_letters_is_typed_as_it_grows(session: Session, open_page: Open) -> None:
    """As phones' keyboards compose every word."""
    page = await open_strip(open_page)

    await compose(page, "a", "as", commit="as1")

    await wait_for_strokes(session, "+A -A +S -S +1 -1")


async def test_what_may_not_be_copied_is_left_out(session: Session, open_page: Open) -> None:
    """And the page says so."""
    session.people = people(copies_in=False)
    page = await open_strip(open_page)

    await page.keyboard.insert_text("é")

    await expect(page.locator("#toast")).to_have_text(
        "“é” is on none of the desktop\u2019s keys. It was left out."
    )


# Fingers


async def touch(page: Page, *phases: list[tuple[int, int]], hold_s: float = 0.0) -> None:
    """Put fingers down at the first places, move them to the others, and lift them."""
    cdp = await page.context.new_cdp_session(page)
    for number, places in enumerate(phases):
        await cdp.send(
            "Input.dispatchTouchEvent",
            {
                "type": "touchMove" if number else "touchStart",
                "touchPoints": [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(places)],
            },
        )
    await asyncio.sleep(hold_s)
    await cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def pressed(session: Session) -> list[int]:
    """The buttons that went down, one after the other; 8 and 16 are the wheel."""
    masks = [data[1] for data in session.messages() if data[0] == 5]
    return [mask for before, mask in zip([0, *masks], masks, strict=False) if mask and mask != before]


async def wait_for_buttons(session: Session, *wanted: int) -> None:
    async with asyncio.timeout(10):
        while len(pressed(session)) < len(wanted):
            await asyncio.sleep(0.02)
    assert set(pressed(session)) == set(wanted)


@pytest.mark.parametrize(
    ("phases", "hold_s", "button"),
    [
        ([[(200, 400)]], 0.0, LEFT),
        ([[(200, 400)]], 1.3, RIGHT),  # noVNC takes a second for a long one
        ([[(200, 400), (260, 400)]], 0.0, RIGHT),
        ([[(200, 400)], [(200, 460)], [(200, 500)]], 0.0, LEFT),
    ],
    ids=["tap", "long press", "two fingers", "drag"],
)
async def test_fingers_press_buttons(
    session: Session, open_page: Open, phases: list[Any], hold_s: float, button: int
) -> None:
    page = await open_page(**PHONE)

    await touch(page, *phases, hold_s=hold_s)

    await wait_for_buttons(session, button)


@pytest.mark.parametrize(("step", "wheel"), [(-1, DOWN), (1, UP)])
async def test_two_fingers_scroll(session: Session, open_page: Open, step: int, wheel: int) -> None:
    """The page under them as on a phone: fingers that go up move it up."""
    page = await open_page(**PHONE)
    ways = [[(150, 400 + step * way), (230, 400 + step * way)] for way in range(0, 300, 30)]

    await touch(page, *ways, hold_s=0.2)

    await wait_for_buttons(session, wheel)


async def test_a_pinch_zooms(session: Session, open_page: Open) -> None:
    """As Ctrl and the wheel do in most programs; no key stays down."""
    page = await open_page(**PHONE)
    ways = [[(190 - way, 400), (210 + way, 400)] for way in range(0, 150, 15)]

    await touch(page, *ways, hold_s=0.2)

    await wait_for_buttons(session, UP)
    assert strokes(session).split()[0] == "+Ctrl"
    assert strokes(session).split()[-1] == "-Ctrl"


# The view


async def open_view(page: Page) -> None:
    await page.locator("#view-button").click()
    await expect(page.locator("#view-menu")).to_be_visible()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (True, "The desktop does not follow this window, so it is scaled."),
        (False, "The desktop\u2019s size is set elsewhere, so it is scaled here."),
    ],
)
async def test_the_view_says_why_it_does_not_match(
    session: Session, open_page: Open, sizes: bool, words: str
) -> None:
    """It is scaled then; the other choices need no reason."""
    session.people = people(sizes=sizes)
    page = await open_page()

    await open_view(page)

    await expect(page.locator("#scale-why")).to_have_text(words)
    box = await page.locator("#screen canvas").bounding_box()
    assert box and box["width"] > 640
    await page.get_by_label("Scale to fit").check()
    await expect(page.locator("#scale-why")).to_have_text("")


async def test_who_is_to_set_the_size_later_asks_for_it_then(session: Session, open_page: Open) -> None:
    """What the relay dropped before is not waited for."""
    session.people = people(sizes=False)
    page = await open_page(init_script=NOTE_MESSAGES)
    await page.wait_for_function("() => sent.length > 5")
    await page.evaluate("sent.length = 0")

    session.listeners[0].tell(people=people())

    await page.wait_for_function("() => sent.some(([kind]) => kind === 251)")


async def test_the_view_shows_how_good_the_connection_is(session: Session, open_page: Open) -> None:
    """Each second, while it is open."""
    session.people = people()
    page = await open_page()
    await open_view(page)

    await expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms$"))
    await page.evaluate(
        """() => {
            const canvas = document.querySelector("#screen canvas");
            window.typing = setInterval(() => {
                for (const type of ["keydown", "keyup"]) {
                    canvas.dispatchEvent(new KeyboardEvent(type, { key: "a", code: "KeyA" }));
                }
            }, 100);
        }"""
    )
    await expect(page.locator("#updates")).to_have_text(re.compile(r"^[1-9]\d* per second$"))
    await expect(page.locator("#received")).to_have_text(re.compile(r"^[\d.]+ [kM]B/s$"))


async def test_levels_are_sent_and_remembered(session: Session, open_page: Open) -> None:
    """As RFB's pseudo-encodings; nonsense in the browser's storage is not used."""
    nonsense = """localStorage["qemuspawner.view"] ??= '{"compression": 77, "quality": 9}';"""
    page = await open_page(init_script=NOTE_MESSAGES + nonsense)
    await open_view(page)
    await expect(page.get_by_label("Compression")).to_have_value("2")
    await expect(page.get_by_label("Picture quality")).to_have_value("6")

    await page.get_by_label("Compression").fill("9")
    await page.get_by_label("Picture quality").fill("1")
    last = await page.evaluate("sent.filter(([kind]) => kind === 2).at(-1)")
    await page.reload()

    encodings = struct.unpack(f">{(len(last) - 4) // 4}i", bytes(last[4:]))
    assert {-256 + 9, -32 + 1} < set(encodings)
    await open_view(page)
    await expect(page.get_by_label("Compression")).to_have_value("9")
    await expect(page.get_by_label("Picture quality")).to_have_value("1")
