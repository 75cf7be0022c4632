"""Texts that people give of a desktop: its name, their notes, a script."""

import json
import unicodedata
from collections.abc import Callable

from qemuspawner.texts import Text

Parse = Callable[[object], str]

MAX_NAME = 80
MAX_NOTES = 2000

# They turn the order of what stands around them: a name could look like another one.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def text_of(max_length: int, *, lines: bool = False) -> Parse:
    """Text of at most so many characters; of several lines where `lines` says so. Raises ValueError."""

    def parse_text(value: object) -> str:
        text = _parse(value, lines=lines).strip()
        if len(text) > max_length:
            raise ValueError(Text("it has {count} characters", count=len(text)))
        return text

    return parse_text


def is_writable(value: object) -> bool:
    """Whether every text in a JSON value can be written in UTF-8: half of a surrogate pair cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def is_cloud_config(script: str) -> bool:
    """Whether a script is for cloud-init, rather than a program."""
    return script.split("\n", 1)[0].rstrip() == "#cloud-config"


def script_of(max_kib: int, *, no_cloud_config: str) -> Parse:
    """A program that the guest can run, a #cloud-config, or nothing. Raises ValueError.

    `no_cloud_config` says why there is none of the second kind; "" where there may be.
    """

    def parse_script(value: object) -> str:
        script = _parse(value, lines=True)
        if not script.strip():
            return ""
        size = len(script.encode())
        if size > max_kib * 1024:
            raise ValueError(Text("it has {count} bytes", count=size))
        if is_cloud_config(script):
            if no_cloud_config:
                raise ValueError(no_cloud_config)
        elif not script.startswith("#!"):
            raise ValueError(Text("it does not begin so"))
        # Browsers end the last line of a field nowhere.
        return script if script.endswith("\n") else f"{script}\n"

    return parse_script


def _parse(value: object, *, lines: bool) -> str:
    if not isinstance(value, str):
        raise ValueError(Text("it is not a text"))
    text = value.replace("\r\n", "\n")
    allowed = "\n\t" if lines else ""
    for char in text:
        if char not in allowed and (unicodedata.category(char) in ("Cc", "Cs") or char in _TURNING):
            raise ValueError(Text("it has characters that cannot be shown"))
    return text
