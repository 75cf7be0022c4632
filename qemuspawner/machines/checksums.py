"""The lists of digests that distributions publish beside their images, in their usual forms.

SHA256SUMS of coreutils (`HEX  NAME`), CHECKSUM of BSD (`SHA256 (NAME) = HEX`), and files with a digest alone.
"""

import re

from qemuspawner.errors import ImageError

_ALGORITHMS = {64: "sha256", 128: "sha512"}
_HEX = r"([0-9a-fA-F]{64}|[0-9a-fA-F]{128})"
_COREUTILS = re.compile(rf"{_HEX} [ *](?:\./)?(.+)")
_BSD = re.compile(rf"SHA(?:256|512) \((.+)\) = {_HEX}")
_ALONE = re.compile(_HEX)


def find_digest(text: str, name: str) -> str:
    """What the list says of the file `name`, as `sha256:HEX` or, where it has that too, `sha512:HEX`.

    Raises:
        ImageError: It does not name the file, or says two things of it.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and (alone := _ALONE.fullmatch(lines[0])):
        return _spell(alone[1])
    found = set()
    for line in lines:
        if (match := _COREUTILS.fullmatch(line)) and match[2] == name:
            found.add(_spell(match[1]))
        elif (match := _BSD.fullmatch(line)) and match[1] == name:
            found.add(_spell(match[2]))
    if not found:
        raise ImageError(
            f"The list of digests does not name '{name}'.",
            hint="There may be a newer image under another name; look at image.url and image.checksums.",
        )
    # The longer one; two of a length contradict each other.
    best = max(map(len, found))
    digests = [digest for digest in found if len(digest) == best]
    if len(digests) > 1:
        raise ImageError(f"The list of digests says two things of '{name}'.")
    return digests[0]


def _spell(digits: str) -> str:
    return f"{_ALGORITHMS[len(digits)]}:{digits.lower()}"
