"""The keyboard layouts that a guest can be told; share/static/layouts.js has what is on their keys."""

from dataclasses import dataclass

from qemuspawner.texts import Text


@dataclass(frozen=True, kw_only=True)
class Keyboard:
    """A layout by its names in XKB, which Linux guests know."""

    title: str  # as people read it
    layout: str
    variant: str = ""


KEYBOARDS = {
    "us": Keyboard(title=Text("English (US)"), layout="us"),
    "gb": Keyboard(title=Text("English (UK)"), layout="gb"),
    "de": Keyboard(title=Text("German"), layout="de"),
    "fr": Keyboard(title=Text("French"), layout="fr"),
    "es": Keyboard(title=Text("Spanish"), layout="es"),
    "ch": Keyboard(title=Text("German (Switzerland)"), layout="ch"),
    "ch-fr": Keyboard(title=Text("French (Switzerland)"), layout="ch", variant="fr"),
}
