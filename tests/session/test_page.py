"""The desktop page in Debian's Chromium: the real page, relay and QEMU; a stand-in for the session's API."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from chromium import read_download
from files_app import Served, serve_files
from guests import GREEN, RED
from jupyterhub.slugs import is_valid_safe_slug
from local_agent import local_agent, names_in
from msgspec import structs
from pages import (  # noqa: F401
    Open,
    Session,
    browser,
    bundle,
    colour,
    hurry,
    open_page,
    session,
    vnc_socket,
    wait_for_colour,
)
from PIL import Image
from playwright.async_api import Locator, Page, Route, expect

from qemuspawner.session.screen.visitors import CloseCode
from qemuspawner.spec import Extension, StaffMessage, Step

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = """</script><img src=x onerror="document.title='owned'">'"{{7*7}}&amp;"""
TO_TOOLS = "Control+Alt+Shift+KeyM"


async def test_the_page_shows_the_desktop_and_passes_keys_on(session: Session, open_page: Open) -> None:
    """Connected in one step, the keyboard is the desktop's, and a key changes the picture."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.keyboard.press("a")

    assert await wait_for_colour(page, RED if before == GREEN else GREEN) != before
    assert session.inputs > 0


async def test_a_hostile_name_is_only_text(session: Session, open_page: Open) -> None:
    """In the title, in the bar and in the configuration."""
    session.title = session.machine = HOSTILE

    page = await open_page()

    assert await page.title() == HOSTILE
    assert await page.locator("#title").text_content() == HOSTILE
    assert await page.locator("img").count() == 0


async def test_everything_can_be_done_without_a_mouse(session: Session, open_page: Open) -> None:
    """A chord leads to the tools, arrows along them, Enter into a menu, Escape back in steps."""
    page = await open_page()
    await page.keyboard.press(TO_TOOLS)
    await expect(page.locator("#home")).to_be_focused()

    await page.locator("#view-button").focus()
    await page.keyboard.press("ArrowLeft")
    await expect(page.locator("#keys-button")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#keys-menu")).to_be_visible()
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("[data-chord='AltLeft Tab']")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#keys-menu")).to_be_hidden()
    await expect(page.locator("#keys-button")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_every_tool_has_a_name(open_page: Open) -> None:
    """For a screen reader; icons alone say nothing."""
    page = await open_page()

    names = await page.locator("#bar button:visible, #bar a:visible").evaluate_all(
        "all => all.map(one => one.textContent.trim())"
    )

    assert "" not in names
    assert {
        "Back to the hub",
        "Clipboard",
        "Send keys",
        "View",
        "Full screen",
        "Checkpoints",
        "Power",
        "Help",
    } <= set(names)


async def test_a_menu_sends_a_chord(session: Session, open_page: Open) -> None:
    """And gives the keyboard back to the desktop."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.locator("#keys-button").click()
    await page.get_by_role("button", name="Esc", exact=True).click()

    await wait_for_colour(page, RED if before == GREEN else GREEN)
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_a_text_is_typed_as_keys(session: Session, open_page: Open) -> None:
    """For machines without a clipboard; three keys are an odd number of colours."""
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.locator("#clipboard-button").click()
    await page.locator("#clipboard-text").fill("a1b")
    await page.locator("#clipboard-type").click()

    await wait_for_colour(page, RED if before == GREEN else GREEN)


async def test_the_page_comes_back_after_a_lost_connection(session: Session, open_page: Open) -> None:
    """With a fresh ticket, by itself."""
    page = await open_page()

    await session.relay.close_all(CloseCode.UNREACHABLE, "The desktop ended the connection.")

    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await wait_for_colour(page, GREEN, RED)
    assert len(set(session.opened)) == 2


async def test_the_end_is_told_with_its_reason(session: Session, open_page: Open) -> None:
    """And leads back to the hub."""
    page = await open_page()

    await session.relay.close_all(CloseCode.ENDED, "The time was over.")

    await expect(page.locator("#notice-title")).to_have_text("This session has ended")
    await expect(page.locator("#notice-text")).to_have_text("The time was over.")
    await page.keyboard.press("Enter")
    await expect(page).to_have_title("Hub")


@pytest.mark.parametrize(
    ("answer", "title"),
    [(403, "You are logged out"), (404, "This session has ended")],
)
async def test_a_lost_login_and_a_lost_session_are_told_apart(
    session: Session, open_page: Open, answer: int, title: str
) -> None:
    """By what the status request is answered."""
    page = await open_page(has_clock=True)
    session.answer = answer

    await session.relay.close_all(CloseCode.UNREACHABLE, "")

    await hurry(page, expect(page.locator("#notice-title")).to_have_text(title, timeout=20_000))


async def test_a_desktop_that_has_left_is_no_lost_login(session: Session, open_page: Open) -> None:
    """The hub sends its status astray and forbids its ticket; then it shows what there is."""
    page = await open_page(has_clock=True)
    session.answer = 302

    await session.relay.close_all(CloseCode.UNREACHABLE, "")

    await hurry(page, expect(page).to_have_title("Hub", timeout=20_000))


async def test_a_failure_shows_message_and_hint(session: Session, open_page: Open) -> None:
    """As the supervisor wrote them."""
    session.state, session.message = "failed", "The disk is full."
    session.hint = "Ask for a larger one."

    page = await open_page(connected=False)

    await expect(page.locator("#notice-text")).to_have_text("The disk is full.")
    await expect(page.locator("#notice-hint")).to_have_text("Ask for a larger one.")


async def test_the_way_to_the_desktop_is_shown(session: Session, open_page: Open) -> None:
    """Steps and progress until there is a picture, then the picture."""
    session.state, session.progress = "preparing", 40
    session.steps = (Step(at=0.1, text="The disk is made"), Step(at=0.4, text="QEMU starts"))
    page = await open_page(connected=False)
    await expect(page.locator("#notice-steps li")).to_have_count(2)
    await expect(page.locator("#notice-progress")).to_have_js_property("value", 40)

    session.state = "running"

    await expect(page.locator("#notice")).to_be_hidden()
    await wait_for_colour(page, GREEN, RED)


