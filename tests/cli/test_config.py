"""What the command tells about this host: a configuration that JupyterHub takes, and what doctor finds."""

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import hubs
import pytest
from traitlets.config.loader import PyFileConfigLoader

from qemuspawner.cli import config, doctor, main, site
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.qemu.host import Qemu, find_qemu

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(["--state", str(tmp_path / "state"), *arguments])
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().out

    return call


def test_the_configuration_for_this_host_is_one(run: Run, tmp_path: Path) -> None:
    """Every trait that it sets there is, and takes that value."""
    _, text = run("config")
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(text)

    found = PyFileConfigLoader(str(file)).load_config()

    assert found.JupyterHub.spawner_class == "qemu"
    assert found.QemuSpawner.state_dir == str(tmp_path / "state")
    assert set(found.QemuSpawner) <= set(QemuSpawner.class_traits(config=True))
    QemuSpawner(config=found)


def test_the_configuration_has_the_folders_that_were_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()

    assert (
        f"c.QemuSpawner.machines = ['{tmp_path}/mine']"
        in run("--machines", str(tmp_path / "mine"), "config")[1]
    )


def test_doctor_tells_programs_the_same(run: Run) -> None:
    code, text = run("doctor", "--json")

    findings = json.loads(text)
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "error"}
    assert "The desktop's page has noVNC." in [finding["text"] for finding in findings]
    assert code == any(finding["level"] == "error" for finding in findings)


@pytest.mark.parametrize(
    ("processor", "asked"), [("x86_64", "x86_64"), ("aarch64", "aarch64"), ("riscv64", "x86_64")]
)
def test_the_hosts_own_qemu_is_the_one_that_is_tried(
    processor: str, asked: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ARM host needs none for PCs, where no machine is one."""
    monkeypatch.setattr(platform, "machine", lambda: processor)
    tried: list[str] = []

    def note(qemu: Qemu, _probes: Path) -> bool:
        tried.append(qemu.architecture)
        return True

    for module in (config, doctor):
        monkeypatch.setattr(module, "kvm_works", note)

    assert "allow_tcg = False" in run("config")[1]
    told = [finding["text"] for finding in json.loads(run("doctor", "--json")[1])]
    assert tried == [asked, asked]
    assert [text for text in told if f"qemu-system-{asked}" in text]


def test_a_machine_of_other_processors_needs_their_qemu(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    hubs.add_machine(tmp_path / "machines", tmp_path / "state", "mini")
    doctored = ("--machines", str(tmp_path / "machines"), "doctor")
    assert "ok       Machines of x86_64 are emulated." in run(*doctored)[1]

    only = tmp_path / "bin"
    only.mkdir()
    (only / "qemu-system-aarch64").symlink_to(find_qemu("aarch64").program)
    monkeypatch.setenv("PATH", str(only))

    code, said = run(*doctored)
    assert code == 1
    assert "error    qemu-system-x86_64 was not found on this host." in said


def test_a_page_without_novnc_is_an_error(tmp_path: Path) -> None:
    finding = site.find_page(tmp_path)

    assert (finding.level, finding.hint != "") == ("error", True)


def test_the_iommu_counts_its_groups(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()

    assert site.find_iommu(tmp_path).text == "The IOMMU is on: devices are in 2 groups."
    assert site.find_iommu(tmp_path / "none").text.startswith("The IOMMU is off or missing")


@pytest.mark.parametrize(
    ("script", "level"),
    [("echo 'Slurmctld(primary) at here is UP'", "ok"), ("echo 'is DOWN'; exit 1", "warning"), (None, None)],
)
def test_slurm_is_asked_where_there_is_one(
    script: str | None, level: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "scontrol") if script else ():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    finding = site.find_slurm()

    assert (finding.level if finding else None) == level


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_the_command(shell: str, run: Run) -> None:
    code, text = run("completion", shell)

    assert code == 0
    assert all(word in text for word in ("machines", "sessions", "doctor", "unhide"))


def test_bash_takes_the_completion(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "completion"
    file.write_text(run("completion", "bash")[1])
    script = (
        f"source {file}; COMP_WORDS=(qemuspawner ses); COMP_CWORD=1; "
        "$(complete -p qemuspawner | sed 's/.*-F \\([^ ]*\\).*/\\1/') qemuspawner ses qemuspawner; "
        "echo ${COMPREPLY[@]}"
    )

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["sessions"]


def test_the_manual_page_has_every_command(run: Run) -> None:
    _, text = run("man")

    assert text.startswith(".TH QEMUSPAWNER")
    for command in ("start", "doctor", "export", "sweep"):
        assert command in text
