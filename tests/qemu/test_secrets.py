"""What the session's environment holds, such as the server's token, stays outside the jail."""

import os
from pathlib import Path

import pytest

from qemuspawner.qemu.jail import in_jail, tie_to_parent
from qemuspawner.qemu.process import start_qemu


def test_nothing_of_the_environment_reaches_the_jail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment of QEMU itself nor that of the wall it could look up in /proc."""
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "the-secret")
    script = "PATH=/usr/bin; cat /proc/1/environ > first && cat /proc/*/environ /proc/self/environ > all"
    command = in_jail(
        ["/usr/bin/sh", "-c", script], work_dir=tmp_path, files=[Path("/usr/bin/cat")], kvm=False
    )

    process = start_qemu(tie_to_parent(command, parent_pid=os.getpid()), work_dir=tmp_path)
    _, complaints = process.communicate(timeout=30)

    assert (process.returncode, complaints) == (0, b"")
    # The jail could read the wall's environment: it is there, and the secret is not.
    assert b"PATH=" in (tmp_path / "first").read_bytes()
    assert b"the-secret" not in (tmp_path / "all").read_bytes()