async def test_the_end_is_announced_and_can_be_put_off(session: Session, open_page: Open) -> None:
    """By the session's clock; ten minutes before, with a button."""
    session.left_s = 9 * 60
    page = await open_page()
    await expect(page.locator("#time-left")).to_have_text(re.compile(r"^8:5\d$"))
    await expect(page.locator("#banner")).to_have_attribute("data-level", "warning")

    await page.locator("#banner-action").click()

    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#time-left")).to_have_text("2 h 29 min")
    await expect(page.locator("#extend")).to_have_text("Ask for more time")
    assert session.requests[-1] == ("extend", {})


async def test_more_than_the_longest_lifetime_is_asked_for_with_a_reason(
    session: Session, open_page: Open
) -> None:
    """The button asks, the page says that it was asked and what was answered, whatever the words are."""
    session.left_s = session.max_left_s = 3600
    page = await open_page()

    await page.locator("#extend").click()
    await page.get_by_label("What do you need it for?").fill("The fit needs a night.")
    await page.locator("#ask-yes").click()

    await expect(page.locator("#more-time-text")).to_have_text(
        re.compile("^alice asks .* for 2 h more: The fit needs a night.$")
    )
    await expect(page.locator("#extend")).to_be_hidden()
    await expect(page.locator("#more-time-grant")).to_be_hidden()
    assert session.actions()[-1] == ("extend", {"reason": "The fit needs a night."})

    assert session.extension is not None
    session.extension = structs.replace(
        session.extension, answer="refused", answered_by=HOSTILE, comment="Not on a Friday."
    )
    await page.reload()
    await expect(page.locator("#more-time-text")).to_have_text(
        f"{HOSTILE} has refused more time. Not on a Friday."
    )
    await page.locator("#more-time-close").click()
    await expect(page.locator("#more-time")).to_be_hidden()


async def test_what_the_administrators_say_is_shown_as_text_until_it_is_hidden(
    session: Session, open_page: Open
) -> None:
    session.staff_message = StaffMessage(by="root", text=HOSTILE, at=0)
    page = await open_page()
    await expect(page.locator("#staff-message-text")).to_have_text(
        f"From the administrators (root): {HOSTILE}"
    )

    await page.locator("#staff-message").get_by_role("button", name="Hide").click()

    await expect(page.locator("#staff-message")).to_be_hidden()
    assert await page.title() != "owned"


async def test_what_the_administrators_say_again_is_shown_again(session: Session, open_page: Open) -> None:
    session.staff_message = StaffMessage(by="root", text="Save your work.", at=0, number=1)
    page = await open_page()
    await page.locator("#staff-message").get_by_role("button", name="Hide").click()
    await expect(page.locator("#staff-message")).to_be_hidden()

    session.staff_message = structs.replace(session.staff_message, number=2)

    await expect(page.locator("#staff-message")).to_be_visible(timeout=20_000)


async def test_the_owner_reads_how_the_start_script_ended_and_what_it_wrote(
    session: Session, open_page: Open
) -> None:
    """Also while the menu is open; it is only text, and those who share the desktop are not shown it."""
    session.script = {"state": "running", "code": None, "output": ""}
    page = await open_page()
    await page.get_by_role("button", name="Start script").click()
    await expect(page.locator("#script-end")).to_have_text("It is running.")
    await expect(page.locator("#script-output")).to_be_hidden()

    session.script = {"state": "failed", "code": 3, "output": f"one\n{HOSTILE}\n"}
    await page.get_by_role("button", name="Start script").click()
    await page.get_by_role("button", name="Start script").click()

    await expect(page.locator("#script-end")).to_have_text("It failed with exit code 3.")
    assert await page.locator("#script-output").text_content() == f"one\n{HOSTILE}\n"
    assert await page.title() != "owned"
    session.role = "control"
    other = await open_page()
    await expect(other.get_by_role("button", name="Start script")).to_be_hidden()


async def test_the_owner_reads_that_a_boot_has_interrupted_the_start_script(
    session: Session, open_page: Open
) -> None:
    session.script = {"state": "interrupted", "code": None, "output": ""}
    page = await open_page()

    await page.get_by_role("button", name="Start script").click()

    await expect(page.locator("#script-end")).to_have_text("It was interrupted, as the machine booted anew.")


async def test_a_desktop_without_a_script_has_no_menu_for_it(open_page: Open) -> None:
    page = await open_page()

    await expect(page.locator("#script-button")).to_be_hidden()


async def test_staff_answer_who_asks_for_more_time(session: Session, open_page: Open) -> None:
    session.role, session.is_staff = "control", True
    session.extension = Extension(by="bob", reason=HOSTILE, seconds=7200, at=0)
    page = await open_page()
    await expect(page.locator("#more-time-text")).to_contain_text(f"for 2 h more: {HOSTILE}")

    await page.locator("#more-time-grant").click()
    await page.get_by_label("A word to them, if you like").fill("Good luck")
    await page.locator("#ask-yes").click()

    await expect(page.locator("#more-time-text")).to_have_text("alice has granted 2 h more.")
    assert session.actions()[-1] == ("extension", {"grant": 7200, "comment": "Good luck"})
    assert await page.title() != "owned"


async def test_the_last_two_minutes_are_urgent(session: Session, open_page: Open) -> None:
    """And what cannot be put off says so."""
    session.left_s = session.max_left_s = 100

    page = await open_page()

    await expect(page.locator("#banner")).to_have_attribute("data-level", "urgent")
    await expect(page.locator("#banner-text")).to_contain_text("Save your work now.")
    await expect(page.locator("#banner-action")).to_have_text("Ask for more time")


