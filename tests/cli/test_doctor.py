"""`qemuspawner doctor` on hosts that lack something: what it says of that, and what it says to do."""

import importlib.util
import json
import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recipes import recipe

from qemuspawner.cli import doctor, main
from qemuspawner.paths import StatePaths
from qemuspawner.qemu import folders, host, jail, network, virtiofs
from qemuspawner.qemu.walls import ALWAYS, JAIL
from qemuspawner.spec import Wall

MACHINE = 'name = "Rocky 9"\n[image]\nfile = "disk.raw"\nformat = "raw"\n'
BUILT = recipe("Built")

Patch = pytest.MonkeyPatch


class Host:
    """What a test takes from this host, and what doctor says then."""

    def __init__(self, root: Path, patch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.patch = root, patch
        self.machines, self.state = root / "machines", StatePaths(root=root / "state")
        self.machines.mkdir()
        self._capsys = capsys

    def find(self, text: str) -> dict[str, str]:
        """The one finding with this text."""
        with pytest.raises(SystemExit):
            main(["--state", str(self.state.root), "--machines", str(self.machines), "doctor", "--json"])
        findings: list[dict[str, str]] = json.loads(self._capsys.readouterr().out)
        # Each time, whatever else this host lacks.
        assert [finding for finding in findings if finding["level"] != "ok" and not finding["hint"]] == []
        (found,) = (finding for finding in findings if text in finding["text"])
        return found

    def lose(self, *names: str) -> None:
        """These programs are on the PATH no more."""
        which = shutil.which
        self.patch.setattr(
            shutil, "which", lambda name, *rest, **more: None if name in names else which(name, *rest, **more)
        )

    def have_qemu(self, script: str) -> None:
        folder = self.root / "bin"
        folder.mkdir()
        for name in host.QEMUS.values():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        self.patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def have_kvm(self, *, may_open: bool | None) -> None:
        """None: there is no such device. It runs no guest in any case."""
        device = self.root / "kvm"
        if may_open is not None:
            device.touch()
        access = os.access
        self.patch.setattr(
            os, "access", lambda path, mode: may_open is True if path == device else access(path, mode)
        )
        self.patch.setattr(doctor, "_KVM", device)
        self.patch.setattr(doctor, "kvm_works", lambda _qemu, _probes: False)

    def add(self, name: str, text: str) -> None:
        (self.machines / name).mkdir()
        (self.machines / name / "machine.toml").write_text(text)


def forget() -> None:
    """What is found once a process."""
    for check in (jail.check_jail, folders.check_binding, network.check_network):
        check.cache_clear()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> Iterator[Host]:
    forget()
    yield Host(tmp_path, monkeypatch, capsys)
    forget()


def lose_account(here: Host) -> None:
    def unknown(name: str) -> pwd.struct_passwd:
        raise KeyError(name)

    here.patch.setattr(os, "geteuid", lambda: 0)
    here.patch.setattr(pwd, "getpwnam", unknown)


def lose_jupyterhub(here: Host) -> None:
    find_spec = importlib.util.find_spec
    here.patch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jupyterhub" else find_spec(name)
    )


def fill_disk(here: Host) -> None:
    here.patch.setattr(os, "statvfs", lambda _folder: SimpleNamespace(f_bavail=3, f_frsize=1 << 20))


def close_machines(here: Host) -> None:
    here.machines.rmdir()
    here.machines.write_text("a file")


def give_probes_to_another(here: Host) -> None:
    here.state.probes.mkdir(parents=True)
    access = os.access
    here.patch.setattr(os, "access", lambda path, mode: path == "/dev/kvm" or access(path, mode))
    os.chown(here.state.probes, 4711, -1)


