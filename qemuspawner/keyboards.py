"""The keyboard layouts that a guest can be told; share/static/layouts.js has what is on their keys."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Keyboard:
    """A layout by its names in XKB, which Linux guests know."""

    title: str  # as people read it
    layout: str
    variant: str = ""


KEYBOARDS = {
    "us": Keyboard(title="English (US)", layout="us"),
    "gb": Keyboard(title="English (UK)", layout="gb"),
    "de": Keyboard(title="German", layout="de"),
    "fr": Keyboard(title="French", layout="fr"),
    "es": Keyboard(title="Spanish", layout="es"),
    "ch": Keyboard(title="German (Switzerland)", layout="ch"),
    "ch-fr": Keyboard(title="French (Switzerland)", layout="ch", variant="fr"),
}