async def test_an_idle_desktop_asks_whether_somebody_is_there(session: Session, open_page: Open) -> None:
    """The answer counts as input and reaches no guest."""
    session.idle_left_s = 60
    page = await open_page()
    await expect(page.locator("#banner-text")).to_contain_text("Nobody has used this desktop")
    before = session.inputs
    session.idle_left_s = 3600

    await page.locator("#banner-action").click()

    await expect(page.locator("#banner")).to_be_hidden()
    assert session.inputs > before


@pytest.mark.parametrize(
    ("answer", "sent"), [("Cancel", []), ("Force off", [("power", {"action": "poweroff"})])]
)
async def test_power_is_asked_twice(
    session: Session, open_page: Open, answer: str, sent: list[tuple[str, Any]]
) -> None:
    """Only a confirmed wish is sent."""
    page = await open_page()
    await page.locator("#power-button").click()
    await page.locator("[data-power=poweroff]").click()

    await page.locator("#confirm").get_by_role("button", name=answer).click()

    await expect(page.locator("#confirm")).to_be_hidden()
    await expect(page.locator("#screen canvas")).to_be_focused()
    assert session.actions() == sent


@pytest.mark.parametrize("action", ["shutdown", "poweroff"])
@pytest.mark.parametrize(
    ("obstacle", "words"),
    [("", "is deleted. To keep it as it is, choose Suspend."), ("It has an NVMe disk.", "is deleted.")],
)
async def test_an_end_says_what_it_deletes(
    session: Session, open_page: Open, action: str, obstacle: str, words: str
) -> None:
    """And how to keep it, where that can be."""
    session.suspend_obstacle = obstacle
    page = await open_page()
    await page.locator("#power-button").click()

    await page.locator(f"[data-power={action}]").click()

    await expect(page.locator("#confirm-text")).to_have_text(
        re.compile(rf"\. Everything on it that is not in a checkpoint {re.escape(words)}$")
    )
    await expect(page.locator("#confirm-yes")).to_have_class("danger")


async def test_a_viewer_gets_no_tools_that_act(session: Session, open_page: Open) -> None:
    """The relay would drop what they send anyway."""
    session.role = "view"
    page = await open_page()
    before = await wait_for_colour(page, GREEN, RED)

    await page.keyboard.press("a")

    for name in ("clipboard-button", "keys-button", "checkpoints-button", "power-button", "extend"):
        await expect(page.locator(f"#{name}")).to_be_hidden()
    await expect(page.locator("#connection-text")).to_have_text("View only")
    assert await colour(page) == before
    assert session.inputs == 0


async def test_a_web_tool_opens_in_a_tab_of_its_own(session: Session, open_page: Open) -> None:
    """Which has no hold of the desktop's page; that one gets its keyboard back."""
    session.web_tools = {"names": ["terminal", "jupyter-lab"], "least": "control"}
    page = await open_page()
    await page.locator("#ports-button").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name="Terminal")).to_be_focused()

    async with page.expect_popup() as opening:
        await page.get_by_role("link", name="Jupyter lab").click()
    tab = await opening.value

    assert tab.url == session.url + "proxy/jupyter-lab/"
    assert await tab.evaluate("window.opener") is None
    await expect(page.locator("#ports-menu")).to_be_hidden()
    await expect(page.locator("#screen canvas")).to_be_focused()


async def test_web_tools_are_offered_to_those_who_may(session: Session, open_page: Open) -> None:
    session.web_tools = {"names": ["terminal"], "least": "control"}
    session.role = "view"

    page = await open_page()

    await expect(page.locator("#ports-button")).to_be_hidden()


async def test_a_machine_without_web_tools_has_no_menu_of_them(session: Session, open_page: Open) -> None:
    page = await open_page()

    await expect(page.locator("#ports-button")).to_have_count(0)


async def test_a_third_window_lets_the_first_one_go(session: Session, open_page: Open) -> None:
    """Which says so, and takes the desktop back only when asked."""
    first = await open_page()
    for _ in range(2):
        await open_page()
    await expect(first.locator("#notice-title")).to_have_text("Open in another window")

    await first.get_by_role("button", name="Use it here").click()

    await expect(first.locator("body")).to_have_attribute("data-phase", "connected")


async def test_the_screenshot_is_the_desktops_picture(open_page: Open) -> None:
    """Of its own size, not the window's."""
    page = await open_page()
    await wait_for_colour(page, GREEN, RED)

    async with page.expect_download() as downloading:
        await page.locator("#screenshot").click()

    download = await downloading.value
    assert download.suggested_filename.startswith("Analysis-")
    assert Image.open(io.BytesIO(await read_download(download))).size == (640, 400)


async def test_the_view_can_be_changed_and_is_remembered(session: Session, open_page: Open) -> None:
    """Scaled to the window, or pixel for pixel."""
    page = await open_page()
    await wait_for_colour(page, GREEN, RED)
    fitted = await page.locator("#screen canvas").bounding_box()

    await page.locator("#view-button").click()
    await page.get_by_label("Actual size").check()
    actual = await page.locator("#screen canvas").bounding_box()
    await page.reload()

    assert fitted and actual
    assert (fitted["width"] > 640, actual["width"]) == (True, 640)
    await expect(page.locator("[value=actual]")).to_be_checked()


async def test_full_screen_and_back(open_page: Open) -> None:
    """By keyboard too."""
    page = await open_page()

    await page.keyboard.press("Control+Alt+Shift+KeyF")
    await expect(page.locator("#fullscreen")).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("Control+Alt+Shift+KeyF")

    await expect(page.locator("#fullscreen")).to_have_attribute("aria-pressed", "false")


