"""The plug-in as The Littlest JupyterHub calls it."""

import os
import pwd
from pathlib import Path
from typing import Any

import pluggy
import pytest
from traitlets.config import Config

from qemuspawner import tljh

hookspec = pluggy.HookspecMarker("tljh")


class Hooks:
    """Those of TLJH 2.0 that we have something for, by the names and arguments of its tljh/hooks.py."""

    @hookspec
    def tljh_custom_jupyterhub_config(self, c: Any) -> None: ...

    @hookspec
    def tljh_extra_apt_packages(self) -> None: ...

    @hookspec
    def tljh_extra_hub_pip_packages(self) -> None: ...

    @hookspec
    def tljh_post_install(self) -> None: ...


@pytest.fixture
def hook() -> Any:
    manager = pluggy.PluginManager("tljh")
    manager.add_hookspecs(Hooks)
    manager.register(tljh)
    manager.check_pending()
    return manager.hook


@pytest.fixture
def config() -> Config:
    """As TLJH leaves it to its plug-ins."""
    config = Config()
    config.JupyterHub.spawner_class = "tljh.user_creating_spawner.UserCreatingSpawner"
    config.JupyterHub.services = [{"name": "cull-idle"}]
    config.Spawner.default_url = "/lab"
    return config


def test_a_hub_of_tljh_gets_desktops(hook: Any, config: Config) -> None:
    hook.tljh_custom_jupyterhub_config(c=config)

    assert config.JupyterHub.spawner_class == "qemu"
    assert [one["name"] for one in config.JupyterHub.services] == ["cull-idle", "desktops"]
    assert config.QemuSpawner.run_as == "qemuspawner"
    assert config.QemuSpawner.default_url == ""


def test_a_hub_that_is_too_old_stays_as_it_is(
    hook: Any, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Notebooks go on, and the log says why there are no desktops."""
    monkeypatch.setattr(tljh, "version", lambda _: "5.4.0")
    before = config.copy()

    hook.tljh_custom_jupyterhub_config(c=config)

    assert config == before
    assert "JupyterHub is 5.4.0" in caplog.text


def test_the_installer_is_told_what_else_is_needed(hook: Any) -> None:
    """Debian's packages from the one list, and the JupyterHub that we need."""
    (debian,), (python,) = hook.tljh_extra_apt_packages(), hook.tljh_extra_hub_pip_packages()

    assert {"qemu-system-x86", "bubblewrap", "mmdebstrap"} <= set(debian)
    assert [one.partition(">")[0].partition("<")[0] for one in python] == ["jupyterhub"]


def test_the_installer_makes_account_folders_and_drop_in(
    hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it starts the hub again; for an account that is there already."""
    account = pwd.getpwuid(os.geteuid())
    said = tmp_path / "said"
    for name in ("systemctl", "groupadd", "useradd", "usermod"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {said}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(tljh, "ACCOUNT", account.pw_name)
    monkeypatch.setattr(tljh, "STATE", tmp_path / "state")
    monkeypatch.setattr(tljh, "DROP_IN", tmp_path / "jupyterhub.service.d" / "qemuspawner.conf")

    hook.tljh_post_install()

    assert said.read_text().splitlines() == [
        "groupadd --system --force kvm",
        f"usermod --append --groups kvm {account.pw_name}",
        "systemctl daemon-reload",
        "systemctl restart jupyterhub",
    ]
    assert "\nPrivateDevices=no\n" in (tmp_path / "jupyterhub.service.d" / "qemuspawner.conf").read_text()
    assert (tmp_path / "state" / "sessions").stat().st_uid == account.pw_uid
