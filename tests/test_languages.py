"""The catalogues are complete, and everybody is answered in a language that they read."""

import itertools
import re
import runpy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from qemuspawner.languages import DOMAIN, choose_language, load_languages, parse_wishes
from qemuspawner.paths import LOCALES
from qemuspawner.spec import SessionEnd, SessionStatus, Step
from qemuspawner.texts import Text, list_texts, pack, unpack
from qemuspawner.units import render_mib, render_seconds

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts" / "messages.py"))
SOURCES: Catalog = SCRIPT["extract"]()
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir())

# {name} of scripts and Python, %(name)s of templates, and HTML.
PLACEHOLDER = re.compile(r"\{\w+\}|%\(\w+\)s|</?\w+>")


def read(language: str) -> Catalog:
    with (LOCALES / language / "LC_MESSAGES" / f"{DOMAIN}.po").open("rb") as file:
        return read_po(file, locale=language)


def key_of(message: Message) -> tuple[Any, Any]:
    return message.context, message.id


def forms(words: Any) -> list[str]:
    return list(words) if isinstance(words, tuple | list) else [words]


# The catalogues


def test_french_and_german_are_there() -> None:
    assert {"fr", "de"} <= set(LANGUAGES)


def test_the_template_holds_what_the_sources_say() -> None:
    """`make messages` writes it."""
    written = (LOCALES / f"{DOMAIN}.pot").read_bytes().splitlines(keepends=True)
    wanted = SCRIPT["render"](SOURCES).splitlines(keepends=True)

    differing = [pair for pair in itertools.zip_longest(written, wanted) if len(set(pair)) == 2]
    assert not differing[:3], "Run 'make messages'."


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_every_message_and_no_other(language: str) -> None:
    wanted = {key_of(message) for message in SOURCES if message.id}
    there = {key_of(message) for message in read(language) if message.id}

    assert there == wanted, "Run 'make messages'."


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_is_translated_whole(language: str) -> None:
    catalogue = read(language)

    left = [
        message.id
        for message in catalogue
        if message.id and (message.fuzzy or not all(forms(message.string or "")))
    ]

    assert left == []
    assert all(
        len(forms(message.string)) == catalogue.num_plurals
        for message in catalogue
        if isinstance(message.id, tuple)
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_placeholders_of_its_message(language: str) -> None:
    """Of a plural, those of its second form; the first may leave the count out, or say the name instead."""
    wrong = []
    for message in read(language):
        if not message.id:
            continue
        wanted = [set(PLACEHOLDER.findall(text)) for text in forms(message.id)]
        for at, text in enumerate(forms(message.string)):
            # <kbd> is there for each key, however it is called.
            if set(PLACEHOLDER.findall(text)) != wanted[min(at, len(wanted) - 1)]:
                wrong.append(text)

    assert wrong == []


def test_french_signs_stand_apart_from_words() -> None:
    """With spaces at which no line breaks."""
    signs = re.compile(r"[\w»)}](?: ?[;!?]| :|:(?=\s))|« | »|«\w|\w»")
    wrong = [
        text for message in read("fr") if message.id for text in forms(message.string) if signs.search(text)
    ]

    assert wrong == []


def test_german_quotes_are_german() -> None:
    wrong = [
        text
        for message in read("de")
        if message.id
        for text in forms(message.string)
        if "'" in text or text.count("„") != text.count("“")
    ]

    assert wrong == []


# Which language


def request(*, accept: str = "", cookie: str = "") -> HTTPServerRequest:
    headers = HTTPHeaders({"Host": "hub", "Accept-Language": accept} | ({"Cookie": cookie} if cookie else {}))
    start_line = RequestStartLine("GET", "/", "HTTP/1.1")
    return HTTPServerRequest(start_line=start_line, headers=headers, connection=Mock())


@pytest.mark.parametrize(
    ("header", "wishes"),
    [
        ("", []),
        ("de", ["de"]),
        ("fr-CH, fr;q=0.9, en;q=0.8, *;q=0.5", ["fr-CH", "fr", "en"]),
        ("en;q=0.1, de;q=0.7,fr ; q = 0.3", ["de", "fr", "en"]),
        ("de;q=0, fr", ["fr"]),
        ("de;q=2, fr;q=x, -, e$, en", ["en"]),
        (",".join(["de"] * 500), ["de"] * 20),
        ("d" * 60_000, []),
    ],
)
def test_wishes_are_read_as_browsers_write_them(header: str, wishes: list[str]) -> None:
    assert parse_wishes(header) == wishes


@pytest.mark.parametrize(
    ("accept", "cookie", "tag"),
    [
        ("", "", "en"),
        ("fr", "", "fr"),
        ("de-AT,en;q=0.5", "", "de"),
        ("es, fr;q=0.4, de;q=0.6", "", "de"),
        ("es", "", "en"),
        ("en-GB, de", "", "en"),
        ("de", f"{DOMAIN}-language=fr", "fr"),
        ("de", f"{DOMAIN}-language=en", "en"),
        ("de", f"{DOMAIN}-language=../fr", "de"),
        ("de", f"{DOMAIN}-language=", "de"),
    ],
)
def test_a_choice_comes_before_the_browsers_wishes(accept: str, cookie: str, tag: str) -> None:
    """And what nobody has translated, before neither."""
    assert choose_language(request(accept=accept, cookie=cookie)).tag == tag


# What is said


def test_a_text_is_english_until_it_is_said() -> None:
    text = Text("The session's lifetime of {lifetime} is over.", lifetime=render_seconds(5400))

    assert text == "The session's lifetime of 1 h 30 min is over."
    assert load_languages()["en"].say(text) == text
    assert load_languages()["de"].say(text) == "Die Laufzeit der Sitzung von 1 h 30 min ist abgelaufen."


def test_texts_within_texts_and_documents_are_said_too() -> None:
    german, french = load_languages()["de"], load_languages()["fr"]
    why = list_texts(
        [Text("its size is another one"), Text("QEMU was {before} and is {now}", before="7", now="8")]
    )
    document = {"steps": [{"text": Text("The desktop cannot be woken: {why}.", why=why), "at": 0.5}]}

    assert german.say(document) == {
        "steps": [
            {
                "text": "Der Desktop kann nicht geweckt werden: "
                "die Größe ist eine andere, QEMU war 7 und ist jetzt 8.",
                "at": 0.5,
            }
        ]
    }
    assert (german.say(render_mib(1536)), french.say(render_mib(1536))) == ("1,5 GiB", "1,5 Gio")


def test_a_document_of_another_process_can_be_said_here() -> None:
    why = list_texts(
        [Text("its size is another one"), Text("QEMU was {before} and is {now}", before=7, now=8.5)]
    )
    step = Step(at=0.5, text=Text("The desktop cannot be woken: {why}.", why=why))
    status = SessionStatus(session_id="x", state="booting", steps=(step,), message="A guest's own words {x}")

    read = SessionStatus.from_json(status.to_json())

    assert read == status
    assert load_languages()["de"].say(read.steps[0].text) == (
        "Der Desktop kann nicht geweckt werden: die Größe ist eine andere, QEMU war 7 und ist jetzt 8,5."
    )
    assert load_languages()["de"].say([read.message, read.hint]) == ["A guest's own words {x}", ""]


DEEP: Any = "end"
for _ in range(200):
    DEEP = {"template": "{x}", "values": {"x": DEEP}}


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, [], {}, {"template": "x"}, {"template": 7, "values": {}}, {"template": "x", "values": []}),
        {"template": "{x.__class__}", "values": {"x": 1}},
        {"template": "{x:>999999999}", "values": {"x": 1}},
        {"template": "{x!r}", "values": {"x": 1}},
        {"template": "{0}", "values": {}},
        {"template": "{x} {y}", "values": {"x": 1}},
        {"template": "{", "values": {}},
        {"template": "{x}", "values": {"x": None}},
        {"template": "x" * 3000, "values": {}},
        {"template": "{x}", "values": {str(number): 1 for number in range(100)}},
        DEEP,
    ],
)
def test_what_is_no_text_is_refused(value: object) -> None:
    """A document is another process's."""
    with pytest.raises(ValueError, match=r"no text|is none|are none|do not fit"):
        unpack(value)
    with pytest.raises(msgspec.DecodeError):
        SessionEnd.from_json(msgspec.json.encode({"state": "ended", "message": value}))


