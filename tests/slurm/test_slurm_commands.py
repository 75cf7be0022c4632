"""Slurm's commands that answer badly: each does as its text here says, without a cluster."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuspawner.hub.batch import engine
from qemuspawner.hub.slurm.commands import Slurm, SlurmError
from qemuspawner.hub.slurm.queue import Queue

NODE = "n1|desktop*|idle|0/4/0/4|6000|0|(null)|gpu:0|10.0.0.1|4:00:00|"
GOOD = {
    "sinfo": f"echo '{NODE}'",
    "scontrol": "echo 'PartitionName=desktop AllowGroups=ALL State=UP'",
    "squeue": "echo '7|RUNNING|n1|None|N/A|N/A'",
}

Say = Callable[..., None]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Have the commands do something; all do well at first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(**programs: str) -> None:
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    write(**GOOD)
    return write


BAD = {
    "an error": ("echo 'Unable to contact slurm controller' >&2; exit 1", "contact slurm controller"),
    "an error and no word": ("exit 3", "no word"),
    "a long error": ("yes x | head -c 100000 | tr -d '\\n' >&2; exit 1", "failed: x"),
    "cut off": ("printf '7|RUN'", "not understood"),
    "other columns": ("echo 'a|b|c|d|e|f|g|h|i|j|k|l|m'", "not understood"),
    "a notice before": ("echo 'Welcome to the cluster!'; echo '7|RUNNING|n1|None|N/A|N/A'", "not understood"),
    "no text": ("head -c 300 /dev/zero; printf '\\377\\376\\n'", "not understood"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("program", ["squeue", "sinfo"])
async def test_an_answer_that_is_none_says_nothing_of_jobs_and_nodes(
    say: Say, program: str, text: str, sentence: str
) -> None:
    say(**{program: text})

    with pytest.raises(SlurmError) as caught:
        await (Slurm().list_nodes() if program == "sinfo" else Slurm().list_jobs(user="me"))

    assert sentence in caught.value.text
    assert len(caught.value.text) < 1000


async def test_an_empty_answer_is_a_cluster_without_nodes_and_a_queue_without_jobs(say: Say) -> None:
    say(sinfo="exit 0", squeue="exit 0", scontrol="echo 'No reservations in the system'")

    assert await Slurm().list_jobs(user="me") == {}
    assert (await Slurm().list_nodes()).nodes == {}


async def test_partitions_that_are_not_told_make_the_whole_unknown(say: Say) -> None:
    """Else a partition would look as if everybody might use it."""
    say(scontrol="printf 'PartitionName=desktop AllowGr'")

    with pytest.raises(SlurmError, match="cut off"):
        await Slurm().list_nodes()


async def test_who_says_nothing_is_not_waited_for_for_ever(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_TIMEOUT_S", 0.3)
    say(sinfo="exec sleep 20")
    begun = time.monotonic()

    with pytest.raises(SlurmError, match="says nothing"):
        await Slurm().list_nodes()

    assert time.monotonic() - begun < 10


async def test_many_who_ask_a_slow_cluster_cause_one_question(say: Say, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    say(squeue=f"echo x >> {asked}; sleep 1; {GOOD['squeue']}")
    queue = Queue(Slurm(), "me")

    found = await asyncio.gather(*(queue.find_job("7", max_age_s=5) for _ in range(100)))

    assert {job.state if job else None for job in found} == {"RUNNING"}
    assert asked.read_text() == "x\n"


async def test_the_last_answer_stays_known_while_there_is_no_newer_one(say: Say) -> None:
    queue = Queue(Slurm(), "me")
    first = await queue.cluster(max_age_s=10)
    say(sinfo="exit 1")

    with pytest.raises(SlurmError):
        await queue.cluster(max_age_s=0)

    assert queue.find_last_cluster() == first
    assert queue.find_last_cluster(max_age_s=0) is None


async def test_a_job_without_a_number_was_not_submitted(say: Say) -> None:
    say(sbatch="cat > /dev/null; echo 'Submitted: see the web page'")

    with pytest.raises(SlurmError, match="no number"):
        await Slurm().submit([], "#!/bin/sh\n")


@pytest.mark.parametrize("squat", ["nothing to write to", "a file", "a link"])
async def test_what_a_job_is_given_is_written_nowhere_else(tmp_path: Path, squat: str) -> None:
    path = tmp_path / "jobs" / "name"
    if squat != "nothing to write to":
        path.parent.mkdir()
    if squat == "a file":
        path.write_text("another's")
    if squat == "a link":
        path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(SlurmError, match="cannot be laid down") as caught:
        await Slurm().store(path, "secret")

    assert "secret" not in caught.value.text
    assert caught.value.hint.startswith("The administrator lets")
    assert not (tmp_path / "elsewhere").exists()
    assert squat != "a file" or path.read_text() == "another's"
