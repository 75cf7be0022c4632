"""Collect what pages say into share/locale/qemuspawner.pot, and bring the languages' catalogues up to date.

`make messages` runs it. What is new is left empty in share/locale/LANGUAGE/LC_MESSAGES/qemuspawner.po, to be
translated there; tests/test_languages.py fails until it is. A new language needs its folder only.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parent.parent
LOCALES = ROOT / "share" / "locale"
DOMAIN = "qemuspawner"

# For each kind of file: Babel's method, and which arguments of which calls are messages.
_SOURCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("qemuspawner/**/*.py", "python", {"Text": None}),
    (
        "share/templates/*.html",
        "jinja2",
        {"_": None, "gettext": None, "ngettext": (1, 2), "pgettext": ((1, "c"), 2), "plurals": (1, 2)},
    ),
    ("share/static/*.js", "javascript", {"t": None, "plural": (2, 3)}),
)
# What may stand in a script's `${}`; and words of a template that go over two lines are one line.
_OPTIONS = {"javascript": {"parse_template_string": True}, "jinja2": {"trimmed": "true"}}


def extract() -> Catalog:
    """Every message of the sources, in their order."""
    catalogue = Catalog(project=DOMAIN, charset="utf-8", fuzzy=False)
    for place, message, context in _find_messages():
        catalogue.add(message, locations=[(place, 0)], context=context)
    return catalogue


def _find_messages() -> Iterator[tuple[str, Any, str | None]]:
    for pattern, method, keywords in _SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            found = extract_from_file(method, path, keywords=keywords, options=_OPTIONS.get(method, {}))
            for _, message, _, context in found:
                yield str(path.relative_to(ROOT)), message, context


def render(catalogue: Catalog) -> bytes:
    """A catalogue as it is kept: without line numbers and dates, which would differ with every change."""
    written = io.BytesIO()
    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=utf-8\\n"\n'
    if catalogue.locale is not None:
        header += f'"Language: {catalogue.locale}\\n"\n"Plural-Forms: {catalogue.plural_forms}\\n"\n'
    write_po(written, catalogue, width=100, omit_header=True, ignore_obsolete=True, include_lineno=False)
    return f"{header}\n".encode() + written.getvalue()


def main() -> None:
    template = extract()
    LOCALES.mkdir(exist_ok=True)
    (LOCALES / f"{DOMAIN}.pot").write_bytes(render(template))
    for folder in sorted(path for path in LOCALES.iterdir() if path.is_dir()):
        path = folder / "LC_MESSAGES" / f"{DOMAIN}.po"
        locale = Locale.parse(folder.name)
        catalogue = read_po(io.BytesIO(path.read_bytes() if path.is_file() else b""), locale=locale)
        # Never a guess: what is like a message of another meaning would look translated.
        catalogue.update(template, no_fuzzy_matching=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(render(catalogue))
        left = sum(not message.string or not all(message.string) for message in catalogue if message.id)
        print(f"{folder.name}: {left} of {len(catalogue)} messages are to be translated")


if __name__ == "__main__":
    main()
