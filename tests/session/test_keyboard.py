"""The US keyboard that programs type on."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuspawner.session.screen.keyboard import SHIFT, Chord, parse_chord, parse_text


def codes(chord: Chord) -> list[int]:
    return [key.scan_code for key in chord]


def test_characters_are_the_keys_they_are_on() -> None:
    assert [codes(chord) for chord in parse_text("a\tZ\r\n~")] == [
        [0x1E], [0x0F], [0x2A, 0x2C], [0x1C], [0x2A, 0x29]
    ]  # fmt: skip


def test_every_printable_ascii_character_has_keys_of_its_own() -> None:
    text = string.digits + string.ascii_letters + string.punctuation + " \n\t"

    assert len(set(parse_text(text))) == len(text)


def test_characters_that_are_not_on_it_are_named() -> None:
    with pytest.raises(ValueError, match=r"no US keyboard has: U\+0000, 'ä', '€'\.$"):
        parse_text("a€bä\0ä")


def test_of_many_missing_characters_some_are_named() -> None:
    with pytest.raises(ValueError, match=r"'Ā', .* and 5 more\.$"):
        parse_text("".join(chr(0x100 + at) for at in range(15)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return", [0x1C]),
        ("enter", [0x1C]),
        ("ctrl+c", [0x1D, 0x2E]),
        ("Ctrl+Alt+Delete", [0x1D, 0x38, 0xD3]),
        ("super+=", [0xDB, 0x0D]),
        ("F10", [0x44]),
        ("f12", [0x58]),
        ("Page_Up", [0xC9]),
        ("space", [0x39]),
        ("A", [0x1E]),
    ],
)
def test_a_chord_is_named_by_its_keys(text: str, expected: list[int]) -> None:
    assert codes(parse_chord(text)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no key ''"),
        ("ctrl++", "no key ''"),
        ("!", "no key '!'"),
        ("hyper", "no key 'hyper'"),
        ("ctrl+control", "twice"),
        ("a+b+c+d+e+f", "6 keys; at most 5"),
        ("\n" * 60, r"no key '\\n"),
    ],
)
def test_a_chord_that_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_chord(text)


def test_letters_with_shift_have_the_keysym_of_the_capital() -> None:
    """QEMU would take a small letter with Shift for caps lock, and press that."""
    shift, letter = parse_text("Q")[0]

    assert (shift, letter.shifted, letter.plain) == (SHIFT, ord("Q"), ord("q"))


@given(st.text())
def test_any_text_is_typed_or_refused_with_a_sentence(text: str) -> None:
    for parse in (parse_text, parse_chord):
        try:
            assert parse(text) is not None
        except ValueError as exc:
            assert str(exc).isprintable()
            assert str(exc).endswith(".")
