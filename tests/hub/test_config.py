"""The example configuration."""

import stat
from pathlib import Path

import pytest
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

EXAMPLE = Path(__file__).parent.parent.parent / "jupyterhub_config.py"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    proxy = tmp_path / "bin/configurable-http-proxy"
    proxy.parent.mkdir()
    proxy.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(proxy.parent))
    monkeypatch.setenv("QEMUSPAWNER_STATE", str(tmp_path / "state"))
    return PyFileConfigLoader(str(EXAMPLE)).load_config()


def test_the_database_is_closed_to_other_accounts(example: Config, tmp_path: Path) -> None:
    """JupyterHub would make it with the usual umask, in a folder that others can go through."""
    database = tmp_path / "state/jupyterhub.sqlite"

    assert example.JupyterHub.db_url == f"sqlite:///{database}"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
