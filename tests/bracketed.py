"""A language in which every message of the catalogue is in brackets, so that what is none stands out."""

import re
import runpy
from collections.abc import Collection

import pytest
from babel import Locale
from babel.messages.catalog import Catalog
from live import PROJECT
from playwright.async_api import Page

from qemuspawner import languages
from qemuspawner.languages import Language

TAG = "eo"  # whose plural has two forms, and which no page of ours speaks
HEADERS = {"Accept-Language": TAG}

_BRACKETED = re.compile(r"⟦[^⟦⟧]*⟧")
_WORD = re.compile(r"[A-Za-z]{2,}")
# What people see, hear and fill in; of an <option> also when its list is closed.
_TEXTS = """root => {
    const found = [];
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (!node.parentElement.closest("script, style, [lang=en]")) found.push(node.data);
    }
    for (const element of root.querySelectorAll("[aria-label], [title], [placeholder], [alt]")) {
        for (const name of ["aria-label", "title", "placeholder", "alt"]) {
            found.push(element.getAttribute(name) ?? "");
        }
    }
    return found;
}"""


def make_pseudo_language() -> Language:
    catalogue = Catalog(locale=TAG)
    for message in runpy.run_path(str(PROJECT / "scripts" / "messages.py"))["extract"]():
        if message.id:
            forms = message.id if isinstance(message.id, tuple) else (message.id,)
            said = tuple(f"⟦{form}⟧" for form in forms)
            string = said if isinstance(message.id, tuple) else said[0]
            places = message.locations
            catalogue.add(message.id, string, locations=places, context=message.context)
    return Language(Locale.parse(TAG), catalogue)


def speak_pseudo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process answer in it whoever asks with HEADERS."""
    spoken = {**languages.load_languages(), TAG: make_pseudo_language()}
    monkeypatch.setattr(languages, "load_languages", lambda: spoken)


async def find_english(page: Page, selector: str, *, given: Collection[str] = ()) -> list[str]:
    """Words within that are in no message; `given` are names and values, which are nobody's to translate."""
    wrong = []
    for text in await page.locator(selector).first.evaluate(_TEXTS):
        left = text
        while (shorter := _BRACKETED.sub(" ", left)) != left:
            left = shorter
        if any(word not in given for word in _WORD.findall(left)):
            wrong.append(text.strip())
    return wrong
