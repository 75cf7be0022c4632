"""Images that the hub has fetched or taken in: by the command `qemuspawner`, one at a time."""

import asyncio
import atexit
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from qemuspawner.errors import CatalogueError, printable
from qemuspawner.hub.catalogue.commands import start_command
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# As QEMU of an interrupted command gets.
_TERMINATE_S = 20
_MAX_ERROR_BYTES = 4096
_MAX_LINE_BYTES = 64 << 10
# What a desktop has changed is told in one line.
_MAX_CHANGES_BYTES = 16 << 20


What = Literal["fetch", "upload", "publish", "changes", "pack"]


@dataclass(kw_only=True)
class ImageJob:
    """The image of one machine on its way."""

    machine: str
    what: What
    by: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    step: str = ""
    done: int = 0  # bytes
    total: int = 0  # bytes; 0: nobody knows
    message: str = ""  # why it failed
    result: dict[str, object] | None = None  # what it found out, of "changes"

    @property
    def is_active(self) -> bool:
        return self.state in ("waiting", "running")

    def describe(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if name != "result"}


class ImageJobs:
    """The last job of each machine."""

    def __init__(self) -> None:
        self._jobs: dict[str, ImageJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        atexit.register(self._end)

    def find(self, machine_id: str) -> ImageJob | None:
        return self._jobs.get(machine_id)

    def is_active(self, machine_id: str) -> bool:
        job = self.find(machine_id)
        return job is not None and job.is_active

    def start(self, machine_id: str, command: Sequence[str], *, what: What, by: str) -> ImageJob:
        """Have `command` run when those before it are done; it tells how far it is in lines of JSON.

        Raises:
            CatalogueError: The image of this machine is on its way already.
        """
        if self.is_active(machine_id):
            raise CatalogueError(
                "used",
                Text("The image of '{machine}' is on its way already.", machine=machine_id),
                hint=Text("Wait until it is there, or cancel that."),
            )
        job = self._jobs[machine_id] = ImageJob(machine=machine_id, what=what, by=by)
        log.info("%s: %s by %s: %s", machine_id, what, by, " ".join(command))
        self._tasks[machine_id] = asyncio.create_task(self._work(job, command))
        return job

    async def cancel(self, machine_id: str) -> bool:
        """Stop it; what a server sent so far is kept for the next time. False where nothing is on its way."""
        if not self.is_active(machine_id):
            return False
        task = self._tasks[machine_id]
        task.cancel()
        await asyncio.wait([task])
        return True

    def forget(self, machine_id: str) -> None:
        """Of a machine that is gone."""
        self._jobs.pop(machine_id, None)
        self._tasks.pop(machine_id, None)

    async def wait_for(self, job: ImageJob) -> None:
        """Until this one is over."""
        if job.is_active:
            await asyncio.wait([self._tasks[job.machine]])

    async def wait(self) -> None:
        """Until nothing is left to do."""
        if tasks := list(self._tasks.values()):
            await asyncio.wait(tasks)

    async def _work(self, job: ImageJob, command: Sequence[str]) -> None:
        try:
            async with self._one_at_a_time:
                job.state = "running"
                await self._run(job, command)
        except asyncio.CancelledError:
            # Wanted, and nothing that this task is awaited for goes on.
            job.state = "cancelled"
        except OSError as exc:
            job.state, job.message = (
                "failed",
                Text("The command cannot be started: {reason}.", reason=exc.strerror),
            )
        except Exception:
            log.exception("%s: its image", job.machine)
            job.state, job.message = "failed", Text("Something went wrong; the hub's log has it.")
        if job.state == "failed":
            log.warning("%s: %s", job.machine, job.message)

    async def _run(self, job: ImageJob, command: Sequence[str]) -> None:
        pipe = asyncio.subprocess.PIPE
        self._process = process = await start_command(
            command,
            stdout=pipe,
            stderr=pipe,
            max_line_bytes=_MAX_CHANGES_BYTES if job.what == "changes" else _MAX_LINE_BYTES,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            errors = asyncio.create_task(_read_all(process.stderr))
            async for line in process.stdout:
                _note_progress(job, line)
            code = await process.wait()
            error = await errors
        except BaseException:
            self._end()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TERMINATE_S):
                    await process.wait()
            if process.returncode is None:
                process.kill()
            raise
        if code == 0:
            job.state, job.step = "done", "done"
        else:
            job.state, job.message = (
                "failed",
                _message(error) or Text("The command ended with code {code}.", code=code),
            )

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()


async def _read_all(stream: asyncio.StreamReader) -> bytes:
    """The end of what it says."""
    found = b""
    while piece := await stream.read(_MAX_ERROR_BYTES):
        found = (found + piece)[-_MAX_ERROR_BYTES:]
    return found


def _note_progress(job: ImageJob, line: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(line)
        if isinstance(told.get("changes"), dict):
            job.result = told["changes"]
            return
        job.step, job.done, job.total = str(told["step"]), int(told["done"]), int(told["total"])


def _message(error: bytes) -> str:
    """The command's own sentences, from lines that begin with "error: " and "hint: "."""
    text = error.decode(errors="replace")
    _, _, said = text.rpartition("error: ")
    return printable(said.replace("\nhint: ", " ").strip()) if said else ""