async def test_a_phone_folds_the_tools_and_can_type(session: Session, open_page: Open) -> None:
    """All tools in one sheet; its own keyboard writes to the desktop."""
    phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
    page = await open_page(**phone)
    before = await wait_for_colour(page, GREEN, RED)
    await expect(page.locator("#power-button")).to_be_hidden()

    await page.locator("#fold").tap()
    await expect(page.locator("#power-button")).to_be_visible()
    await page.locator("#keyboard").tap()
    await page.keyboard.insert_text("x")

    await wait_for_colour(page, RED if before == GREEN else GREEN)
    assert await page.evaluate("document.documentElement.scrollWidth") == 390


# The first connection


async def test_the_page_brings_what_it_needs_to_connect(session: Session, open_page: Open) -> None:
    """The websocket is opened without another request."""
    await open_page()

    assert (session.statuses, session.opened) == (0, ["T0"])


@pytest.mark.parametrize("brings_ticket", [True, False])
async def test_a_ticket_that_is_of_no_use_is_replaced(
    session: Session, open_page: Open, brings_ticket: bool
) -> None:
    """Used up, or not there: the page asks for another one."""
    session.brings_ticket = brings_ticket
    session.forgets_first_ticket = brings_ticket

    page = await open_page()

    await wait_for_colour(page, GREEN, RED)
    assert session.opened == ["T1" if brings_ticket else "T0"]


# Checkpoints


async def open_checkpoints(page: Page, *, count: int) -> None:
    await page.locator("#checkpoints-button").click()
    await expect(page.locator("#checkpoint-list li")).to_have_count(count)


async def test_a_checkpoint_is_saved_with_its_title(session: Session, open_page: Open) -> None:
    """By keyboard; the list shows it, and the keyboard stays where it was."""
    page = await open_page()
    await page.locator("#checkpoints-button").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#checkpoint-save")).to_be_focused()
    await expect(page.locator("#checkpoint-none")).to_be_visible()

    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Title", exact=True)).to_be_focused()
    await page.keyboard.type(" Before the update ")
    await page.keyboard.press("Enter")

    await expect(page.locator("#checkpoint-list .title")).to_have_text(["Before the update"])
    await expect(page.locator("#checkpoint-note")).to_have_text("The checkpoint is saved.")
    await expect(page.locator("#checkpoint-save")).to_be_focused()
    assert session.actions() == [("save", {"title": "Before the update"})]


async def test_a_refused_checkpoint_says_why(session: Session, open_page: Open) -> None:
    """Message and hint, where the wish was made."""
    session.refusal = (409, "Your checkpoints take 20 GiB.", "Delete some of them first.")
    page = await open_page()
    await open_checkpoints(page, count=0)

    await page.locator("#checkpoint-save").click()
    await page.locator("#ask-yes").click()

    await expect(page.locator("#checkpoint-note")).to_have_text(
        "Your checkpoints take 20 GiB. Delete some of them first."
    )


async def test_the_list_tells_what_is_kept(session: Session, open_page: Open) -> None:
    """Titles as text, whatever they hold; pictures that load, and a frame where there is none."""
    session.add_checkpoint("", automatic=True, age_s=90_000, size_bytes=700 << 20, expires_in_s=0)
    session.add_checkpoint(HOSTILE)
    page = await open_page()

    await open_checkpoints(page, count=2)

    await expect(page.locator("#checkpoint-list .title")).to_have_text([HOSTILE, "Automatic"])
    await expect(page.locator("#checkpoint-list .facts")).to_have_text(
        ["5 min ago · 1.4 GiB · kept for 13 d", "1 d ago · 700 MiB"]
    )
    await expect(page.locator("#checkpoint-list img")).to_have_count(1)
    await expect(page.locator("#checkpoint-list img")).to_have_js_property("naturalWidth", 640)
    await expect(page.locator("#checkpoint-count")).to_have_text("2 of 3")
    assert await page.title() == "Analysis"


async def test_a_full_list_asks_to_delete(session: Session, open_page: Open) -> None:
    """Confirmed, one goes, and the keyboard is at the next one."""
    first, second, third = (session.add_checkpoint(title) for title in ("one", "two", "three"))
    page = await open_page()
    await open_checkpoints(page, count=3)
    await expect(page.locator("#checkpoint-why")).to_have_text(
        "All 3 are in use: delete one to save another."
    )
    await expect(page.locator("#checkpoint-save")).to_have_attribute("aria-disabled", "true")

    await page.get_by_role("button", name="Delete: two, 5 min ago").click()
    await page.locator("#confirm").get_by_role("button", name="Cancel").click()
    await page.get_by_role("button", name="Delete: two, 5 min ago").click()
    await page.locator("#confirm").get_by_role("button", name="Delete").click()

    await expect(page.locator("#checkpoint-list .title")).to_have_text(["three", "one"])
    await expect(page.get_by_role("button", name="Delete: one, 5 min ago")).to_be_focused()
    await expect(page.locator("#checkpoint-save")).to_have_attribute("aria-disabled", "false")
    assert session.actions() == [(f"delete {second}", {})]
    assert {first, third} == {one["name"] for one in session.checkpoints}


async def test_going_back_says_what_it_does_and_comes_back(session: Session, open_page: Open) -> None:
    """One notice from the question until the desktop is there again."""
    name = session.add_checkpoint("Fresh")
    session.gate.clear()
    page = await open_page()
    await open_checkpoints(page, count=1)
    await page.get_by_role("button", name="Go back: Fresh, 5 min ago").click()
    await expect(page.locator("#confirm-text")).to_contain_text("As it is now, it is saved first")

    await page.locator("#confirm-yes").click()
    await expect(page.locator("#notice-title")).to_have_text("Going back to “Fresh”")
    await expect(page.locator("#checkpoints-menu")).to_be_hidden()
    async with page.expect_response(f"**/checkpoints/{name}"):
        session.gate.set()
    await session.relay.close_all(CloseCode.UNREACHABLE, "The desktop ended the connection.")

    await expect(page.locator("#toast")).to_have_text("The desktop is back at “Fresh”.")
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("#screen canvas")).to_be_focused()
    assert session.actions() == [(f"back to {name}", {})]


