"""What a host needs of Debian stands in one list."""

import re
import subprocess
from pathlib import Path

import pytest

from qemuspawner.debian import list_packages
from qemuspawner.paths import SYSTEMD_UNITS

PROJECT = Path(__file__).parent.parent

# What the manual installs and no desktop needs.
OTHERS = {"git", "make", "nginx", "apache2"}


def test_the_manual_names_the_packages_of_the_list() -> None:
    """Wherever it says `apt install`, and nothing else than these."""
    told = [
        {word for word in words.split() if not word.startswith("-")}
        for page in sorted((PROJECT / "docs").rglob("*.md"))
        for words in re.findall(r"apt(?:-get)? install ([^\n`]+)", page.read_text())
    ]
    host, build, python, tpm = (set(list_packages(purpose)) for purpose in ("host", "build", "python", "tpm"))

    assert any(host <= words for words in told)
    assert any(build <= words for words in told)
    assert set().union(*told) <= host | build | python | tpm | OTHERS


def test_a_purpose_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="'hosts' is no purpose"):
        list_packages("hosts")


@pytest.mark.parametrize("name", ["jupyterhub.service", "jupyterhub-proxy.service"])
def test_systemd_understands_a_unit(tmp_path: Path, name: str) -> None:
    """All keys and values; with a program that is there."""
    for unit in SYSTEMD_UNITS.glob("*.service"):
        text = unit.read_text().replace("/opt/jupyterhub/bin/jupyterhub", "/usr/bin/true")
        (tmp_path / unit.name).write_text(text)

    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_understands_what_tljhs_hub_needs(tmp_path: Path) -> None:
    """As a drop-in."""
    (tmp_path / "jupyterhub.service").write_text("[Service]\nExecStart=/usr/bin/true\n")
    (tmp_path / "jupyterhub.service.d").mkdir()
    text = (SYSTEMD_UNITS / "tljh.conf").read_text()
    (tmp_path / "jupyterhub.service.d" / "qemuspawner.conf").write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "jupyterhub.service")],
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
