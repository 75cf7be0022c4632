"""A US keyboard: which key makes which character, and what programs call the keys.

QEMU is told keys by their place (scan codes of set 1; 0x80 is added for those that begin with 0xE0), and the
X keysym that goes with them: from a letter's case it sees that caps lock is on, and switches it off.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key by its place, with the keysyms that it has without and with Shift."""

    scan_code: int
    plain: int
    shifted: int


# Pressed one after the other, and released in reverse.
Chord = tuple[Key, ...]

MAX_CHORD_KEYS = 5
_SHOWN_CHARACTERS = 10

_ROWS = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
)

_NAMED = {
    # name: (scan code, keysym)
    "escape": (0x01, 0xFF1B),
    "backspace": (0x0E, 0xFF08),
    "tab": (0x0F, 0xFF09),
    "return": (0x1C, 0xFF0D),
    "ctrl": (0x1D, 0xFFE3),
    "shift": (0x2A, 0xFFE1),
    "alt": (0x38, 0xFFE9),
    "altgr": (0xB8, 0xFE03),
    "super": (0xDB, 0xFFEB),
    "menu": (0xDD, 0xFF67),
    "print": (0x54, 0xFF61),
    "home": (0xC7, 0xFF50),
    "up": (0xC8, 0xFF52),
    "page_up": (0xC9, 0xFF55),
    "left": (0xCB, 0xFF51),
    "right": (0xCD, 0xFF53),
    "end": (0xCF, 0xFF57),
    "down": (0xD0, 0xFF54),
    "page_down": (0xD1, 0xFF56),
    "insert": (0xD2, 0xFF63),
    "delete": (0xD3, 0xFFFF),
    **{f"f{number}": (0x3A + number, 0xFFBD + number) for number in range(1, 11)},
    "f11": (0x57, 0xFFC8),
    "f12": (0x58, 0xFFC9),
}

# What others call the same keys.
_ALIASES = {
    "control": "ctrl",
    "enter": "return",
    "esc": "escape",
    "del": "delete",
    "meta": "super",
    "win": "super",
    "pageup": "page_up",
    "pagedown": "page_down",
}

# By name; those that make a character are called as it without Shift, the space bar "space".
_KEYS: dict[str, Key] = {
    name: Key(scan_code=code, plain=keysym, shifted=keysym) for name, (code, keysym) in _NAMED.items()
} | {
    "space" if plain == " " else plain: Key(scan_code=first + at, plain=ord(plain), shifted=ord(shifted))
    for first, row, shifted_row in _ROWS
    for at, (plain, shifted) in enumerate(zip(row, shifted_row, strict=True))
}

SHIFT = _KEYS["shift"]

_CHARACTERS: dict[str, Chord] = {
    "\n": (_KEYS["return"],),
    "\t": (_KEYS["tab"],),
    **{chr(key.shifted): (SHIFT, key) for key in _KEYS.values() if key.shifted < 0x80},
    **{chr(key.plain): (key,) for key in _KEYS.values() if key.plain < 0x80},
}


def parse_text(text: str) -> list[Chord]:
    """What types `text`, a chord a character; "\\n" is Return, "\\t" Tab.

    Raises:
        ValueError: Characters that are on no US keyboard; the text is a sentence that names them.
    """
    text = text.replace("\r\n", "\n")
    missing = sorted(set(text) - _CHARACTERS.keys())
    if missing:
        shown = ", ".join(_show(char) for char in missing[:_SHOWN_CHARACTERS])
        more = f" and {len(missing) - _SHOWN_CHARACTERS} more" if len(missing) > _SHOWN_CHARACTERS else ""
        raise ValueError(f"The text has characters that no US keyboard has: {shown}{more}.")
    return [_CHARACTERS[char] for char in text]


def parse_chord(text: str) -> Chord:
    """The keys of a chord such as "ctrl+shift+t" or "Return"; case does not matter.

    Raises:
        ValueError: A key that there is not, or too many; the text is a sentence.
    """
    names = text.lower().split("+")
    if len(names) > MAX_CHORD_KEYS:
        raise ValueError(f"A chord has {len(names)} keys; at most {MAX_CHORD_KEYS} are pressed together.")
    keys = []
    for name in names:
        key = _KEYS.get(_ALIASES.get(name, name))
        if key is None:
            raise ValueError(
                f"There is no key {name[:20]!r}; keys are called as without Shift: 'a', '=', 'Return', 'F5'."
            )
        if key in keys:
            raise ValueError(f"The key '{name}' is twice in one chord.")
        keys.append(key)
    return tuple(keys)


def _show(char: str) -> str:
    return f"'{char}'" if char.isprintable() else f"U+{ord(char):04X}"
