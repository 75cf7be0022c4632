"""What a saved VM depends on, and what is taken from a folder that QEMU may write to."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.paths import SavedPaths
from qemuspawner.qemu import command, host, saving
from qemuspawner.qemu.host import Qemu
from qemuspawner.qemu.saving import collect_disks, copy_from_qemu, fingerprint, sync_file
from qemuspawner.saved import Fingerprint

# What QEMU's folder may hold


@pytest.fixture
def target(tmp_path: Path) -> SavedPaths:
    (tmp_path / "saved").mkdir()
    return SavedPaths(root=tmp_path / "saved")


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    (tmp_path / "vm").mkdir()
    return tmp_path / "vm"


def link(path: Path) -> None:
    secret = path.parent.parent / "secret"
    secret.write_text("another's")
    path.symlink_to(secret)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


TRAPS = [link, os.mkfifo, listen]


def test_what_was_frozen_gets_a_second_name(target: SavedPaths, vm: Path) -> None:
    (vm / "disk-0.qcow2").write_bytes(b"disk")
    (vm / "vars.fd").write_bytes(b"variables")

    files = collect_disks(target, [vm / "disk-0.qcow2"], vm / "vars.fd", vm / "tpm")

    assert target.layer(0).samefile(vm / "disk-0.qcow2")
    assert target.firmware_vars.read_bytes() == b"variables"
    assert {name: file.size_bytes for name, file in files.items()} == {"disk-0.qcow2": 4, "vars.fd": 9}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_disk_that_is_none_is_not_kept(trap: Callable[[Path], None], target: SavedPaths, vm: Path) -> None:
    trap(vm / "disk-0.qcow2")

    with pytest.raises(VmError, match=r"'disk-0\.qcow2' lies something else"):
        collect_disks(target, [vm / "disk-0.qcow2"], vm / "vars.fd", vm / "tpm")
    assert list(target.root.iterdir()) == []


@pytest.mark.parametrize("trap", TRAPS)
def test_variables_that_are_none_are_not_kept(
    trap: Callable[[Path], None], target: SavedPaths, vm: Path
) -> None:
    trap(vm / "vars.fd")

    with pytest.raises(VmError, match=r"'vars\.fd' lies something else"):
        collect_disks(target, [], vm / "vars.fd", vm / "tpm")
    assert list(target.root.iterdir()) == []


def test_a_state_of_the_tpm_is_kept_with_the_disk(target: SavedPaths, vm: Path) -> None:
    (vm / "tpm").write_bytes(b"secrets")

    files = collect_disks(target, [], vm / "vars.fd", vm / "tpm")

    assert list(files) == ["tpm"]
    assert target.tpm_state.read_bytes() == b"secrets"


def test_a_link_to_nothing_is_no_missing_file(target: SavedPaths, vm: Path) -> None:
    (vm / "vars.fd").symlink_to("nowhere")

    with pytest.raises(VmError, match="something else"):
        collect_disks(target, [], vm / "vars.fd", vm / "tpm")


def test_variables_of_gigabytes_are_not_kept(target: SavedPaths, vm: Path) -> None:
    (vm / "vars.fd").touch()
    os.truncate(vm / "vars.fd", (64 << 20) + 1)

    with pytest.raises(VmError, match="larger than 64 MiB"):
        collect_disks(target, [], vm / "vars.fd", vm / "tpm")


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_no_file_is_neither_copied_nor_waited_for(trap: Callable[[Path], None], vm: Path) -> None:
    trap(vm / "state")

    with pytest.raises(VmError, match="something else"):
        copy_from_qemu(vm / "state", vm / "copy")
    with pytest.raises(VmError, match="something else"):
        sync_file(vm / "state")


# What a saved VM depends on


@pytest.fixture
def fingerprint_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fingerprint]:
    disk = tmp_path / "disk"
    disk.touch()
    firmware = (tmp_path / "code.fd", tmp_path / "vars.fd")
    for path in firmware:
        path.touch()
    monkeypatch.setattr(host, "_UEFI", {"x86_64": (firmware,)})
    qemu = Qemu(program=Path("qemu"), architecture="x86_64", version=(7, 2, 0), build="7.2.0")

    def make(*, image: dict[str, Any] | None = None, **keys: Any) -> Fingerprint:
        files = {"file": str(disk), "format": "qcow2", **(image or {})}
        machine = vms.make_machine(**{"agent": True, "firmware": "uefi", **keys, "image": files})
        return fingerprint(machine, cpus=1, memory_mib=64, accelerator="tcg", qemu=qemu)

    return make


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SANDBOX", "on"),
        ("VNC_SOCKET", "elsewhere"),
        ("QMP_SOCKET", "elsewhere"),
        ("AGENT_SOCKET", "elsewhere"),
        ("TCG_CACHE_MIB", 128),
        ("SOUND_RATE_HZ", 44100),
        ("overlay_node", lambda name, path: {"driver": "qcow2", "node-name": name, "file": str(path)}),
    ],
)
def test_what_only_the_host_sees_may_change(
    name: str, value: object, fingerprint_of: Callable[..., Fingerprint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new version of ours must not take away everybody's sleeping desktops for it."""
    before = fingerprint_of(sound=True)

    monkeypatch.setattr(command, name, value)

    assert fingerprint_of(sound=True) == before


@pytest.mark.parametrize(
    "changed",
    [
        {"image": {"disk": 4096}},
        {"image": {"format": "raw"}},
        {"image": {"bus": "scsi"}},
        {"display": "virtio"},
        {"machine_type": "pc"},
        {"clipboard": True},
        {"sound": True},
        {"firmware": "bios"},
    ],
)
def test_what_the_guest_sees_may_not(
    changed: dict[str, Any], fingerprint_of: Callable[..., Fingerprint]
) -> None:
    differences = fingerprint_of().differences(fingerprint_of(**changed))

    assert differences == ["the machine's definition has changed"]


def test_another_network_behind_the_card_is_another_machine(
    fingerprint_of: Callable[..., Fingerprint], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint_of()
    card = command.network_args(restrict=True)[2:]

    netdev = ["-netdev", '{"type": "tap", "id": "net0"}']
    monkeypatch.setattr(command, "network_args", lambda restrict: [*netdev, *card])

    assert fingerprint_of() != before


def test_another_kernel_line_is_another_machine(
    fingerprint_of: Callable[..., Fingerprint], tmp_path: Path
) -> None:
    """Also where it looks like one of QEMU's options."""
    lines = [
        fingerprint_of(firmware="direct", image={"kernel": str(tmp_path / "disk"), "cmdline": line})
        for line in ("quiet", "-netdev")
    ]

    assert lines[0] != lines[1]


def test_another_firmware_is_another_machine(
    fingerprint_of: Callable[..., Fingerprint], tmp_path: Path
) -> None:
    before = fingerprint_of()

    (tmp_path / "code.fd").write_bytes(b"updated")

    assert fingerprint_of() != before
    assert fingerprint_of(firmware="bios") == fingerprint_of(firmware="bios")


def test_the_firmware_of_a_machine_without_uefi_does_not_matter(
    fingerprint_of: Callable[..., Fingerprint], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint_of(firmware="bios")

    monkeypatch.setattr(saving, "find_uefi", lambda: pytest.fail("nobody needs it"))

    assert fingerprint_of(firmware="bios") == before
