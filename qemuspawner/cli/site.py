"""What `qemuspawner doctor` looks at beyond QEMU: the page, the IOMMU, the hub's proxy, Slurm."""

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.cli.diagnosis import Finding
from qemuspawner.errors import printable
from qemuspawner.gpus import find_gpus
from qemuspawner.paths import STATIC

USUAL_ACCOUNT = "qemuspawner"
_SLURM_TIMEOUT_S = 10
_IOMMU_GROUPS = Path("/sys/kernel/iommu_groups")


def find_in_site() -> Iterator[Finding]:
    yield find_page()
    yield find_iommu()
    yield _find_proxy()
    yield from _find_account()
    if (slurm := find_slurm()) is not None:
        yield slurm


def find_page(static: Path = STATIC) -> Finding:
    """Whether the browser's part is whole: our scripts, and noVNC, which the build brings."""
    if (static / "vendor" / "novnc.js").is_file():
        return Finding(level="ok", text="The desktop's page has noVNC.")
    return Finding(
        level="error",
        text=f"noVNC is missing in {static / 'vendor'}: no desktop can be shown.",
        hint="Install a wheel of qemuspawner (`make wheel`), which has it, and not the sources.",
    )


def find_iommu(groups: Path = _IOMMU_GROUPS) -> Finding:
    """Devices are passed on by their IOMMU groups alone."""
    try:
        count = len(list(groups.iterdir()))
    except OSError:
        count = 0
    if count:
        return Finding(level="ok", text=f"The IOMMU is on: devices are in {count} groups.")
    text = "The IOMMU is off or missing: no GPU can be passed on to desktops."
    hint = (
        "Switch VT-d or AMD-Vi on in the firmware, and boot the kernel with intel_iommu=on or amd_iommu=on, "
        "where desktops shall have GPUs."
    )
    # Without a GPU nothing is lost.
    return Finding(level="warning" if find_gpus() else "ok", text=text, hint=hint if find_gpus() else "")


def _find_proxy() -> Finding:
    if importlib.util.find_spec("jupyterhub") is None:
        return Finding(level="error", text="JupyterHub is not installed.", hint="pip install jupyterhub")
    proxy = shutil.which("configurable-http-proxy")
    if proxy:
        return Finding(level="ok", text=f"JupyterHub's proxy is {proxy}.")
    return Finding(
        level="warning",
        text="configurable-http-proxy was not found on the PATH, which a hub needs on its host.",
        hint="npm install -g configurable-http-proxy, or set c.ConfigurableHTTPProxy.command.",
    )


def _find_account() -> Iterator[Finding]:
    """As root: whose sessions would be."""
    if os.geteuid() != 0:
        return
    try:
        pwd.getpwnam(USUAL_ACCOUNT)
        yield Finding(level="ok", text=f"The account '{USUAL_ACCOUNT}' can run the sessions.")
    except KeyError:
        yield Finding(
            level="warning",
            text=f"There is no account '{USUAL_ACCOUNT}' to run the sessions, which never run as root.",
            hint=f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {USUAL_ACCOUNT}, "
            "or set c.QemuSpawner.run_as to another one.",
        )


def find_slurm() -> Finding | None:
    """Whether jobs can be given to a cluster; None where this host has none of Slurm's commands."""
    if shutil.which("sbatch") is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "ping"],  # noqa: S607 - whichever Slurm the administrator uses
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SLURM_TIMEOUT_S,
            check=False,
        )
        words = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as exc:
        words = str(exc)
    if " UP" in words:
        return Finding(level="ok", text="Slurm's controller answers: desktops can be jobs ('qemu-slurm').")
    last = printable(words.splitlines()[-1] if words else "it says nothing")
    return Finding(
        level="warning",
        text=f"Slurm is installed, and its controller does not answer: {last}.",
        hint="Start slurmctld and munge, where desktops shall be jobs; else nothing is to be done.",
    )
