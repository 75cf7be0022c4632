"""The Debian packages that a host needs, by what for."""

from qemuspawner.paths import DEBIAN_PACKAGES


def list_packages(purpose: str) -> list[str]:
    """Those of one line of share/debian/packages, such as "host"."""
    for line in DEBIAN_PACKAGES.read_text().splitlines():
        name, colon, packages = line.partition(":")
        if colon and name == purpose:
            return packages.split()
    raise ValueError(f"'{purpose}' is no purpose in {DEBIAN_PACKAGES}")
