"""A plug-in of The Littlest JupyterHub: its installer's `--plugin qemuspawner` makes a hub of desktops.

TLJH finds it by the entry point `tljh` and calls what is marked here, by pluggy, which it brings along.

Source: tljh/hooks.py, tljh/installer.py and tljh/jupyterhub_config.py of TLJH 2.0.
"""

import logging
import os
import pwd
import re
import shutil
import subprocess
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pluggy

from qemuspawner import debian, scopes, staff
from qemuspawner.paths import SYSTEMD_UNITS, TEMPLATES, StatePaths

hook = pluggy.HookimplMarker("tljh")
log = logging.getLogger("tljh")

ACCOUNT = "qemuspawner"
STATE = Path("/var/lib/qemuspawner")
DROP_IN = Path("/etc/systemd/system/jupyterhub.service.d/qemuspawner.conf")

_FIRST_JUPYTERHUB = (6, 1)


@hook
def tljh_custom_jupyterhub_config(c: Any) -> None:
    """Set what a hub of desktops needs; files in jupyterhub_config.d come later and may say otherwise."""
    installed = version("jupyterhub")
    if _release(installed) < _FIRST_JUPYTERHUB:
        # TLJH's installer puts its own version in, and starts the hub with it once before it asks plug-ins.
        log.warning("There are no desktops: JupyterHub is %s, and qemuspawner needs 6.1 or later.", installed)
        return
    c.JupyterHub.spawner_class = "qemu"
    c.JupyterHub.template_paths = [str(TEMPLATES)]
    c.JupyterHub.allow_named_servers = True
    c.JupyterHub.custom_scopes = scopes.CUSTOM_SCOPES
    c.JupyterHub.extra_user_scopes = set(scopes.USER_SCOPES)
    c.JupyterHub.services = [*(c.JupyterHub.get("services") or []), staff.service()]
    # Of all spawners TLJH says that users begin in JupyterLab.
    c.QemuSpawner.default_url = ""
    c.QemuSpawner.state_dir = str(STATE)
    c.QemuSpawner.run_as = ACCOUNT


@hook
def tljh_extra_apt_packages() -> list[str]:
    return [*debian.list_packages("host"), *debian.list_packages("build")]


@hook
def tljh_extra_hub_pip_packages() -> list[str]:
    """JupyterHub as we need it, once more: TLJH has put its own version in since the plug-in came."""
    return [one for one in requires("qemuspawner") or [] if re.match(r"jupyterhub\b(?!-)", one)]


@hook
def tljh_post_install() -> None:
    """Make the sessions' account and folders, let the hub's unit reach KVM, and start the hub with that."""
    account = _make_account()
    # As the manual says of the account and the state folder.
    STATE.mkdir(mode=0o711, parents=True, exist_ok=True)
    sessions = StatePaths(root=STATE).sessions
    sessions.mkdir(mode=0o711, exist_ok=True)
    os.chown(sessions, account.pw_uid, account.pw_gid)
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SYSTEMD_UNITS / "tljh.conf", DROP_IN)
    _run("systemctl", "daemon-reload")
    _run("systemctl", "restart", "jupyterhub")


def _make_account() -> pwd.struct_passwd:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        system = ("--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")
        _run("useradd", *system, "--home-dir", str(STATE), ACCOUNT)
    # udev makes the group; a host in a container may have none.
    _run("groupadd", "--system", "--force", "kvm")
    _run("usermod", "--append", "--groups", "kvm", ACCOUNT)
    return pwd.getpwnam(ACCOUNT)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _release(version: str) -> tuple[int, ...]:
    """ "6.1.0rc1" -> (6, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
