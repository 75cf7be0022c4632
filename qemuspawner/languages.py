"""The languages of the pages: gettext's catalogues, and which of them a request is answered in.

A language is a folder of share/locale with a catalogue. They are read as they are, so there is nothing to
compile; CONTRIBUTING.md says how one is added.
"""

import dataclasses
import functools
import gettext
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jinja2
from babel import Locale, negotiate_locale
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_decimal
from tornado.httputil import HTTPServerRequest

from qemuspawner.paths import LOCALES, TEMPLATES
from qemuspawner.texts import Text

DOMAIN = "qemuspawner"
# What a person has chosen on the page; view.js sets it.
COOKIE = "qemuspawner-language"

_SCRIPTS = "share/static/"
# Nobody speaks more, and a header of 64 KiB must cost nothing.
_MOST_WISHES = 20
_WISH = re.compile(r"([A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?))?")
# Enough numbers to meet each form of every language's plural.
_COUNTS = (*range(200), 1_000_000)

_Value = TypeVar("_Value")


class Language:
    """One language, and everything that is said in it."""

    def __init__(self, locale: Locale, catalogue: Catalog) -> None:
        self.tag = str(locale).replace("_", "-")  # BCP 47
        self.name = (locale.get_display_name(locale) or self.tag).capitalize()
        self._locale = locale
        compiled = io.BytesIO()
        write_mo(compiled, catalogue)
        compiled.seek(0)
        self._translations = gettext.GNUTranslations(compiled)
        self.script_messages = _find_script_messages(catalogue)
        self.gettext = self._translations.gettext
        self.ngettext = self._translations.ngettext
        self.pgettext = self._translations.pgettext
        self.npgettext = self._translations.npgettext
        self._decimal_point = locale.number_symbols["latn"]["decimal"]
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, extensions=["jinja2.ext.i18n"]
        )
        self._templates.install_gettext_callables(  # type: ignore[attr-defined]
            self.gettext, self.ngettext, newstyle=True, pgettext=self.pgettext, npgettext=self.npgettext
        )
        self._templates.globals["language"] = self

    def template(self, name: str) -> jinja2.Template:
        """A page of ours, which speaks this language."""
        return self._templates.get_template(name)

    @functools.cached_property
    def plural_forms(self) -> Mapping[str, int]:
        """Which form a script takes for each category of Intl.PluralRules."""
        return {category: self._form_of(count) for category, count in self._counts.items()}

    def plurals(self, singular: str, plural: str) -> dict[str, str]:
        """What a template gives to its script: the words for each category of Intl.PluralRules."""
        return {category: self.ngettext(singular, plural, count) for category, count in self._counts.items()}

    @functools.cached_property
    def _counts(self) -> Mapping[str, int]:
        """A count of each category."""
        rule = self._locale.plural_form
        return {rule(count): count for count in reversed(_COUNTS)}

    def _form_of(self, count: int) -> int:
        return int(self._translations.plural(count))  # type: ignore[attr-defined]

    def say(self, value: _Value) -> _Value:
        """`value` with every Text in it, also in lists, dictionaries and dataclasses, in this language."""
        said: Any = value
        match value:
            case Text():
                said = self._say_text(value)
            case dict():
                said = {key: self.say(item) for key, item in value.items()}
            case list() | tuple():
                said = type(value)(self.say(item) for item in value)
            case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
                said = dataclasses.replace(value, **self.say(fields))
        return cast(_Value, said)

    def decimal(self, number: float, digits: int = 0) -> str:
        """A number as the language writes it, with so many digits behind the point."""
        return format_decimal(
            number, format=f"#,##0.{'0' * digits}" if digits else "#,##0", locale=self._locale
        )

    def _say_text(self, text: Text) -> str:
        # Of an empty one gettext would say the head of its catalogue.
        template = self.gettext(text.template) if text.template else ""
        if not text.values:
            return template
        return template.format_map({name: self._say_value(value) for name, value in text.values.items()})

    def _say_value(self, value: object) -> object:
        if isinstance(value, float):
            return f"{value:.4g}".replace(".", self._decimal_point)
        return self.say(value)


def _find_script_messages(catalogue: Catalog) -> dict[str, Any]:
    """What the scripts of the page say: the English text, of a plural its singular, and the words for it."""
    return {
        message.id if isinstance(message.id, str) else message.id[0]: message.string
        for message in catalogue
        if message.id and any(place.startswith(_SCRIPTS) for place, _ in message.locations)
    }


@functools.cache
def load_languages(folder: Path = LOCALES) -> Mapping[str, Language]:
    """All there are, by tag, English first."""
    languages = [Language(Locale("en"), Catalog(locale="en"))]
    for path in sorted(folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po")):
        locale = Locale.parse(path.parent.parent.name)
        with path.open("rb") as file:
            languages.append(Language(locale, read_po(file, locale=locale)))
    return {language.tag: language for language in languages}


def find_language(name: str) -> Language:
    """The language of a locale such as "fr_FR", or English."""
    languages = load_languages()
    return languages[negotiate_locale([name.replace("_", "-")], languages, sep="-") or "en"]


def choose_language(request: HTTPServerRequest) -> Language:
    """The language that a person has chosen, or that their browser asks for, or English."""
    languages = load_languages()
    chosen = request.cookies.get(COOKIE)
    if chosen is not None and chosen.value in languages:
        return languages[chosen.value]
    wishes = parse_wishes(request.headers.get("Accept-Language", ""))
    return languages[negotiate_locale(wishes, languages, sep="-") or "en"]


def parse_wishes(header: str) -> list[str]:
    """The languages of an Accept-Language header, the most wanted first (RFC 9110, 12.5.4)."""
    wishes: list[tuple[float, str]] = []
    for entry in header.split(",", _MOST_WISHES)[:_MOST_WISHES]:
        match = _WISH.fullmatch(entry.strip())
        if match and float(match[2] or 1) > 0:
            wishes.append((float(match[2] or 1), match[1]))
    return [tag for _, tag in sorted(wishes, key=lambda wish: -wish[0])]


def list_choices(languages: Iterable[Language]) -> list[tuple[str, str]]:
    """Tag and own name of each, for a menu."""
    return [(language.tag, language.name) for language in languages]
