"""Sentences for people that are still to be said in the reader's language."""

import functools
from collections.abc import Sequence


class Text(str):
    """An English sentence that knows what it was made from: `Text("{count} files", count=3)`.

    It is the English text wherever text is wanted, such as in logs; `languages.Language.say` says it in
    another language. Values may be texts themselves. The template is a literal, which `make messages` finds.
    """

    template: str
    values: dict[str, str | int | float]

    def __new__(cls, template: str, /, **values: object) -> "Text":
        kept = {name: _keep(value) for name, value in values.items()}
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in kept.items()}
        made = super().__new__(cls, template.format_map(shown) if kept else template)
        made.template, made.values = template, kept
        return made


def list_texts(texts: Sequence[str]) -> str:
    """Several after each other, with commas; "" where there are none."""
    return (
        functools.reduce(lambda some, one: Text("{some}, {one}", some=some, one=one), texts) if texts else ""
    )


def _keep(value: object) -> str | int | float:
    """Words and numbers as they are, anything else by its words: an exception would keep its frames alive."""
    return value if isinstance(value, str | int | float) else str(value)
