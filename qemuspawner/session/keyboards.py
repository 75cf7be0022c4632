"""The keyboard layouts that a guest can be told; share/static/layouts.js has what is on their keys."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Keyboard:
    """A layout by its names in XKB, which Linux guests know."""

    layout: str
    variant: str = ""


KEYBOARDS = {
    "us": Keyboard(layout="us"),
    "gb": Keyboard(layout="gb"),
    "de": Keyboard(layout="de"),
    "fr": Keyboard(layout="fr"),
    "es": Keyboard(layout="es"),
    "ch": Keyboard(layout="ch"),
    "ch-fr": Keyboard(layout="ch", variant="fr"),
}
