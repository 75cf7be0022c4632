"""The desktop page in other languages than English, whole and without barriers."""

# ruff: noqa: F811  (fixtures of pages are named as what is given)

import re
from typing import Any

import pytest
from axe import find_barriers
from pages import Open, Session, browser, bundle, open_page, people, session, vnc_socket  # noqa: F401
from playwright.async_api import Page, expect

from qemuspawner.session.screen.visitors import CloseCode

# One browser for all tests, so one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

GERMAN: dict[str, Any] = {"locale": "de-DE"}
FRENCH: dict[str, Any] = {"locale": "fr-FR"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}

# English words that are in no sentence of another language here.
ENGLISH = re.compile(
    r"\b(the|and|you|with|this|of|your|they|what|until|hide|view|send|save)\b", re.IGNORECASE
)


async def words_of(page: Page) -> str:
    """Everything that the page says or would say, also what is hidden, and its labels."""
    return str(
        await page.evaluate(
            """() => {
                const said = document.body.cloneNode(true);
                said.querySelectorAll("#name, #language").forEach((element) => element.remove());
                const names = ["title", "aria-label", "placeholder"];
                const labels = [...said.querySelectorAll("*")].flatMap((element) =>
                    names.map((name) => element.getAttribute(name) ?? ""));
                return [said.textContent, ...labels].join("\\n");
            }"""
        )
    )


@pytest.mark.parametrize(
    ("options", "tag", "connected", "label"),
    [(GERMAN, "de", "Verbunden", "Tasten senden"), (FRENCH, "fr", "Connecté", "Envoyer des touches")],
)
async def test_the_page_speaks_the_browsers_language(
    session: Session, open_page: Open, options: dict[str, Any], tag: str, connected: str, label: str
) -> None:
    session.suspends = ("idle", "lifetime", "stop")
    page = await open_page(**options)

    await expect(page.locator("html")).to_have_attribute("lang", tag)
    await expect(page.locator("#connection-text")).to_have_text(connected)
    await expect(page.get_by_role("button", name=label)).to_be_visible()
    assert ENGLISH.findall(await words_of(page)) == []


async def test_a_language_is_chosen_in_the_view_menu_and_remembered(
    session: Session, open_page: Open
) -> None:
    page = await open_page(**GERMAN)
    await page.get_by_role("button", name="Ansicht").click()

    await page.get_by_label("Sprache").select_option(label="Français")

    await expect(page.locator("html")).to_have_attribute("lang", "fr")
    [cookie] = await page.context.cookies()
    assert (cookie["name"], cookie["value"], cookie["path"]) == ("qemuspawner-language", "fr", "/")
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("lang", "fr")
    await page.get_by_role("button", name="Affichage").click()
    await expect(page.get_by_label("Langue")).to_have_value("fr")


async def test_numbers_spans_and_plurals_are_the_languages_own(session: Session, open_page: Open) -> None:
    session.add_checkpoint("Étape", age_s=100_000)
    session.left_s = 200_000
    page = await open_page(**FRENCH)
    await expect(page.locator("#time-left")).to_have_text("2 j 7 h")

    await page.locator("#checkpoints-button").click()

    facts = page.locator("#checkpoint-list .facts")
    await expect(facts).to_have_text("il y a 1 j · 1,4 Gio · conservé 13 j")


async def test_warnings_and_questions_are_whole_sentences(session: Session, open_page: Open) -> None:
    session.left_s = session.max_left_s = 100
    page = await open_page(**GERMAN)
    await expect(page.locator("#banner-text")).to_have_text(
        re.compile(r"^Dieser Desktop endet in 1:\d\d\. Speichern Sie Ihre Arbeit jetzt\.$")
    )
    await expect(page).to_have_title(re.compile("^noch 1:\\d\\d \N{EN DASH} "))

    await page.locator("#power-button").click()
    await page.get_by_role("button", name="Herunterfahren …").click()

    await expect(page.get_by_role("dialog", name="Den Desktop herunterfahren?")).to_be_visible()
    assert ENGLISH.findall(await words_of(page)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_german_page_and_its_menus_have_no_barriers(
    session: Session, open_page: Open, scheme: str
) -> None:
    session.people = people("bob", role="owner")
    page = await open_page(color_scheme=scheme, **GERMAN)
    buttons = await page.locator("#tools [aria-controls$='-menu']:visible").all()
    assert len(buttons) > 4

    for button in buttons:
        await button.click()
        await expect(button).to_have_attribute("aria-expanded", "true")
        assert await find_barriers(page) == []
        await page.keyboard.press("Escape")


@pytest.mark.parametrize("options", [GERMAN, FRENCH], ids=["de", "fr"])
@pytest.mark.parametrize("size", [{}, PHONE], ids=["wide", "phone"])
async def test_longer_words_fit(
    session: Session, open_page: Open, options: dict[str, Any], size: dict[str, Any]
) -> None:
    """Nothing makes the page scroll sideways, and no tool is cut off."""
    session.suspends = ("idle", "lifetime", "stop")
    session.people = people("bob", role="owner")
    page = await open_page(**size, **options)
    if size:
        await page.locator("#fold").tap()
    for button in await page.locator("#tools [aria-controls$='-menu']:visible").all():
        await button.click()
        sideways = await page.evaluate(
            "() => [document.documentElement, ...document.querySelectorAll('.menu, #tools, #bar')]"
            ".filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth + 1)"
            ".map((box) => `${box.id || box.tagName}: ${box.scrollWidth} > ${box.clientWidth}`)"
        )
        assert sideways == []
        await button.click()


async def test_the_end_is_told_in_the_pages_language(session: Session, open_page: Open) -> None:
    page = await open_page(**GERMAN)

    await session.relay.close_all(CloseCode.REPLACED, "")

    await expect(page.get_by_role("heading", name="In einem anderen Fenster geöffnet")).to_be_visible()
    await expect(page.get_by_role("button", name="Hier benutzen")).to_be_focused()
