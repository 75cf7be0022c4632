"""What is done once in a new desktop: what its user is given, then their own script.

How far that is belongs to the VM, and is saved with it: one that sleeps in the middle goes on when it wakes.
Its programs do so by themselves, and what they write is in the agent's memory until they end.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from msgspec import structs

from qemuspawner.errors import QemuSpawnerError, VmError, printable
from qemuspawner.given_texts import is_cloud_config
from qemuspawner.paths import CLOUD_SCRIPT, START_SCRIPT
from qemuspawner.qemu.agent import ENVIRONMENT, AgentRefusalError, Ended, GuestAgent
from qemuspawner.qemu.owner import find_owner
from qemuspawner.saved import FirstSteps
from qemuspawner.session.inside.gifts import Gift, check_installed, put_files, read_gift, start_installing
from qemuspawner.session.inside.identity import sudo_of
from qemuspawner.spec import ScriptRun, SessionSpec
from qemuspawner.texts import Text

# It may install programs. Of a desktop that sleeps meanwhile this counts anew.
_TIMEOUT_S = 900
_MAX_OUTPUT_BYTES = 64 << 10
_MAX_WORDS = 300
# Files, packages and a program.
_STEPS_OF_A_GIFT = 3


class Report(Protocol):
    """Tells a step."""

    def __call__(self, text: str, *, level: Literal["info", "warning"] = "info") -> None: ...


class Remembers(Protocol):
    """What knows how far it is: a guest."""

    first_steps: FirstSteps | None


class _InterruptedError(VmError):
    """The program is gone without anybody knowing how it ended."""


class FirstStart:
    """Of one VM. A part that fails is told, and the others go on.

    `has_booted`: anew, so that what ran before it slept does not run any more.
    """

    def __init__(self, spec: SessionSpec, vm: Remembers, report: Report, *, has_booted: bool) -> None:
        self._spec = spec
        self._vm = vm
        self._has_booted = has_booted
        self._report = report
        self._start_script = START_SCRIPT.read_text()
        self._cloud_script = CLOUD_SCRIPT.read_text()

    async def do(self, agent: GuestAgent) -> None:
        """Give the user what they are given, and run their script, as far as that was not done yet."""
        if self._vm.first_steps is None:
            return
        for number, folder in enumerate(self._spec.gifts):
            first = number * _STEPS_OF_A_GIFT
            if self._steps.done < first + _STEPS_OF_A_GIFT:
                await self._give(agent, Path(folder), first=first)
        if self._spec.script and self._steps.done == len(self._spec.gifts) * _STEPS_OF_A_GIFT:
            await self._run_script(agent)
            self._end_step()

    # How far it is

    @property
    def _steps(self) -> FirstSteps:
        assert self._vm.first_steps is not None
        return self._vm.first_steps

    def _note_script(self, run: ScriptRun) -> None:
        self._vm.first_steps = structs.replace(self._steps, script=run)

    def _end_step(self) -> None:
        self._vm.first_steps = structs.replace(self._steps, done=self._steps.done + 1, pid=None)

    async def _wait(self, agent: GuestAgent, pid: int) -> Ended:
        """The end of a program of the present step, which may have begun before the desktop slept."""
        interrupted = _InterruptedError(Text("the machine has booted anew meanwhile"))
        if self._has_booted and self._steps.pid is not None:
            raise interrupted
        self._vm.first_steps = structs.replace(self._steps, pid=pid)
        try:
            return await agent.wait_for_program(pid, name="/bin/sh", timeout_s=_TIMEOUT_S)
        except AgentRefusalError as exc:
            raise interrupted from exc

    # What the site gives

    async def _give(self, agent: GuestAgent, folder: Path, *, first: int) -> None:
        try:
            gift = await asyncio.to_thread(read_gift, folder)
        except VmError as exc:
            self._warn(Text("What your site gives to new desktops cannot be read"), exc)
            gift = Gift()
        steps = (
            (gift.files, Text("The files of your site are not there"), self._put_files),
            (gift.packages, Text("The packages of your site are not installed"), self._install),
            (gift.program, Text("The program of your site failed"), self._run_program),
        )
        for number, (wanted, what, step) in enumerate(steps, start=first):
            if number < self._steps.done:
                continue
            if wanted or self._steps.pid is not None:
                try:
                    await step(agent, gift)
                except QemuSpawnerError as exc:
                    self._warn(what, exc)
            self._end_step()

    async def _put_files(self, agent: GuestAgent, gift: Gift) -> None:
        """Begun anew where it was interrupted: what is there stays as it is."""
        home = self._spec.machine.home
        if not home:
            raise VmError(Text("the machine does not say where its user's home is"))
        await put_files(agent, gift.files, home=home)

    async def _install(self, agent: GuestAgent, gift: Gift) -> None:
        pid = self._steps.pid
        if pid is None:
            if self._spec.network.mode == "none":
                raise VmError(Text("the machine has no network"))
            self._report(Text("Installing the packages of your site: {count}", count=len(gift.packages)))
            pid = await start_installing(agent, gift.packages)
        check_installed(await self._wait(agent, pid))

    async def _run_program(self, agent: GuestAgent, gift: Gift) -> None:
        pid = self._steps.pid or await self._start(
            agent, self._start_script, gift.program, environment=self._environment()
        )
        ended = await self._wait(agent, pid)
        if ended.code:
            raise VmError(say_end(ended))

    # The user's script

    async def _run_script(self, agent: GuestAgent) -> None:
        pid = self._steps.pid
        if pid is None:
            self._note_script(ScriptRun(state="running"))
            self._report(Text("Running the start script"))
        elif not self._has_booted:
            self._report(Text("The start script goes on"))
        try:
            ended = await self._wait(agent, pid or await self._start_user_script(agent))
        except _InterruptedError as exc:
            self._note_script(ScriptRun(state="interrupted"))
            self._warn(Text("The start script was interrupted"), exc)
            return
        except QemuSpawnerError as exc:
            self._note_script(ScriptRun(state="failed"))
            self._warn(Text("The start script failed"), exc)
            return
        self._note_script(report_script(ended, self._report))

    async def _start_user_script(self, agent: GuestAgent) -> int:
        """As root for who may become it, as cloud-init always is."""
        script = self._spec.script.encode()
        if is_cloud_config(self._spec.script):
            return await self._start(agent, self._cloud_script, script, environment=self._environment())
        if sudo_of(self._spec) == "yes":
            return await self._start(agent, self._start_script, script, environment=self._environment())
        home = self._spec.machine.home
        if not home:
            raise VmError(Text("the machine does not say where its user's home is"))
        become = await find_owner(agent, home)
        environment = self._environment() | {"HOME": home}
        return await self._start(agent, self._start_script, script, become=become, environment=environment)

    def _environment(self) -> dict[str, str]:
        return ENVIRONMENT | {"QEMUSPAWNER_SESSION": self._spec.session_id}

    async def _start(
        self,
        agent: GuestAgent,
        runner: str,
        content: bytes,
        *,
        become: Sequence[str] = (),
        environment: dict[str, str],
    ) -> int:
        """Have one of our scripts carry out `content`; its number in the guest."""
        return await agent.start_program(
            *(*become, "/bin/sh", "-c", runner, "qemuspawner", str(_MAX_OUTPUT_BYTES)),
            stdin=content,
            env=environment,
        )

    def _warn(self, what: Text, exc: QemuSpawnerError) -> None:
        self._report(Text("{what}: {message}", what=what, message=exc.message), level="warning")


def report_script(ended: Ended, report: Report) -> ScriptRun:
    """How the user's script went, told as a step too."""
    if ended.code:
        report(Text("The start script failed: {message}", message=say_end(ended)), level="warning")
    elif words := _last_words(ended):
        report(Text("The start script is done: {words}", words=words))
    else:
        report(Text("The start script is done"))
    output = _as_lines(ended.stdout + ended.stderr)
    return ScriptRun(state="failed" if ended.code else "done", code=ended.code, output=output)


def say_end(ended: Ended) -> Text:
    """With which code, and its last words."""
    words = _last_words(ended)
    if not words:
        return Text("it ended with code {code} and said nothing", code=ended.code)
    return Text("it ended with code {code}: {words}", code=ended.code, words=words)


def _last_words(ended: Ended) -> str:
    """The end of what it wrote, in one line."""
    text = (ended.stdout + ended.stderr)[-4 * _MAX_WORDS :].decode(errors="replace")
    return " ".join(printable(text.replace("\n", " ")).split())[-_MAX_WORDS:]


def _as_lines(output: bytes) -> str:
    """What it wrote, in lines that can be shown."""
    text = output[-_MAX_OUTPUT_BYTES:].decode(errors="replace")
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))
