"""What hostile people type: texts, forms and JSON for proofs, drawn by hypothesis and the same each time."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Value = TypeVar("Value")

# In every text that is to be found again where it must not be.
MARK = "q7marked"
TEXTS = (
    # Characters.
    *("", " ", "\0", "\n", "\r\nSet-Cookie: a=b", "\x1b[31m", "\u202eabc", "\ud7ff\ufffe", "e\u0301" * 40),
    # Paths.
    *(f"../{MARK}", f"../../../../tmp/{MARK}", f"/tmp/{MARK}", f"..%2f{MARK}", f"..\\{MARK}"),
    # Options of programs.
    *(f"{MARK},readonly=on,file=/etc/passwd", f"{MARK}=1", f"-drive {MARK}", f"--{MARK}", f"json:{{{MARK}}}"),
    # Of shells, templates and databases.
    *(f"$(touch {MARK})", f"`touch {MARK}`", f"; touch {MARK}", f"| tee {MARK}", f"{MARK}\0.sh"),
    *(f"{{{{7*7}}}}{MARK}", f"{{% for {MARK} %}}", f"%({MARK})s", f"' OR 1=1 -- {MARK}", f"<script>{MARK}()"),
    # Numbers and other types.
    *("-1", "0", "1e309", "NaN", "0x10", "\u0663", "\uff11\uff12", "9" * 400, "1 PiB", "-1 h", "null", "[]"),
    # Scripts, and what is long.
    *(f"#!/bin/sh\n{MARK}\n", f"#!{'x' * 70_000}", f"#cloud-config\n{MARK}: 1\n", MARK * 20, MARK * 20_000),
)
texts = st.sampled_from(TEXTS) | st.text(max_size=60) | st.text(max_size=8).map(MARK.__add__)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=6,
)


def draw(strategy: st.SearchStrategy[Value], count: int) -> list[Value]:
    """So many of them, for tests that have an event loop of their own."""
    found: list[Value] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Value) -> None:
        found.append(value)

    collect()
    return found


@dataclass(frozen=True, kw_only=True)
class Post:
    """The body of a request."""

    kind: str  # its Content-Type
    body: bytes


_BOUNDARY = "limit"
_MULTIPART = f"multipart/form-data; boundary={_BOUNDARY}"
_URLENCODED = "application/x-www-form-urlencoded"


def urlencoded(fields: Sequence[tuple[str, str]]) -> Post:
    """As forms without files are sent."""
    encoded = urlencode(
        [(name.encode(errors="replace"), value.encode(errors="replace")) for name, value in fields]
    )
    return Post(kind=_URLENCODED, body=encoded.encode())


def multipart(fields: Sequence[tuple[str, str]], *, file: str = "") -> Post:
    """As browsers send forms; with `file` each field is a file of this name."""
    named = f'; filename="{file}"' if file else ""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n{value}\r\n'
        for name, value in fields
    ]
    text = "".join((*parts, f"--{_BOUNDARY}--\r\n"))
    return Post(kind=_MULTIPART, body=text.encode(errors="replace"))


def make_form(chance: random.Random, valid: Mapping[str, Sequence[str]], needed: Mapping[str, str]) -> Post:
    """A form with some of the `valid` values and all of the `needed` ones: one in eight is a right one."""
    right = [(name, chance.choice(values)) for name, values in valid.items()]
    fields = [*needed.items(), *chance.sample(right, chance.randrange(len(right)))]
    match chance.randrange(8):
        case 0:
            return multipart(fields)
        case 1:
            return Post(kind=_MULTIPART, body=multipart(fields).body[: chance.randrange(400)])
        case 2:
            kind = chance.choice([_URLENCODED, _MULTIPART, "multipart/form-data", "text/plain", "a;b"])
            return Post(kind=kind, body=chance.randbytes(chance.randrange(200)))
    for _ in range(chance.randrange(1, 4)):
        name = chance.choice(fields)[0] if chance.random() < 0.7 else _make_text(chance)
        fields.append((name, _make_text(chance)))
    if chance.random() < 0.7:
        fields = [*dict(fields).items()]  # the wrong one in place of the right one
    if chance.random() < 0.2:
        return multipart(fields, file=_make_text(chance))
    return urlencoded(fields) if chance.random() < 0.3 else multipart(fields)


def _make_text(chance: random.Random) -> str:
    if chance.random() < 0.7:
        return chance.choice(TEXTS)
    letters = (
        chance.choice([chr(chance.randrange(0x300)), chr(chance.randrange(0x11000)), ",", "/"])
        for _ in range(9)
    )
    return MARK + "".join(letters)


# Half of a surrogate pair, as which a program sends a text that it has cut.
HALF = [
    b'"\\ud800"',
    b'{"user_options": {"setting": "\\ud800"}}',
    b'{"text": "\\ud800", "digest": "\\udfff"}',
]


def json_bodies(value: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """What cannot be JSON is among them."""
    return value.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=60)
