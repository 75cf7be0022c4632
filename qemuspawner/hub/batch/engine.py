"""What a batch engine is to a spawner: commands that are run, jobs that are listed, and errors."""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal, Protocol

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.texts import Text

# A controller of Slurm's that is down is said to be so after 9 to 18 s, one that hangs after 20 s.
_TIMEOUT_S = 30
_MAX_ANSWER_BYTES = 64 << 20
# Where programs are and who asks; the hub's environment has secrets.
_ENVIRONMENT = ("PATH", "LANG", "TZ", "HOME", "USER", "LOGNAME")

Phase = Literal["pending", "running", "over", "unknown"]


class BatchError(QemuSpawnerError):
    """A command of the engine failed, was silent, or answered something else than it does."""


class Job(Protocol):
    """One job at one moment."""

    @property
    def id(self) -> str: ...

    @property
    def node(self) -> str:
        """ "" while it waits."""

    @property
    def phase(self) -> Phase: ...

    @property
    def is_paused(self) -> bool:
        """Whether it has begun and stands still until the engine lets it go on."""

    @property
    def never_runs(self) -> bool:
        """Whether it waits for something that will not happen."""

    @property
    def wait(self) -> Text:
        """Why it waits, for who waits for it."""

    @property
    def ending(self) -> Text:
        """Why it is over, or never will run, for who wanted it."""


class Engine(Protocol):
    """One account's jobs on one cluster; each of these raises `BatchError` where nobody knows."""

    def __hash__(self) -> int:
        """Of what it is: two spawners with the same settings share one queue."""

    async def list_jobs(self, *, user: str) -> Mapping[str, Job]:
        """All of one account's jobs that the engine still knows."""

    async def list_tagged(self, *, user: str, hub: str) -> dict[str, str]:
        """The jobs of one hub that wait or run, with the session of each; see `tag`."""

    async def cancel(self, job_id: str) -> None:
        """End a job, whether it waits or runs; one that is over already is none of an error."""

    async def stop(self, job_id: str) -> None:
        """Ask a job's session to end in order."""

    async def store(self, path: PurePath, text: str) -> None:
        """Write a file that is not there yet, and that only the jobs' account can read."""

    async def remove(self, path: PurePath) -> None:
        """Delete such a file, where its job has not done so."""


def tag(hub: str, session_id: str) -> str:
    """By which a job is known again, whatever became of the hub that submitted it."""
    return f"qemuspawner:{hub}:{session_id}"


@dataclass(frozen=True)
class Commands:
    """An engine's commands, after `prefix` (such as `sudo -u NAME`) where they are another account's."""

    prefix: tuple[str, ...] = ()

    name: ClassVar[str]
    error: ClassVar[type[BatchError]] = BatchError
    variables: ClassVar[tuple[str, ...]] = ()  # the engine's own settings
    farewell: ClassVar[str] = ""  # what a command that failed says last, after the reason

    async def _run(self, *command: str, given: bytes = b"") -> str:
        names = (*_ENVIRONMENT, *self.variables)
        environment = {name: os.environ[name] for name in names if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *self.prefix, *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                cwd="/",
                limit=_MAX_ANSWER_BYTES,
            )  # fmt: skip
        except OSError as exc:
            raise self.error(
                Text("'{command}' cannot be run: {why}.", command=command[0], why=exc.strerror),
                hint=Text(
                    "The administrator installs the commands of {engine} where the hub runs.",
                    engine=self.name,
                ),
            ) from exc
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer, complaint = await process.communicate(given)
        except TimeoutError:
            raise self.error(
                Text(
                    "'{command}' of {engine} says nothing for {s} s.",
                    command=command[0],
                    engine=self.name,
                    s=_TIMEOUT_S,
                )
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            # Grid Engine complains on either.
            said = (complaint or answer).decode(errors="replace").strip()
            said = said.removesuffix(self.farewell).rstrip()
            words = said.splitlines() or ["no word"]
            raise self.error(
                Text(
                    "'{command}' of {engine} failed: {words}",
                    command=command[0],
                    engine=self.name,
                    words=words[-1][:300],
                )
            )
        return answer.decode(errors="replace")

    def _not_understood(self, why: object) -> BatchError:
        return self.error(Text("The answer of {engine} is not understood: {why}.", engine=self.name, why=why))
