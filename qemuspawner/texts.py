"""Sentences for people that are still to be said in the reader's language."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# A document of another process is told no more than sentences.
_MAX_TEMPLATE = 2000
_MAX_VALUES = 20
_MAX_DEPTH = 30
_TEMPLATE = re.compile(r"(?:[^{}]|\{[A-Za-z_]\w*\})*")


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

    def filled(self, values: Mapping[str, object]) -> "Text":
        """The same with these values, where it was made without any."""
        return Text(self.template, **values)


def list_texts(texts: Sequence[str]) -> str:
    """Several after each other, with commas; "" where there are none."""
    return (
        functools.reduce(lambda some, one: Text("{some}, {one}", some=some, one=one), texts) if texts else ""
    )


def join_sentences(*sentences: str) -> str:
    """Those of them that say something, one after the other."""
    said = [sentence for sentence in sentences if sentence]
    return functools.reduce(lambda some, one: Text("{some} {one}", some=some, one=one), said) if said else ""


def pack(value: Any) -> Any:
    """A document for another process or a file: each Text in it as its template and its values."""
    match value:
        case Text():
            return {"template": value.template, "values": pack(value.values)}
        case dict():
            return {key: pack(item) for key, item in value.items()}
        case list() | tuple():
            return [pack(item) for item in value]
    return value


def unpack(value: object, *, _depth: int = 0) -> Text:
    """A Text out of such a document; a plain text is one without values.

    Raises:
        ValueError: It is neither, or larger than any sentence is.
    """
    if isinstance(value, str):
        return Text(value)
    if not isinstance(value, dict) or value.keys() != {"template", "values"} or _depth > _MAX_DEPTH:
        raise ValueError("it is no text")
    template, values = value["template"], value["values"]
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE or not _TEMPLATE.fullmatch(template):
        raise ValueError("its template is none")
    if not isinstance(values, dict) or len(values) > _MAX_VALUES:
        raise ValueError("its values are none")
    kept = {
        name: unpack(item, _depth=_depth + 1) if isinstance(item, dict) else _check_value(item)
        for name, item in values.items()
    }
    try:
        return Text(template, **kept)
    except (KeyError, TypeError) as exc:
        raise ValueError("its values do not fit its template") from exc


def _check_value(value: object) -> object:
    if not isinstance(value, str | int | float):
        raise ValueError("a value of it is none")
    return value


def _keep(value: object) -> str | int | float:
    """Words and numbers as they are, anything else by its words: an exception would keep its frames alive."""
    return value if isinstance(value, str | int | float) else str(value)


# What msgspec makes a Text of again, with `decode_text`; whoever writes the field may give any text.
if TYPE_CHECKING:
    Sentence = str
else:
    Sentence = Text


def decode_text(kind: type, value: Any) -> Any:
    """For msgspec: the reverse of `pack`."""
    if kind is Text:
        return unpack(value)
    raise NotImplementedError(kind)
