"""What this host offers, and what it refuses in a sentence."""

import os
import platform
from pathlib import Path

import pytest

from qemuspawner.errors import HostError
from qemuspawner.machine import Architecture
from qemuspawner.qemu import host
from qemuspawner.qemu.host import (
    Qemu,
    available_memory_mib,
    check_disk,
    check_memory,
    choose_accelerator,
    find_qemu,
    find_uefi,
    kvm_works,
    probe,
)


def fake_qemu(folder: Path, script: str) -> Path:
    """A program named as QEMU's on a PATH of its own."""
    program = folder / host.QEMUS["x86_64"]
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def test_this_hosts_qemu_is_found() -> None:
    qemu = find_qemu()

    assert qemu.program.name == host.QEMUS["x86_64"]
    assert qemu.version >= (7, 2, 0)


def test_qemu_is_known_by_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It may be found by a link, such as /bin, and looks for its firmware beside itself."""
    lies = find_qemu().program
    (tmp_path / "bin").symlink_to(lies.parent)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert find_qemu().program == lies


def test_a_host_without_qemu_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="was not found") as caught:
        find_qemu()
    assert "qemu-system-x86" in caught.value.hint


def test_an_old_qemu_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_qemu(tmp_path, "echo 'QEMU emulator version 5.2.0 (Debian)'")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match=r"QEMU 5\.2\.0 is too old; 7\.2 is needed"):
        find_qemu()


def test_a_qemu_that_crashes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_qemu(tmp_path, "exit 127")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(HostError, match="--version' failed"):
        find_qemu()


@pytest.mark.parametrize(
    ("script", "works"), [("exit 99", True), ("exit 0", False), ("exec sleep 60", False)]
)
def test_kvm_works_where_a_guest_really_ran(
    script: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's own exit code counts; a QEMU that hangs is given up."""
    monkeypatch.setattr(os, "access", lambda *_: True)
    qemu = Qemu(program=fake_qemu(tmp_path, script), architecture="x86_64", version=(7, 2, 0), build="7.2.0")

    assert kvm_works(qemu, tmp_path / "probes") is works


def test_the_answer_about_kvm_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is asked once, and again after an upgrade."""
    monkeypatch.setattr(os, "access", lambda *_: True)
    program = fake_qemu(tmp_path, f"echo asked >> {tmp_path}/log; exit 99")

    for version in ((7, 2, 0), (7, 2, 0), (8, 0, 0)):
        kvm_works(
            Qemu(program=program, architecture="x86_64", version=version, build=""), tmp_path / "probes"
        )

    assert (tmp_path / "log").read_text() == "asked\nasked\n"


@pytest.mark.timeout(30)
def test_this_host_gets_an_accelerator_that_runs_a_guest(tmp_path: Path) -> None:
    """Whatever /dev/kvm is like here: an answer, and never a hanging guest."""
    accelerator = choose_accelerator("auto", allow_tcg=True, qemu=find_qemu(), probes=tmp_path / "probes")

    assert accelerator in ("kvm", "tcg")


def test_emulation_must_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = find_qemu()
    monkeypatch.setattr(os, "access", lambda *_: False)

    with pytest.raises(HostError, match=r"emulation \(TCG\) is not allowed"):
        choose_accelerator("auto", allow_tcg=False, qemu=qemu, probes=tmp_path)


def test_more_memory_than_is_free_is_refused_with_the_numbers() -> None:
    with pytest.raises(HostError, match=r"needs .* GiB of memory; .* are free"):
        check_memory(available_memory_mib() + 1)


def test_a_full_disk_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DISK_RESERVE_MIB", 1 << 40)

    with pytest.raises(HostError, match=r"The host's disk is full: .* are free, .* are needed"):
        check_disk(tmp_path)


def test_uefi_firmware_is_found_with_empty_variables() -> None:
    code, variables = find_uefi()

    assert code.is_file()
    assert variables.is_file()


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_guest_of_the_probe_runs_to_its_end(architecture: Architecture) -> None:
    """Else a host whose KVM works would be taken for one without."""
    assert probe(find_qemu(architecture), "tcg", cpu="max")


def test_other_processors_are_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM, which works here, has nothing to do with them."""
    monkeypatch.setattr(host, "kvm_works", lambda *_: True)
    qemus = [find_qemu(architecture) for architecture in ("x86_64", "aarch64")]

    chosen = [choose_accelerator("auto", allow_tcg=True, qemu=qemu, probes=tmp_path) for qemu in qemus]

    native = platform.machine()
    assert chosen == ["kvm" if qemu.architecture == native else "tcg" for qemu in qemus]


def test_uefi_firmware_is_found_for_arm() -> None:
    code, variables = find_uefi("aarch64")

    assert code.stat().st_size == variables.stat().st_size == 64 << 20
