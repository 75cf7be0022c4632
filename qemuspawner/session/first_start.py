"""What is done once in a new desktop: what its user is given, then their own script."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from qemuspawner.errors import QemuSpawnerError, VmError, printable
from qemuspawner.given_texts import is_cloud_config
from qemuspawner.paths import CLOUD_SCRIPT, START_SCRIPT
from qemuspawner.qemu.agent import ENVIRONMENT, Ended, GuestAgent
from qemuspawner.qemu.owner import find_owner
from qemuspawner.session.gifts import Gift, install_packages, put_files, read_gift
from qemuspawner.session.personal import sudo_of
from qemuspawner.session.prepare import Plan
from qemuspawner.spec import ScriptRun, SessionSpec
from qemuspawner.texts import Text

# It may install programs.
_TIMEOUT_S = 900
_MAX_OUTPUT_BYTES = 64 << 10
_MAX_WORDS = 300


def is_new(plan: Plan) -> bool:
    """Whether a VM is a new desktop, rather than one that goes on from something that was kept."""
    return plan.saved is None or plan.saved.kind == "template"


class Report(Protocol):
    """Tells a step."""

    def __call__(self, text: str, *, level: Literal["info", "warning"] = "info") -> None: ...


class FirstStart:
    """Of one session. A part that fails is told, and the others go on."""

    def __init__(self, spec: SessionSpec, report: Report) -> None:
        self._spec = spec
        self._report = report
        self._start_script = START_SCRIPT.read_text()
        self._cloud_script = CLOUD_SCRIPT.read_text()
        self.script: ScriptRun | None = None  # how the user's script does; None where there is none yet

    async def do(self, agent: GuestAgent) -> None:
        """Give the user what they are given, and run their script."""
        for folder in self._spec.gifts:
            await self._give(agent, Path(folder))
        if self._spec.script:
            await self._run_script(agent)

    async def _give(self, agent: GuestAgent, folder: Path) -> None:
        try:
            gift = await asyncio.to_thread(read_gift, folder)
        except VmError as exc:
            self._warn(Text("What your site gives to new desktops cannot be read"), exc)
            return
        steps = (
            (gift.files, Text("The files of your site are not there"), self._put_files),
            (gift.packages, Text("The packages of your site are not installed"), self._install),
            (gift.program, Text("The program of your site failed"), self._run_program),
        )
        for wanted, what, step in steps:
            if wanted:
                try:
                    await step(agent, gift)
                except QemuSpawnerError as exc:
                    self._warn(what, exc)

    async def _put_files(self, agent: GuestAgent, gift: Gift) -> None:
        home = self._spec.machine.home
        if not home:
            raise VmError(Text("the machine does not say where its user's home is"))
        await put_files(agent, gift.files, home=home)

    async def _install(self, agent: GuestAgent, gift: Gift) -> None:
        if self._spec.network.mode == "none":
            raise VmError(Text("the machine has no network"))
        self._report(Text("Installing the packages of your site: {count}", count=len(gift.packages)))
        await install_packages(agent, gift.packages)

    async def _run_program(self, agent: GuestAgent, gift: Gift) -> None:
        ended = await _run(agent, self._start_script, gift.program, environment=self._environment())
        if ended.code:
            raise VmError(_say_end(ended))

    async def _run_script(self, agent: GuestAgent) -> None:
        spec = self._spec
        script = spec.script.encode()
        self.script = ScriptRun(state="running")
        self._report(Text("Running the start script"))
        try:
            if is_cloud_config(spec.script):
                ended = await _run(agent, self._cloud_script, script, environment=self._environment())
            else:
                ended = await self._run_as_user(agent, script)
        except QemuSpawnerError as exc:
            self.script = ScriptRun(state="failed")
            self._warn(Text("The start script failed"), exc)
            return
        output = _as_lines(ended.stdout + ended.stderr)
        self.script = ScriptRun(state="failed" if ended.code else "done", code=ended.code, output=output)
        if ended.code:
            self._warn(Text("The start script failed"), VmError(_say_end(ended)))
        elif words := _last_words(ended):
            self._report(Text("The start script is done: {words}", words=words))
        else:
            self._report(Text("The start script is done"))

    async def _run_as_user(self, agent: GuestAgent, script: bytes) -> Ended:
        """As root for who may become it."""
        if sudo_of(self._spec) == "yes":
            return await _run(agent, self._start_script, script, environment=self._environment())
        home = self._spec.machine.home
        if not home:
            raise VmError(Text("the machine does not say where its user's home is"))
        become = await find_owner(agent, home)
        return await _run(
            agent, self._start_script, script, become=become, environment=self._environment() | {"HOME": home}
        )

    def _environment(self) -> dict[str, str]:
        return ENVIRONMENT | {"QEMUSPAWNER_SESSION": self._spec.session_id}

    def _warn(self, what: Text, exc: QemuSpawnerError) -> None:
        self._report(Text("{what}: {message}", what=what, message=exc.message), level="warning")


async def _run(
    agent: GuestAgent,
    runner: str,
    content: bytes,
    *,
    become: Sequence[str] = (),
    environment: dict[str, str],
) -> Ended:
    """Have one of our scripts carry out `content`; raises VmError where that comes to no end."""
    return await agent.run_program(
        *(*become, "/bin/sh", "-c", runner, "qemuspawner", str(_MAX_OUTPUT_BYTES)),
        stdin=content,
        env=environment,
        timeout_s=_TIMEOUT_S,
    )


def _say_end(ended: Ended) -> Text:
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
