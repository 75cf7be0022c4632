"""Requests' fields: whatever comes is read, or refused with a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado import web

from qemuspawner.session.web.fields import Fields

KNOWN = ("x", "inner")

READERS: list[Callable[[Fields], object]] = [
    lambda fields: fields.whole("x", least=0, most=10),
    lambda fields: fields.number("x", least=0.5, most=10, default=1),
    lambda fields: fields.flag("x", default=False),
    lambda fields: fields.choice("x", ("left", "right"), default="left"),
    lambda fields: fields.text("x", most=5),
    lambda fields: fields.texts("x", most=3, longest=5),
    lambda fields: fields.inner("inner", known=("x",)).whole("x", least=0, most=10),
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=5), children, max_size=4)
    ),
    max_leaves=8,
)


def refusal(read: Callable[[Fields], object], body: dict[str, Any]) -> str:
    with pytest.raises(web.HTTPError) as caught:
        read(Fields(body, known=KNOWN))
    assert caught.value.status_code == 400
    return caught.value.get_message()


@pytest.mark.parametrize(
    ("reader", "body", "sentence"),
    [
        (0, {}, "'x' is missing."),
        (0, {"x": 11}, "'x' is 11; it must be a whole number from 0 to 10."),
        (0, {"x": True}, "'x' is true; it must be a whole number from 0 to 10."),
        (0, {"x": 1.0}, "'x' is 1.0; it must be a whole number from 0 to 10."),
        (1, {"x": float("nan")}, "'x' is nan; it must be a number from 0.5 to 10."),
        (2, {"x": 0}, "'x' is 0; it must be true or false."),
        (3, {"x": "up"}, "'x' is 'up'; it must be one of 'left', 'right'."),
        (4, {"x": ["a"]}, "'x' is a list; it must be a text of 1 to 5 characters."),
        (4, {"x": "abcdef"}, "'x' has 6 characters; it may have 1 to 5."),
        (4, {"x": ""}, "'x' has 0 characters; it may have 1 to 5."),
        (5, {"x": ["a", 1]}, "'x' is a list; it must be a list of 1 to 3 texts."),
        (5, {"x": ["a"] * 4}, "'x' has 4 entries; it may have 1 to 3."),
        (5, {"x": ["abcdef"]}, "An entry of 'x' has 6 characters; it may have 5 at most."),
        (6, {"inner": {"x": -1}}, "'inner.x' is -1; it must be a whole number from 0 to 10."),
        (6, {"inner": {"y": 1}}, "There is no field 'inner.y', only x."),
        (6, {"inner": 1}, "'inner' is 1; it must be an object with x."),
        (0, {"x": 1, "y": 1}, "There is no field 'y', only x, inner."),
    ],
)
def test_a_refusal_names_the_field_the_value_and_the_bound(
    reader: int, body: dict[str, Any], sentence: str
) -> None:
    assert refusal(READERS[reader], body) == sentence


@given(
    st.sampled_from(READERS), st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=3), JSON, max_size=3)
)
def test_whatever_comes_is_read_or_refused_in_one_line(
    read: Callable[[Fields], object], body: dict[str, Any]
) -> None:
    try:
        read(Fields(body, known=KNOWN))
    except web.HTTPError as exc:
        assert exc.status_code == 400
        assert exc.get_message().isprintable()
        assert len(exc.get_message()) < 200
