"""A language whose every message stands in brackets, and what of a page stands in none: it was forgotten."""

import json
import re
from html.parser import HTMLParser
from typing import Any

from babel import Locale
from babel.messages.catalog import Catalog

from qemuspawner.languages import Language

_OPEN, _CLOSE = "⟦", "⟧"
# What a page tells people in attributes.
_SAID = ("aria-label", "title", "placeholder", "alt", "data-longest", "data-idle")
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
# A sentence of a script, which begins like one.
_SENTENCE = re.compile(r"""["'`](?:\$\{\w+\} \w|[A-Z][a-z]+ )[^"'`]*["'`]""")
_COMMENT = re.compile(r"^\s*//.*$|/\*.*?\*/", re.MULTILINE)
_LETTERS = re.compile(r"[A-Za-z]+")
# Names and values that are the same in every language.
_NO_WORDS = re.compile(
    r"\d+x\d+|\"(?:value|label|selected|cpus|memory|gpu|lifetime|none)\"|true|false|null|none"
)


def make_pseudo_language(messages: Catalog) -> Language:
    """It speaks all of these messages, as if it were German."""
    locale = Locale("de")
    catalogue = Catalog(locale=locale)
    for message in messages:
        if isinstance(message.id, tuple):
            catalogue.add(message.id, tuple(_OPEN + words + _CLOSE for words in message.id))
        elif message.id:
            catalogue.add(message.id, _OPEN + message.id + _CLOSE, context=message.context)
    return Language(locale, catalogue)


def find_untranslated(page: str, *, within: str) -> list[str]:
    """Latin words outside of brackets in the element of this class; what says `lang="en"` may be English.

    So a test gives names to machines and the like that have none.
    """
    reader = _Reader(within)
    reader.feed(page)
    assert reader.has_found, f"There is no element of the class '{within}'."
    return reader.untranslated


class _Reader(HTMLParser):
    def __init__(self, within: str) -> None:
        super().__init__()
        self.untranslated: list[str] = []
        self.has_found = False
        self._within = within
        # The elements that we are in, and whether what is in them counts.
        self._elements: list[tuple[str, bool]] = []
        self._depth = 0

    @property
    def _counts(self) -> bool:
        return bool(self._elements) and self._elements[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: dict[str, Any] = dict(attrs)
        is_it = self._within in (values.get("class") or "").split()
        self.has_found |= is_it
        counts = (self._counts or is_it) and values.get("lang") != "en"
        if counts:
            for name in _SAID:
                self._check(values.get(name) or "", 0)
            for choices in json.loads(values.get("data-selects") or "{}").values():
                for choice in choices:
                    self._check(choice["label"], 0)
        if tag not in _VOID:
            self._elements.append((tag, counts))

    def handle_endtag(self, tag: str) -> None:
        while self._elements and self._elements.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._counts or self._elements[-1][0] == "style":
            return
        if self._elements[-1][0] == "script":
            self.untranslated += _SENTENCE.findall(_COMMENT.sub("", data))
        else:
            # A message goes over several nodes where it has an element in it.
            self._depth = self._check(data, self._depth)

    def _check(self, text: str, depth: int) -> int:
        outside = ""
        for char in text:
            depth += (char == _OPEN) - (char == _CLOSE)
            outside += " " if depth or char == _CLOSE else char
        if _LETTERS.search(_NO_WORDS.sub("", outside)):
            self.untranslated.append(" ".join(outside.split()))
        return depth