async def test_who_cannot_go_back_stays(session: Session, open_page: Open) -> None:
    """With message and hint, and the desktop as it was."""
    session.add_checkpoint("Fresh")
    session.refusal = (409, "There is no such checkpoint.", "It was deleted, or has expired.")
    page = await open_page()
    await open_checkpoints(page, count=1)

    await page.get_by_role("button", name="Go back").click()
    await page.locator("#confirm-yes").click()

    await expect(page.locator("#toast")).to_have_text(
        "There is no such checkpoint. It was deleted, or has expired."
    )
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")


@pytest.mark.parametrize("bad", ["No Name", "2nd", "-try", "try-", "second--try", "tríal"])
async def test_a_branch_has_a_name_that_the_hub_accepts(session: Session, open_page: Open, bad: str) -> None:
    """JupyterHub's own rule, before anybody leaves the desktop for an error."""
    session.add_checkpoint("Fresh")
    page = await open_page()
    await open_checkpoints(page, count=1)
    await page.get_by_role("button", name="Branch: Fresh").click()

    await page.get_by_label("Name of the new desktop").fill(bad)
    await page.keyboard.press("Enter")

    await expect(page.locator("#ask-input")).to_have_attribute("aria-invalid", "true")
    await expect(page.locator("#ask-input")).to_have_attribute("maxlength", "30")
    assert not is_valid_safe_slug(bad)


async def test_a_branch_is_a_new_server_of_the_hub(session: Session, open_page: Open) -> None:
    """Its name is asked for here, all else by the hub's form."""
    name = session.add_checkpoint("Fresh")
    page = await open_page()
    await open_checkpoints(page, count=1)
    await page.get_by_role("button", name="Branch: Fresh").click()

    await page.get_by_label("Name of the new desktop").fill("second-try")
    await page.keyboard.press("Enter")

    await expect(page).to_have_title("Hub")
    assert page.url.endswith(f"/hub/spawn/alice/second-try?opt-branch=desk%2F{name}")


# Sleep


async def choose_suspend(page: Page) -> None:
    await page.locator("#power-button").click()
    await page.get_by_role("button", name="Suspend").click()


async def test_a_desktop_is_put_to_sleep_and_woken(session: Session, open_page: Open) -> None:
    """The page shows that it is being saved, that it sleeps, and turns to the hub when that knows it."""
    session.gate.clear()
    page = await open_page()
    await choose_suspend(page)
    await expect(page.locator("#notice-title")).to_have_text("Saving…")
    session.state, session.message = "suspended", "alice has put the desktop to sleep."
    session.gate.set()
    await session.relay.close_all(CloseCode.ASLEEP, "alice has put the desktop to sleep.")
    await expect(page.locator("#notice-title")).to_have_text("The desktop is asleep")
    await expect(page.get_by_role("button", name="Wake it")).to_be_focused()
    assert session.actions() == [("suspend", {})]

    await page.keyboard.press("Enter")
    await expect(page.locator("#notice-title")).to_have_text("Waking the desktop")
    async with page.expect_response(lambda response: response.status == 503):
        session.answer = 503  # it has left, and the hub has not noticed
    await expect(page.locator("#notice-title")).to_have_text("Waking the desktop")
    session.answer = 302

    await expect(page).to_have_title("Hub")


async def test_a_desktop_that_cannot_be_saved_goes_on(session: Session, open_page: Open) -> None:
    """With message and hint."""
    session.refusal = (503, "The desktop could not be saved: No space left.", "It goes on.")
    page = await open_page()

    await choose_suspend(page)

    await expect(page.locator("#toast")).to_have_text(
        "The desktop could not be saved: No space left. It goes on."
    )
    await expect(page.locator("#notice")).to_be_hidden()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await expect(page.locator("#screen canvas")).to_be_focused()


@pytest.mark.parametrize(("role", "action"), [("owner", "Wake it"), ("control", "Look again")])
async def test_a_desktop_that_fell_asleep_says_why(
    session: Session, open_page: Open, role: str, action: str
) -> None:
    """Only its owner can wake it."""
    session.role = role
    page = await open_page()

    await session.relay.close_all(CloseCode.ASLEEP, "Nobody used the desktop for 2 h.")

    await expect(page.locator("#notice-title")).to_have_text("The desktop is asleep")
    await expect(page.locator("#notice-text")).to_have_text("Nobody used the desktop for 2 h.")
    await expect(page.locator("#notice-actions > *")).to_have_text([action, "Back to the hub"])


async def test_a_machine_that_stops_while_it_is_saved_is_not_lost(session: Session, open_page: Open) -> None:
    """Its connection ends before its session can say goodbye."""
    page = await open_page()
    session.state = "suspending"
    await session.relay.close_all(CloseCode.UNREACHABLE, "The desktop ended the connection.")
    await expect(page.locator("#notice-title")).to_have_text("Saving…")

    session.state, session.message = "suspended", "Nobody used the desktop for 2 h."

    await expect(page.locator("#notice-title")).to_have_text("The desktop is asleep")


@pytest.mark.parametrize("cause", ["idle", "lifetime", "stop"])
@pytest.mark.parametrize("answer", [302, 404])
async def test_a_forgotten_page_does_not_wake_the_desktop(
    session: Session, open_page: Open, cause: str, answer: int
) -> None:
    """It was away when the desktop fell asleep; the hub's page would wake it at once."""
    session.suspends = (cause,)
    page = await open_page(has_clock=True)
    session.answer = answer

    await session.relay.close_all(CloseCode.UNREACHABLE, "")

    sentence = "It may have fallen asleep while this page was away."
    await hurry(page, expect(page.locator("#notice-text")).to_have_text(sentence, timeout=20_000))
    session.answer = 302
    await page.get_by_role("button", name="Open it again").click()
    await expect(page).to_have_title("Hub")


