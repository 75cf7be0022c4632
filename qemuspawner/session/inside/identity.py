"""Whose a guest is, as it is told: names, an account, and random numbers of its own."""

import os
import re
import secrets
import time
import unicodedata
import uuid

from qemuspawner.account import Sudo, find_sudo
from qemuspawner.spec import SessionSpec

# One label of a DNS name, RFC 1123: letters, digits and hyphens, 63 at most.
_MAX_HOST_NAME = 63
_ID_DIGITS = 6
# Colon and newline separate in /etc/passwd, a comma within the comment, "&" stands for the account's name.
_NOT_IN_FULL_NAME = re.compile(r'[:,=&\\"]')
_MAX_FULL_NAME = 80


def make_environment(spec: SessionSpec, *, way: str) -> dict[str, str]:
    """What the script in the guest is told; the first five are for the machine's own hooks, too."""
    return {
        "QEMUSPAWNER_USER": _sendable(spec.user),
        "QEMUSPAWNER_SERVER": _sendable(spec.server_name),
        "QEMUSPAWNER_SESSION": spec.session_id,
        "QEMUSPAWNER_WAY": way,
        # Below it lie the web tools; a path of JupyterHub's, quoted as in a URL.
        "QEMUSPAWNER_PREFIX": os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/"),
        **_account_environment(spec),
        "QEMUSPAWNER_HOST_NAME": host_name(spec),
        "QEMUSPAWNER_MACHINE_ID": uuid.uuid4().hex,
        "QEMUSPAWNER_SEED": secrets.token_hex(64),
        "QEMUSPAWNER_BOOT_SEED": secrets.token_hex(64),
        "QEMUSPAWNER_NOW": f"{time.time():.2f}",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def _account_environment(spec: SessionSpec) -> dict[str, str]:
    """Who its user is there. All but the full name and the home are of few characters, by their patterns."""
    account = spec.account
    told = {
        "FULL_NAME": full_name((account and account.full_name) or spec.user),
        "HOME": spec.machine.home,
        "SUDO": sudo_of(spec),
        "LANGUAGE": account.language if account else "",
        "LOGIN": spec.machine.login if account else "machine",
        "ACCOUNT": account.name if account else "",
        "UID": str(account.uid) if account else "",
        "GID": str(account.gid) if account else "",
        "GROUPS": " ".join(f"{group.name}:{group.gid}" for group in account.groups) if account else "",
    }
    return {f"QEMUSPAWNER_{name}": value for name, value in told.items()}


def sudo_of(spec: SessionSpec) -> Sudo:
    """Whether the user may become root in the guest."""
    return find_sudo(spec.sudo, by_machine=spec.machine.sudo)


def host_name(spec: SessionSpec) -> str:
    """The server's name, or else the machine's, and digits of the session's: "analysis-3f2a9c"."""
    digits = spec.session_id[:_ID_DIGITS]
    words = _as_label(spec.server_name) or _as_label(spec.machine.id) or "desktop"
    return f"{words[: _MAX_HOST_NAME - 1 - len(digits)].rstrip('-')}-{digits}"


def _as_label(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def full_name(user: str) -> str:
    """The user's name as /etc/passwd can hold it."""
    plain = "".join(char for char in user if char.isprintable())
    return _NOT_IN_FULL_NAME.sub("", plain).strip()[:_MAX_FULL_NAME].strip()


def _sendable(text: str) -> str:
    """No environment can carry a NUL."""
    return text.replace("\0", "")
