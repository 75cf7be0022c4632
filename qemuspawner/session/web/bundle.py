"""The desktop page's scripts and styles as the build made them: few, small, and named by their content."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = "built"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Names below the page's static files."""

    script: str
    style: str
    icons: str
    preloads: tuple[str, ...]  # what the script imports at once


def find_bundle(static: Path) -> Bundle | None:
    """What hatch_build.py has bundled in `static`; None where the sources have changed since, or never were.

    So in a checkout an edited module is what the browser gets, with nothing to build between.
    """
    folder = static / FOLDER
    try:
        built = json.loads((folder / "built.json").read_bytes())
        for name, digest in built["sources"].items():
            if hashlib.sha256((static / name).read_bytes()).hexdigest() != digest:
                return None
    except FileNotFoundError:
        return None
    return Bundle(
        script=f"{FOLDER}/{built['script']}",
        style=f"{FOLDER}/{built['style']}",
        icons=f"{FOLDER}/{built['icons']}",
        preloads=tuple(f"{FOLDER}/{name}" for name in built["preloads"]),
    )
