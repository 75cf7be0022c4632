"""The page's tables of keyboards: what XKB has, and the layout that fits a browser's own map."""

import ctypes
import json
import subprocess
from typing import Any

import pytest

from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.paths import STATIC

# Every character of Latin and of the signs around it.
CHARACTERS = [chr(point) for point in (*range(0x20, 0x7F), *range(0xA0, 0x180), *range(0x2010, 0x2200))]
# Scan codes of Linux and 8, as XKB counts.
KEYCODES = {
    code: number
    for start, codes in (
        (49, "Backquote"),
        (10, "Digit1 Digit2 Digit3 Digit4 Digit5 Digit6 Digit7 Digit8 Digit9 Digit0 Minus Equal"),
        (24, "KeyQ KeyW KeyE KeyR KeyT KeyY KeyU KeyI KeyO KeyP BracketLeft BracketRight"),
        (38, "KeyA KeyS KeyD KeyF KeyG KeyH KeyJ KeyK KeyL Semicolon Quote"),
        (51, "Backslash"),
        (94, "IntlBackslash"),
        (52, "KeyZ KeyX KeyC KeyV KeyB KeyN KeyM Comma Period Slash"),
        (65, "Space"),
    )
    for number, code in enumerate(codes.split(), start)
}
DEAD = {
    "\u0300": "dead_grave",
    "\u0301": "dead_acute",
    "\u0302": "dead_circumflex",
    "\u0303": "dead_tilde",
    "\u0308": "dead_diaeresis",
}


class Names(ctypes.Structure):
    """struct xkb_rule_names of xkbcommon.h."""

    _fields_ = tuple((name, ctypes.c_char_p) for name in ("rules", "model", "layout", "variant", "options"))


class Xkb:
    """A layout as libxkbcommon reads it, which Chromium brings along."""

    def __init__(self, layout: str, variant: str) -> None:
        self._library = ctypes.CDLL("libxkbcommon.so.0")
        for name in ("xkb_context_new", "xkb_keymap_new_from_names"):
            getattr(self._library, name).restype = ctypes.c_void_p
        context = self._library.xkb_context_new(0)
        names = Names(b"evdev", b"pc105", layout.encode(), variant.encode(), b"")
        self._keymap = self._library.xkb_keymap_new_from_names(
            ctypes.c_void_p(context), ctypes.byref(names), 0
        )

    def symbol(self, code: str, level: int) -> str:
        """The character, or the name of what is none."""
        symbols = ctypes.POINTER(ctypes.c_uint32)()
        count = self._library.xkb_keymap_key_get_syms_by_level(
            ctypes.c_void_p(self._keymap), KEYCODES[code], 0, level, ctypes.byref(symbols)
        )
        if count < 1:
            return ""
        text = ctypes.create_string_buffer(64)
        self._library.xkb_keysym_get_name(symbols[0], text, 64)
        if text.value.startswith(b"dead_"):
            return text.value.decode()
        self._library.xkb_keysym_to_utf8(symbols[0], text, 64)
        return text.value.decode()


def in_page(expression: str, *values: object) -> Any:
    """Evaluate JavaScript that has the module's functions as `layouts`, and `values`."""
    script = f"""
        import * as layouts from {json.dumps((STATIC / "layouts.js").as_uri())};
        const values = {json.dumps(values)};
        console.log(JSON.stringify({expression}));
    """
    command = ["node", "--input-type=module", "--no-warnings", "-e", script]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("name", KEYBOARDS)
def test_a_character_is_typed_by_the_keys_that_make_it(name: str) -> None:
    """Alone, with Shift, with AltGr, or after a dead key."""
    keyboard = KEYBOARDS[name]
    xkb = Xkb(keyboard.layout, keyboard.variant)

    found = in_page("values[1].map((one) => layouts.findStrokes(values[0], one))", name, CHARACTERS)

    typed = {character: strokes for character, strokes in zip(CHARACTERS, found, strict=True) if strokes}
    for character, strokes in typed.items():
        for stroke in strokes:
            level = 2 if stroke.get("altgr") else 1 if stroke.get("shift") else 0
            wanted = DEAD.get(stroke["character"], stroke["character"])
            assert xkb.symbol(stroke["code"], level) == wanted, (character, stroke)
    # What a keyboard is bought for.
    assert set(map(chr, range(0x21, 0x7F))) <= typed.keys()


def test_the_page_offers_the_layouts_that_sessions_know() -> None:
    assert in_page("layouts.LAYOUTS") == list(KEYBOARDS)


@pytest.mark.parametrize("name", KEYBOARDS)
def test_a_browsers_map_tells_the_layout(name: str) -> None:
    keyboard = KEYBOARDS[name]
    xkb = Xkb(keyboard.layout, keyboard.variant)
    symbols = {code: xkb.symbol(code, 0) for code in KEYCODES if code != "Space"}
    shown = {code: symbol if len(symbol) == 1 else "^" for code, symbol in symbols.items()}

    assert in_page("layouts.matchLayout(new Map(Object.entries(values[0])))", shown) == name


CYRILLIC = {f"Key{letter}": "\u0444" for letter in "QWERTYUIOPASDFGHJKLZXCVBNM"}


@pytest.mark.parametrize("shown", [{}, {"KeyQ": "q"}, CYRILLIC])
def test_a_map_that_fits_none_tells_nothing(shown: dict[str, str]) -> None:
    """Nor one of too few keys."""
    assert in_page("layouts.matchLayout(new Map(Object.entries(values[0])))", shown) is None


@pytest.mark.parametrize(
    ("language", "layout"),
    [
        ("de", "de"), ("de-AT", "de"), ("de-CH", "ch"), ("fr-CH", "ch-fr"), ("fr-CA", ""), ("fr", "fr"),
        ("en-GB", "gb"), ("en-US", "us"), ("en", "us"), ("es-ES", "es"), ("es-MX", ""), ("ja", ""),
    ],
)  # fmt: skip
def test_a_language_is_only_a_guess(language: str, layout: str) -> None:
    assert in_page("layouts.guessByLanguage(values[0])", language) == layout