async def test_a_late_failure_does_not_stir_a_sleeping_desktop(session: Session, open_page: Open) -> None:
    """What was asked before the desktop fell asleep changes nothing any more."""
    held: list[Route] = []
    session.gate.clear()
    page = await open_page()
    await choose_suspend(page)
    await page.route("**/api/status", lambda route: held.append(route))
    async with page.expect_request("**/api/status"):
        await session.relay.close_all(CloseCode.UNREACHABLE, "The desktop ended the connection.")
    session.gate.set()
    await expect(page.locator("#notice-title")).to_have_text("The desktop is asleep")

    async with page.expect_event("requestfailed"):
        for route in held:
            await route.abort()
    # An answer that comes after it.
    await page.evaluate("() => fetch('').then((response) => response.text())")

    await expect(page.locator("body")).to_have_attribute("data-phase", "over")
    assert await page.locator("#notice-title").text_content() == "The desktop is asleep"


async def test_what_keeps_a_desktop_from_sleeping_is_said(session: Session, open_page: Open) -> None:
    """In the menus, before anybody tries; what exists can still be deleted."""
    session.suspend_obstacle = "A machine with an NVMe disk cannot be saved."
    session.add_checkpoint("Old")
    page = await open_page()

    await page.locator("#power-button").click()
    await expect(page.locator("#suspend")).to_be_disabled()
    await expect(page.locator("#suspend")).to_have_attribute("title", session.suspend_obstacle)
    await expect(page.locator("#suspend-about")).to_have_text(session.suspend_obstacle)
    await open_checkpoints(page, count=1)

    await expect(page.locator("#checkpoint-why")).to_have_text(session.suspend_obstacle)
    await expect(page.locator("#checkpoint-save")).to_have_attribute("aria-disabled", "true")
    await expect(page.locator("[data-do=go-back]")).to_be_disabled()
    await expect(page.locator("[data-do=delete]")).to_be_enabled()


@pytest.mark.parametrize("role", ["view", "control"])
async def test_only_the_owner_has_checkpoints_and_sleep(session: Session, open_page: Open, role: str) -> None:
    """They are the owner's disk and memory."""
    session.role = role

    page = await open_page()

    await expect(page.locator("#checkpoints-button")).to_be_hidden()
    await expect(page.locator("#power-button")).to_be_hidden()


@pytest.mark.parametrize(
    ("suspends", "obstacle", "fate", "advice"),
    [
        ((), "", "ends", "Save your work now."),
        (("lifetime",), "", "falls asleep", "Everything is kept as it is."),
        (("lifetime",), "No.", "shuts down", "Its disk is kept; save what is open now."),
        (("idle",), "", "ends", "Save your work now."),
    ],
)
async def test_the_warning_says_what_will_happen(
    session: Session, open_page: Open, suspends: tuple[str, ...], obstacle: str, fate: str, advice: str
) -> None:
    """Falling asleep is no reason to hurry."""
    session.suspends, session.suspend_obstacle = suspends, obstacle
    session.left_s = session.max_left_s = 100
    page = await open_page()
    level = "warning" if fate == "falls asleep" else "urgent"

    # A second is too short to be sure to see it.
    await expect(page.locator("#banner-text")).to_have_text(
        re.compile(rf"^This desktop {fate} in 1:3\d\. {re.escape(advice)}$")
    )
    await expect(page.locator("#banner")).to_have_attribute("data-level", level)


async def test_an_idle_desktop_may_fall_asleep(session: Session, open_page: Open) -> None:
    """And says so."""
    session.suspends, session.idle_left_s = ("idle",), 200

    page = await open_page()

    await expect(page.locator("#banner-text")).to_contain_text("It falls asleep in 3:")


@pytest.mark.parametrize(
    ("way", "why", "words"),
    [
        ("cold", "no template fits 3 CPUs", "This desktop was booted: no template fits 3 CPUs."),
        ("restored", "", "This desktop was restored from a template."),
        ("woken", "", "This desktop was woken."),
        ("", "", ""),
    ],
)
async def test_the_page_tells_how_the_desktop_came_up(
    session: Session, open_page: Open, way: str, why: str, words: str
) -> None:
    """At its name, and in the help."""
    session.way, session.why = way, why

    page = await open_page()

    await expect(page.locator("#name")).to_have_attribute("title", words)
    await page.locator("#help-button").click()
    await expect(page.locator("#help-way")).to_have_text(words)


async def test_the_help_says_what_becomes_of_the_desktop(session: Session, open_page: Open) -> None:
    """Where it falls asleep instead of ending."""
    session.suspends = ("idle", "lifetime", "stop")
    page = await open_page()

    await page.locator("#help-button").click()

    await expect(page.locator("#help-closing")).to_have_text(
        "Closing this page leaves the desktop running until its time is over; then it falls asleep, and is "
        "as you left it when you open it again. Suspend, in the power menu, puts it to sleep now. "
        "To end it, shut it down."
    )


async def test_checkpoints_fit_a_phone(session: Session, open_page: Open) -> None:
    """Nothing is wider than the screen."""
    session.add_checkpoint("A long title of a checkpoint " * 3)
    page = await open_page(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)

    await page.locator("#fold").tap()
    await open_checkpoints(page, count=1)

    assert await page.evaluate("document.documentElement.scrollWidth") == 400
    delete = await page.locator("[data-do=delete]").bounding_box()
    assert delete is not None
    assert delete["x"] + delete["width"] <= 400
    assert delete["height"] >= 36


# Files


