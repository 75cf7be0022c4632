"""Which GPUs a job of Slurm's has: what it says, and what the node's file says, well or badly."""

from pathlib import Path

import pytest

from qemuspawner.errors import SessionError
from qemuspawner.session.host.job_gpus import find_job_devices, parse_numbers

ADDRESSES = ["0000:41:00.0", "0000:81:00.0", "0000:c1:00.0"]
# As Slurm 22.05 prints it, shortened.
JOB = "JobId=7 JOB_GRES=gpu:t4:{count} Nodes=n3 Mem=700 GRES=gpu:t4:{count}(IDX:{idx}) Command=(null)\n"
THE_ENVIRONMENT = {"SLURM_JOB_ID": "7"}


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What it prints."""
    said = tmp_path / "said"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec cat {said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return said


@pytest.mark.parametrize(
    ("described", "numbers"),
    [
        (JOB.format(count=1, idx="0"), [0]),
        (JOB.format(count=3, idx="0,2-3"), [0, 2, 3]),
        ("GRES=gpu:a:1(IDX:1),gpu:b:1(IDX:0),mps:5(IDX:3)", [0, 1]),
        ("GRES=gpu:2(IDX:0-1)", [0, 1]),
        ("JOB_GRES=gpu:t4:1 GRES=", []),
        ("GRES=gpu:t4:0(IDX:N/A)", []),
        ("GRES=mygpu:t4:1(IDX:2)", []),
        ("", []),
    ],
)
def test_numbers_are_read_as_slurm_writes_them(described: str, numbers: list[int]) -> None:
    assert parse_numbers(described) == numbers


def test_a_jobs_gpus_have_the_addresses_at_their_place_in_the_nodes_file(
    scontrol: Path, tmp_path: Path
) -> None:
    scontrol.write_text(JOB.format(count=2, idx="0,2"))
    (tmp_path / "gpus.toml").write_text(f"gpu = {ADDRESSES}\n")

    found = find_job_devices(THE_ENVIRONMENT, file=tmp_path / "gpus.toml")

    assert found == ("0000:41:00.0", "0000:c1:00.0")


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("gpu = [", "cannot be read"),
        ("gpus = []", "has no list of addresses 'gpu'"),
        ('gpu = "0000:41:00.0"', "has no list of addresses 'gpu'"),
        ('gpu = ["0000:41:00.0", "../../x"]', "has no list of addresses 'gpu'"),
        ('gpu = ["0000:41:00.0"]', "GPU 1 has no address in"),
    ],
)
def test_a_file_that_does_not_say_it_ends_the_start_with_a_sentence(
    scontrol: Path, tmp_path: Path, file: str | None, sentence: str
) -> None:
    scontrol.write_text(JOB.format(count=1, idx="1"))
    if file is not None:
        (tmp_path / "gpus.toml").write_text(file)

    with pytest.raises(SessionError, match=sentence) as caught:
        find_job_devices(THE_ENVIRONMENT, file=tmp_path / "gpus.toml")

    assert "administrator" in caught.value.hint or "written like" in caught.value.hint


def test_slurm_that_does_not_tell_ends_the_start_with_a_sentence(scontrol: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="Slurm does not tell which GPUs"):
        find_job_devices(THE_ENVIRONMENT, file=tmp_path / "gpus.toml")
