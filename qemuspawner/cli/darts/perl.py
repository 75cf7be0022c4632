"""Plain values of Perl: numbers and what is calculated of them, strings, lists, variables. Nothing is run."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)
    |(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |qw\s*[(\[/](?P<words>[^)\]/]*)[)\]/]
    |(?P<undef>undef\b)
    |(?P<bare>[A-Za-z_]\w*(?=\s*=>))
    |(?P<name>[$@]\w+(?:\{\s*["']?\w+["']?\s*\})?)
    |(?P<sign>=>|[-+*/.\[\](),])
    )""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
# Where a string stands in double quotes, and not behind a backslash.
_ESCAPED = re.compile(r"""\\(.)|(\$\w+(?:\{["']?\w+["']?\})?)|([$@][\w{])""", re.DOTALL)
_MAX_TOKENS = 10_000
_MAX_TEXT = 100_000
_MAX_DEPTH = 20
_NOT_PLAIN = "it is no plain value, but Perl, which is not run"


def parse_value(text: str, names: Mapping[str, object] | None = None) -> object:
    """A number (int where it is whole), text, None, or a list of these.

    `names` are what variables hold, by "$name", "@name" and "$config{name}".

    Raises:
        ValueError: The text is anything else; it says so without the text.
    """
    reader = _Reader(text, names or {})
    value = reader.read_value()
    reader.check_end()
    return value


def parse_pairs(text: str, names: Mapping[str, object] | None = None) -> dict[str, object]:
    """As `name => value, ...` has them; raises ValueError as `parse_value`."""
    items = parse_value(f"({text})", names)
    if not isinstance(items, list) or len(items) % 2 or not all(isinstance(one, str) for one in items[::2]):
        raise ValueError(_NOT_PLAIN)
    return dict(zip(items[::2], items[1::2], strict=True))


class _Reader:
    def __init__(self, text: str, names: Mapping[str, object]) -> None:
        self._names = names
        self._tokens: list[tuple[str, str]] = []
        self._next = self._depth = 0
        position = 0
        text = text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or len(self._tokens) == _MAX_TOKENS:
                raise ValueError(_NOT_PLAIN)
            kind = match.lastgroup or ""
            self._tokens.append((kind, match[kind]))
            position = match.end()

    def check_end(self) -> None:
        if self._next < len(self._tokens):
            raise ValueError(_NOT_PLAIN)

    def read_value(self) -> object:
        """A sum, or what stands alone."""
        value = self._read_product()
        while sign := self._take("+", "-", "."):
            other = self._read_product()
            value = _calculate(value, sign, other)
        return value

    def _read_product(self) -> object:
        value = self._read_one()
        while sign := self._take("*", "/"):
            other = self._read_one()
            value = _calculate(value, sign, other)
        return value

    def _read_one(self) -> object:
        if self._take("-"):
            with self._one_deeper():
                return _calculate(0, "-", self._read_one())
        if self._take("["):
            return self._read_list("]")
        if self._take("("):
            items = self._read_list(")")
            # A list of one in round brackets may be a part of a calculation as well.
            return items[0] if len(items) == 1 and isinstance(items[0], (int, float)) else items
        if self._next == len(self._tokens):
            raise ValueError(_NOT_PLAIN)
        kind, text = self._tokens[self._next]
        self._next += 1
        match kind:
            case "number":
                return _number(float(text.replace("_", "")))
            case "string":
                return self._unquote(text)
            case "name":
                return self._look_up(text)
            case "words":
                return text.split()
            case "undef":
                return None
            case "bare":
                return text
        raise ValueError(_NOT_PLAIN)

    def _read_list(self, end: str) -> list[object]:
        items: list[object] = []
        while not self._take(end):
            with self._one_deeper():
                is_list = self._next < len(self._tokens) and self._tokens[self._next][1][0] == "@"
                value = self.read_value()
            # A list within a list is a part of it.
            items += value if is_list and isinstance(value, list) else [value]
            if not self._take(",", "=>") and self._peek() != end:
                raise ValueError(_NOT_PLAIN)
        return items

    @contextlib.contextmanager
    def _one_deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError(_NOT_PLAIN)
        yield
        self._depth -= 1

    def _look_up(self, name: str) -> object:
        try:
            return self._names[re.sub(r"[\s\"']", "", name)]
        except KeyError:
            raise ValueError(_NOT_PLAIN) from None

    def _unquote(self, text: str) -> str:
        inner = text[1:-1]
        if text[0] == "'":
            return re.sub(r"\\([\\'])", r"\1", inner)

        def replace(match: re.Match[str]) -> str:
            escaped, name, other = match.groups()
            if escaped is not None:
                return {"n": "\n", "t": "\t"}.get(escaped, escaped)
            if other is not None:
                raise ValueError(_NOT_PLAIN)
            return _text(self._look_up(name))

        return _text(_ESCAPED.sub(replace, inner))

    def _take(self, *signs: str) -> str:
        """The next token, where it is one of these signs; else empty."""
        if self._peek() in signs:
            self._next += 1
            return self._tokens[self._next - 1][1]
        return ""

    def _peek(self) -> str:
        """The next token if it is a sign, else empty."""
        if self._next < len(self._tokens) and self._tokens[self._next][0] == "sign":
            return self._tokens[self._next][1]
        return ""


def _calculate(left: object, sign: str, right: object) -> int | float | str:
    if sign == ".":
        return _text(left, right)
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        raise ValueError(_NOT_PLAIN)
    match sign:
        case "+":
            return _number(left + right)
        case "-":
            return _number(left - right)
        case "*":
            return _number(left * right)
    if right == 0:
        raise ValueError(_NOT_PLAIN)
    return _number(left / right)


def _number(value: float) -> int | float:
    if not math.isfinite(value):
        raise ValueError(_NOT_PLAIN)
    return int(value) if value == int(value) else value


def _text(*values: object) -> str:
    """The values one after the other; a short file can make them long by putting variables together."""
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise ValueError(_NOT_PLAIN)
    text = "".join(map(str, values))
    if len(text) > _MAX_TEXT:
        raise ValueError(_NOT_PLAIN)
    return text