@pytest_asyncio.fixture(loop_scope="module")
async def served(session: Session, tmp_path: Path) -> AsyncIterator[Served]:
    """The session's machine has a home: a folder of this host, by the real routes."""
    home = tmp_path / "home"
    (home / "Desktop").mkdir(parents=True)
    async with local_agent(tmp_path / "qga") as (_, agent), serve_files(tmp_path, agent, home) as served:
        session.files["has_home"] = True
        session.app.settings.update(
            {key: served.app.settings[key] for key in ("supervisor", "files", "audit", "people")}
        )
        yield served


# Files as somebody drags them in; Playwright has no such thing.
DRAG = """
([type, files]) => {
    const transfer = new DataTransfer();
    for (const [name, text] of files) transfer.items.add(new File([text], name));
    const target = document.querySelector("#screen canvas");
    target.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""


async def drop(page: Page, *files: tuple[str, str]) -> None:
    for type_ in ("dragover", "drop"):
        await page.evaluate(DRAG, [type_, files])


def uploads(page: Page) -> Locator:
    return page.get_by_role("region", name="Uploads")


async def open_files(page: Page) -> None:
    await page.get_by_role("button", name="Files", exact=True).click()
    await expect(page.locator("#files-menu")).to_be_visible()


async def test_files_are_offered_where_the_machine_has_a_home_and_to_who_may(
    session: Session, open_page: Open
) -> None:
    cases = [
        (False, "control", "control", "owner"),
        (True, "owner", "nobody", "control"),
        (True, "view", "view", "view"),
    ]
    seen = []
    for has_home, least_in, least_out, role in cases:
        session.files = {"has_home": has_home, "in": least_in, "out": least_out, "max_mib": 1}
        session.role = role
        page = await open_page()
        seen.append(await page.locator("#files").is_visible())

    assert seen == [False, False, True]


async def test_dropped_files_go_to_the_desktop_or_the_folder_that_is_shown(
    served: Served, open_page: Open
) -> None:
    page = await open_page()
    await page.evaluate(DRAG, ["dragover", [("a.txt", "1")]])
    await expect(page.get_by_text("Drop to upload to the desktop")).to_be_visible()
    await drop(page, ("a.txt", "1"), ("<img src=x onerror=alert(1)>", "22"))
    await expect(page.get_by_text("2 files were uploaded to the desktop.")).to_be_visible()
    await expect(page.locator("#drop")).to_be_hidden()
    await open_files(page)
    await expect(page.get_by_role("button", name="Desktop", exact=True)).to_be_visible()
    await page.evaluate(DRAG, ["dragover", [("a.txt", "1")]])
    await expect(page.get_by_text("Drop to upload to ~", exact=True)).to_be_visible()

    await drop(page, ("b.txt", "1"))

    await expect(page.get_by_role("link", name="b.txt")).to_be_visible()
    assert names_in(served.home / "Desktop") == ["<img src=x onerror=alert(1)>", "a.txt"]
    assert names_in(served.home) == ["Desktop", "b.txt"]


async def test_who_may_not_upload_drops_in_vain_and_keeps_the_page(
    session: Session, served: Served, open_page: Open
) -> None:
    session.files["in"] = "nobody"
    page = await open_page()

    await drop(page, ("a.txt", "1"))

    await expect(page.locator("#drop")).to_be_hidden()
    await expect(uploads(page)).to_be_hidden()
    assert names_in(served.home / "Desktop") == []


async def test_files_are_looked_at_and_downloaded_by_the_keyboard(served: Served, open_page: Open) -> None:
    (served.home / "Desktop" / "deep").mkdir()
    (served.home / "Desktop" / "deep" / "report ü.txt").write_text("content")
    (served.home / ".profile").touch()
    page = await open_page()
    await page.keyboard.press(TO_TOOLS)
    await page.get_by_role("button", name="Files", exact=True).focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Desktop")).to_be_visible()
    await expect(page.get_by_role("link", name=".profile")).to_have_count(0)
    await page.get_by_label("Show hidden files").press("Space")
    await expect(page.get_by_role("link", name=".profile")).to_be_visible()
    await page.get_by_role("button", name="Desktop").press("Enter")
    await page.get_by_role("button", name="deep").press("Enter")
    await expect(page.get_by_role("navigation", name="Folder")).to_have_text("HomeDesktopdeep")
    await expect(page.get_by_role("button", name="deep")).to_be_focused()
    await page.get_by_role("link", name="report ü.txt").focus()

    async with page.expect_download() as started:
        await page.keyboard.press("Enter")

    download = await started.value
    assert download.suggested_filename == "report ü.txt"
    assert await read_download(download) == b"content"
    await drop(page, ("new.txt", "1"))
    await expect(page.get_by_role("link", name="new.txt")).to_be_visible()
    await expect(page.get_by_role("link", name="report ü.txt")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Files", exact=True)).to_be_focused()


async def test_a_folder_is_made_and_a_bad_name_is_explained(served: Served, open_page: Open) -> None:
    page = await open_page()
    await open_files(page)
    await expect(page.get_by_role("button", name="Desktop")).to_be_visible()
    for name in ("new", "Desktop"):
        await page.get_by_role("button", name="New folder…").click()
        await page.get_by_label("Name", exact=True).fill(name)
        await page.get_by_role("button", name="Make").click()
        await expect(page.locator("#ask")).to_be_hidden()
        await expect(page.locator("#files-note")).not_to_have_text("")

    await expect(page.locator("#files-note")).to_have_text("'Desktop' exists already.")
    assert names_in(served.home) == ["Desktop", "new"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("Keep both", {"a.txt": "old", "a (2).txt": "1", "b.txt": "old", "b (2).txt": "2"}),
        ("Replace", {"a.txt": "1", "b.txt": "2"}),
        ("Skip", {"a.txt": "old", "b.txt": "old"}),
    ],
)
async def test_a_taken_name_is_asked_about_once_for_all(
    choice: str, expected: dict[str, str], served: Served, open_page: Open
) -> None:
    for name in ("a.txt", "b.txt"):
        (served.home / "Desktop" / name).write_text("old")
    page = await open_page()
    await drop(page, ("a.txt", "1"), ("b.txt", "2"))
    await expect(page.get_by_role("heading", name="“a.txt” exists already")).to_be_visible()

    await page.get_by_label("Do the same for the others").check()
    await page.get_by_role("button", name=choice).click()

    await expect(uploads(page).get_by_role("progressbar")).to_have_count(0)
    await expect(uploads(page).locator("[data-state=waiting], [data-state=running]")).to_have_count(0)
    assert {path.name: path.read_text() for path in (served.home / "Desktop").iterdir()} == expected


async def test_an_upload_survives_a_lost_connection_and_shows_how_it_goes(
    session: Session, served: Served, open_page: Open, tmp_path: Path
) -> None:
    data = os.urandom(6 << 20)
    (tmp_path / "data.bin").write_bytes(data)
    page = await open_page()
    parts = 0

    async def lose_the_second(route: Route) -> None:
        nonlocal parts
        is_part = route.request.method == "PATCH"
        parts += is_part
        await (route.abort("connectionreset") if is_part and parts == 2 else route.continue_())

    await page.route("**/api/files/uploads/*", lose_the_second)
    await page.locator("#files-input").set_input_files(tmp_path / "data.bin")

    await expect(uploads(page).get_by_text("Waiting for the connection")).to_be_visible()
    await expect(uploads(page).get_by_text("Done, 6.0 MiB")).to_be_visible(timeout=30_000)
    assert (served.home / "Desktop" / "data.bin").read_bytes() == data
    assert names_in(served.home / "Desktop") == ["data.bin"]


async def test_a_cancelled_upload_leaves_nothing(served: Served, open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(6 << 20))
    page = await open_page()
    await page.route("**/api/files/uploads/*", lambda route: hold_parts(route))
    await page.locator("#files-input").set_input_files(tmp_path / "data.bin")
    await expect(uploads(page).get_by_role("progressbar")).to_be_visible()

    await page.get_by_role("button", name="Cancel: data.bin").click()

    await expect(uploads(page).get_by_text("Cancelled")).to_be_visible()
    async with asyncio.timeout(10):
        while names_in(served.home / "Desktop"):
            await asyncio.sleep(0.05)


async def hold_parts(route: Route) -> None:
    """Parts never arrive."""
    if route.request.method != "PATCH":
        await route.continue_()


async def test_an_upload_goes_on_where_it_was_after_the_page_was_loaded_again(
    served: Served, open_page: Open, tmp_path: Path
) -> None:
    """As after a sleep: the same file is chosen once more."""
    data = os.urandom(3 << 20)
    (tmp_path / "data.bin").write_bytes(data)
    page = await open_page()
    await page.route("**/api/files/uploads/*", only_one_part())
    await page.locator("#files-input").set_input_files(tmp_path / "data.bin")
    await expect(uploads(page).get_by_text(re.compile(" of 3.0 MiB"))).to_be_visible()
    hidden = names_in(served.home / "Desktop")
    await page.unroute_all(behavior="ignoreErrors")
    await page.reload()
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected")
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")

    await page.locator("#files-input").set_input_files(tmp_path / "data.bin")

    await expect(uploads(page).get_by_text("Done, 3.0 MiB")).to_be_visible()
    assert len(hidden) == 1
    assert (served.home / "Desktop" / "data.bin").read_bytes() == data
    assert names_in(served.home / "Desktop") == ["data.bin"]


def only_one_part() -> Callable[[Route], Awaitable[None]]:
    parts = 0

    async def handle(route: Route) -> None:
        nonlocal parts
        parts += route.request.method == "PATCH"
        if parts <= 1:
            await route.continue_()

    return handle


async def test_a_refused_upload_says_why(served: Served, open_page: Open, tmp_path: Path) -> None:
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate((16 << 20) + 1)
    page = await open_page()
    await page.locator("#files-input").set_input_files(tmp_path / "large.bin")

    await expect(uploads(page).get_by_text("at most 16 MiB can be transferred")).to_be_visible()


# The keyboard


async def test_the_owners_layout_is_set_when_the_browser_is_sure_of_it(
    session: Session, open_page: Open
) -> None:
    """Chromium has a US keyboard here; the guest has none of ours."""
    session.keyboard = ""
    page = await open_page()

    await expect(page.locator("#keyboard-hint")).to_have_text("The desktop has: English (US).")
    assert session.actions() == [("keyboard", {"layout": "us"})]


async def test_a_guest_at_the_desktop_does_not_change_its_layout(session: Session, open_page: Open) -> None:
    session.role, session.keyboard = "control", ""
    page = await open_page()

    await expect(page.locator("#keyboard-hint")).to_have_text(
        "The desktop has a layout of its own. Yours may be: English (US)."
    )
    assert not session.actions()


async def test_a_layout_that_was_chosen_is_set_again_the_next_time(session: Session, open_page: Open) -> None:
    page = await open_page()
    await page.get_by_role("button", name="Send keys").click()
    await page.get_by_label("Keyboard layout").select_option("German")
    await expect(page.locator("#keyboard-hint")).to_have_text("The desktop has: German.")
    session.keyboard = ""

    await page.reload()

    await expect(page.locator("#keyboard-hint")).to_have_text("The desktop has: German.")
    assert session.actions() == [("keyboard", {"layout": "de"})] * 2


async def test_a_machine_that_cannot_set_its_layout_says_so(session: Session, open_page: Open) -> None:
    page = await open_page()
    session.refusal = (409, "The layout cannot be set from here.", "Set it inside the desktop.")

    await page.get_by_role("button", name="Send keys").click()
    await page.get_by_label("Keyboard layout").select_option("French")

    await expect(page.locator("#keyboard-hint")).to_have_text(
        "The layout cannot be set from here. Set it inside the desktop."
    )
