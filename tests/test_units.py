"""Sizes and durations as text, there and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuspawner.units import parse_mib, parse_seconds, render_mib, render_seconds


@pytest.mark.parametrize(
    ("text", "mib"),
    [("2 GiB", 2048), ("512 MiB", 512), ("512", 512), (512, 512), ("1.5 g", 1536), ("1 TiB", 1 << 20)],
)  # fmt: skip
def test_a_size_is_read_in_mib(text: object, mib: int) -> None:
    assert parse_mib(text) == mib


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8 h", 28800),
        ("30 min", 1800),
        ("30m", 1800),
        ("2 days", 172800),
        ("1 w", 604800),
        ("90", 90),
        (0, 0),
    ],
)
def test_a_duration_is_read_in_seconds(text: object, seconds: int) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GiB",
        "2 GiB\n3",
        "2,foo=bar",
        "-1",
        "1e9",
        "0x10",
        "\uff12 GiB",
        "2 h",
        True,
        None,
        2.5,
        [2],
        pytest.param("9" * 1_000_000, id="long"),
    ],
)
def test_what_is_no_size_is_refused_without_being_repeated(value: object) -> None:
    with pytest.raises(ValueError, match='it is not of the form "2 GiB", or a whole number of MiB'):
        parse_mib(value)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="it is negative"):
        parse_seconds(-1)


def test_a_fraction_of_the_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="it is not a whole number of MiB"):
        parse_mib("0.3 MiB")


@pytest.mark.parametrize(
    ("mib", "text"), [(512, "512 MiB"), (2048, "2 GiB"), (1536, "1.5 GiB"), (15 << 20, "15 TiB")]
)
def test_a_size_is_written_in_the_larger_unit(mib: int, text: str) -> None:
    assert render_mib(mib) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (5400, "1 h 30 min"), (90061, "1 d 1 h"), (86400, "1 d")],
)
def test_a_duration_is_written_in_its_two_largest_parts(seconds: float, text: str) -> None:
    assert render_seconds(seconds) == text


@given(st.integers(min_value=0, max_value=9999))
def test_a_size_in_gib_comes_back(gib: int) -> None:
    assert parse_mib(render_mib(gib * 1024)) == gib * 1024


@given(st.text())
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for parse in (parse_mib, parse_seconds):
        try:
            assert parse(text) >= 0
        except ValueError as exc:
            assert str(exc).startswith("it is")
