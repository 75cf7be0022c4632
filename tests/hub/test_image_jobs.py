"""Images that the hub has taken in, one at a time; a stand-in takes the command's place."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from qemuspawner.errors import CatalogueError
from qemuspawner.hub.catalogue.commands import ENVIRONMENT
from qemuspawner.hub.catalogue.image_jobs import ImageJob, ImageJobs

# Notes that it began, does what it is told, and notes that it ended.
PROGRAM = """
import os, pathlib, signal, sys, time
folder, name, what = sys.argv[1:]
notes = pathlib.Path(folder, "notes")
def note(text):
    with notes.open("a") as file:
        print(f"{text} {name}", file=file)
signal.signal(signal.SIGTERM, lambda *_: (note("ended"), os._exit(130)))
note("begins")
exec(what)
note("ends")
"""


class Jobs(ImageJobs):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, machine_id: str, what: str = "") -> ImageJob:
        command = [sys.executable, "-c", PROGRAM, str(self.folder), machine_id, what]
        return self.start(machine_id, command, what="fetch", by="admin")

    def notes(self) -> list[str]:
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []

    async def wait_for(self, note: str) -> None:
        async with asyncio.timeout(30):
            while note not in self.notes():
                await asyncio.sleep(0.02)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


async def test_they_run_one_after_the_other(jobs: Jobs) -> None:
    ran = [jobs.run(name, "time.sleep(0.2)") for name in ("alma", "rocky", "fedora")]

    await jobs.wait_for("begins alma")
    states = [job.state for job in ran]
    await jobs.wait()

    assert states == ["running", "waiting", "waiting"]
    assert [job.state for job in ran] == ["done"] * 3
    assert jobs.notes() == [
        f"{what} {name}" for name in ("alma", "rocky", "fedora") for what in ("begins", "ends")
    ]


async def test_a_machine_has_one_at_a_time(jobs: Jobs) -> None:
    jobs.run("alma")

    with pytest.raises(CatalogueError, match="is on its way already"):
        jobs.run("alma")

    await jobs.wait()
    assert jobs.run("alma").state == "waiting"
    await jobs.wait()


async def test_what_runs_and_what_waits_can_be_cancelled(jobs: Jobs) -> None:
    first, second, third = (jobs.run(name, "time.sleep(60)") for name in ("alma", "rocky", "fedora"))
    await jobs.wait_for("begins alma")

    assert await jobs.cancel("rocky")
    assert await jobs.cancel("alma")
    await jobs.wait_for("begins fedora")
    assert await jobs.cancel("fedora")

    assert {job.state for job in (first, second, third)} == {"cancelled"}
    assert jobs.notes() == ["begins alma", "ended alma", "begins fedora", "ended fedora"]
    assert not await jobs.cancel("alma")


async def test_how_far_it_is_comes_from_its_lines_and_rubbish_is_none(jobs: Jobs) -> None:
    line = json.dumps({"step": "fetching", "done": 7, "total": 9})
    said = f"print({line!r}); print('[' * 100); print('null'); print('{{}}'); print(chr(27))"

    job = jobs.run("alma", said.replace("{{}}", "{}"))
    await jobs.wait()

    assert (job.state, job.done, job.total) == ("done", 7, 9)


async def test_why_it_failed_is_said_in_its_own_words(jobs: Jobs) -> None:
    job = jobs.run("alma", "sys.exit('warning\\nerror: It is \\x1b[31mbroken.\\nhint: Mend it.')")
    silent = jobs.run("rocky", "os._exit(3)")
    await jobs.wait()

    assert (job.state, job.message) == ("failed", "It is  [31mbroken. Mend it.")
    assert (silent.state, silent.message) == ("failed", "The command ended with code 3.")


async def test_a_line_without_end_fails_and_does_not_stay(jobs: Jobs) -> None:
    job = jobs.run("alma", "print('x' * 1_000_000, flush=True); time.sleep(60)")
    await jobs.wait()

    assert job.state == "failed"
    assert jobs.notes() == ["begins alma", "ended alma"]
    assert jobs.run("rocky").state == "waiting"
    await jobs.wait()


async def test_a_command_that_is_not_there_is_said_so(jobs: Jobs) -> None:
    job = jobs.start("alma", ["/nonexistent"], what="upload", by="admin")
    await jobs.wait()

    assert (job.state, job.message) == (
        "failed",
        "The command cannot be started: No such file or directory.",
    )


async def test_the_command_is_told_no_secret_of_the_hub(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONFIGPROXY_AUTH_TOKEN", "secret")

    jobs.run("alma", "pathlib.Path(folder, 'env').write_text(' '.join(os.environ))")
    await jobs.wait()

    assert set((tmp_path / "env").read_text().split()) <= {*ENVIRONMENT, "LC_CTYPE"}