CASES: dict[str, tuple[Callable[[Host], Any], str, str, str]] = {
    # What is taken away; what is said, how badly, and what to do.
    "no QEMU": (
        lambda here: here.lose(*host.QEMUS.values()),
        "was not found on this host", "error", "Install QEMU",
    ),
    "an old QEMU": (
        lambda here: here.have_qemu("echo QEMU emulator version 5.2.0"),
        "QEMU 5.2.0 is too old", "error", "Install your distribution's QEMU 7.2 or later",
    ),
    "a QEMU that fails": (
        lambda here: here.have_qemu("exit 1"), "--version' failed", "error", "your distribution's",
    ),
    "a QEMU outside the jail": (
        lambda here: here.have_qemu("echo QEMU emulator version 9.0.0"),
        "QEMU does not start in its jail", "error", "below /usr",
    ),
    "no qemu-img": (lambda here: here.lose("qemu-img"), "qemu-img was not found", "error", "qemu-utils"),
    "no /dev/kvm": (
        lambda here: here.have_kvm(may_open=None), "KVM does not run", "warning", "There is no /dev/kvm",
    ),
    "a closed /dev/kvm": (
        lambda here: here.have_kvm(may_open=False), "KVM does not run", "warning", "to the group kvm",
    ),
    "a KVM that hangs": (
        lambda here: here.have_kvm(may_open=True), "KVM does not run", "warning", "nested virtualization",
    ),
    "another's notes about KVM": (give_probes_to_another, "belongs to somebody else", "error", "probes"),
    "no bubblewrap": (
        lambda here: here.lose("bwrap"), "jail around QEMU needs", "error", "Install bubblewrap",
    ),
    "no bubblewrap for folders": (
        lambda here: here.lose("bwrap"), "bubblewrap is too old", "warning", "--bind-fd",
    ),
    "no passt": (lambda here: here.lose("pasta"), "network 'none' only", "warning", "Install them"),
    "no virtiofsd": (
        lambda here: here.patch.setattr(virtiofs, "_PLACES", ()),
        "by 9p alone", "warning", "Install virtiofsd",
    ),
    "no UEFI": (
        lambda here: here.patch.setattr(host, "_UEFI", dict.fromkeys(host.QEMUS, ())),
        "No UEFI firmware", "warning", "Install it (Debian:",
    ),
    "little memory": (
        lambda here: here.patch.setattr(host, "available_memory_mib", lambda: 600),
        "too few for a small desktop", "warning", "add memory",
    ),
    "a full disk": (fill_disk, "The host's disk is full", "error", "Make room in"),
    "no proxy": (
        lambda here: here.lose("configurable-http-proxy"),
        "configurable-http-proxy was not found", "warning", "npm install -g",
    ),
    "no JupyterHub": (lose_jupyterhub, "JupyterHub is not installed", "error", "pip install jupyterhub"),
    "no account": (lose_account, "There is no account 'qemuspawner'", "warning", "useradd --system"),
    "machines that are no folder": (close_machines, "machines: ", "error", "--machines"),
    "a wrong machine.toml": (
        lambda here: here.add("rocky", "name = 3"),
        "rocky/machine.toml, key 'name'", "error", "docs/machines.md",
    ),
    "an image to be built": (
        lambda here: here.add("rocky", BUILT), "The image of 'rocky' is", "warning", "machines build rocky'",
    ),
    "an image to be fetched": (
        lambda here: here.add("rocky", f'{MACHINE}url = "https://example.org/disk.raw"'),
        "The image of 'rocky' is", "warning", "machines fetch rocky'",
    ),
    "an image of one's own": (
        lambda here: here.add("rocky", MACHINE),
        "The image of 'rocky' is", "warning", "machines import rocky FILE'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whatever_a_host_lacks_is_told_with_what_to_do(case: str, here: Host) -> None:
    take_away, text, level, hint = CASES[case]
    take_away(here)

    found = here.find(text)

    assert found["level"] == level
    assert hint in found["hint"]


@pytest.mark.parametrize("wall", [*ALWAYS, *JAIL])
def test_a_wall_that_does_not_stand_is_told_with_what_to_do(wall: Wall, here: Host) -> None:
    standing = [other for other in (*ALWAYS, *JAIL) if other != wall]
    here.patch.setattr(doctor, "try_walls", lambda _qemu: standing)

    found = here.find(f"The wall '{wall}' does not stand, and no desktop starts:")

    assert found["level"] == "error"
