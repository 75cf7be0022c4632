"""Signatures of OpenPGP over images and lists of digests, checked by gpgv against keys that the host names.

gpgv takes every key of the keyring for good, and no other: which keys sign is in the file's hand alone.
"""

import base64
import binascii
import shutil
import subprocess
import tempfile
from pathlib import Path

from qemuspawner.errors import ImageError, MachineError

_ARMOUR = b"-----BEGIN PGP PUBLIC KEY BLOCK-----"
_MAX_KEYRING_BYTES = 16 << 20
# An image of many gigabytes is read once.
_TIMEOUT_S = 3600


def check_detached(document: Path, signature: bytes, keyring: Path) -> None:
    """Raises ImageError where none of the keys has signed it, MachineError where that cannot be told."""
    with tempfile.TemporaryDirectory(prefix="qemuspawner-") as folder:
        path = Path(folder) / "signature"
        path.write_bytes(signature)
        _verify(keyring, Path(folder), [str(path), str(document)])


def read_signed(document: bytes, keyring: Path, *, signature: bytes | None) -> bytes:
    """What is signed of a document: by `signature`, or where that is None, in itself, as clear-signed texts.

    What stands around such a text is left out. Raises as above.
    """
    with tempfile.TemporaryDirectory(prefix="qemuspawner-") as folder:
        path, out = Path(folder) / "document", Path(folder) / "signed"
        path.write_bytes(document)
        if signature is not None:
            check_detached(path, signature, keyring)
            return document
        _verify(keyring, Path(folder), ["--output", str(out), str(path)])
        # A signature alone has nothing to put out.
        return out.read_bytes() if out.exists() else b""


def _verify(keyring: Path, folder: Path, arguments: list[str]) -> None:
    if shutil.which("gpgv") is None:
        raise MachineError("gpgv was not found, which checks signatures.", hint="Install it (Debian: gpgv).")
    keys = folder / "keys.gpg"
    keys.write_bytes(_load_keys(keyring))
    command = ["gpgv", "--homedir", str(folder), "--status-fd", "1", "--keyring", str(keys), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as exc:
        raise MachineError(f"Checking the signature took longer than {_TIMEOUT_S} s.") from exc
    said = {line.split()[1] for line in done.stdout.splitlines() if line.startswith(b"[GNUPG:] ")}
    # Not its exit code: a document may have signatures of older keys besides, which it cannot check.
    if b"GOODSIG" not in said or b"BADSIG" in said:
        raise ImageError(
            f"No key of {keyring} has signed it.",
            hint="It was changed on its way, or the keyring is not that of who signs it by now.",
        )


def _load_keys(keyring: Path) -> bytes:
    """As gpgv takes them; raises MachineError."""
    try:
        with keyring.open("rb") as file:
            content = file.read(_MAX_KEYRING_BYTES)
    except OSError as exc:
        raise MachineError(
            f"The keyring {keyring} cannot be read: {exc.strerror}.",
            hint="Install what has it (Debian's own keys: debian-archive-keyring, debian-keyring), "
            "or change image.keyring.",
        ) from exc
    if _ARMOUR not in content:
        return content
    keys = b""
    for block in content.split(_ARMOUR)[1:]:
        # Headers end with an empty line, the data with a checksum or the last line.
        lines = block.replace(b"\r\n", b"\n").partition(b"\n\n")[2].split(b"\n")
        data = []
        for line in lines:
            if line.startswith((b"=", b"-----")):
                break
            data.append(line.strip())
        try:
            keys += base64.b64decode(b"".join(data), validate=True)
        except binascii.Error as exc:
            raise MachineError(f"The keyring {keyring} is broken: {exc}.") from exc
    return keys