def test_a_text_is_packed_as_what_it_was_made_of() -> None:
    text = Text("The session's lifetime of {lifetime} is over.", lifetime=Text("{hours} h", hours=1))

    assert pack({"why": [text, "x"]}) == {
        "why": [
            {
                "template": "The session's lifetime of {lifetime} is over.",
                "values": {"lifetime": {"template": "{hours} h", "values": {"hours": 1}}},
            },
            "x",
        ]
    }


def test_what_people_and_guests_write_is_not_said_otherwise() -> None:
    """Neither as a message, nor as a template."""
    german = load_languages()["de"]

    assert german.say({"title": "Help", "name": "{count}"}) == {"title": "Help", "name": "{count}"}
    assert german.say(Text("{name} has put the desktop to sleep.", name="{x} Help")) == (
        "{x} Help hat den Desktop schlafen gelegt."
    )


@pytest.mark.parametrize(
    ("tag", "rules"), [("de", {"one": 0, "other": 1}), ("fr", {"one": 0, "many": 1, "other": 1})]
)
def test_scripts_are_told_the_forms_of_plurals(tag: str, rules: dict[str, int]) -> None:
    """By the categories of Intl.PluralRules."""
    assert load_languages()[tag].plural_forms == rules


def test_pages_bring_along_what_their_scripts_say_and_no_more() -> None:
    messages = load_languages()["fr"].script_messages

    assert messages["Connected"] == "Connecté"
    assert messages["{count} viewer"] == ("{count} spectateur", "{count} spectateurs")
    assert "Send keys" not in messages
    assert load_languages()["en"].script_messages == {}
