"""Templates for tests: the demo machine's, really made, and one of the painter within a second or two."""

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import guests
import hubs

from qemuspawner.machine import Machine
from qemuspawner.machines.templates import template_name
from qemuspawner.paths import SavedPaths, StatePaths
from qemuspawner.qemu.saving import digest_file, size_only
from qemuspawner.saved import Fingerprint, Saved, write_manifest

DEMO = "debian-desktop"
DEMO_SIZE = ("--cpus", "1", "--memory", "1 GiB")
DEMO_CPUS, DEMO_MEMORY_MIB = 1, 1024

_MAIN = "from qemuspawner.cli import main; main()"

PAINTER = """
name = "Painter"
agent = true
[image]
file = "disk.raw"
format = "raw"
[memory]
default = "64 MiB"
offered = ["64 MiB", "128 MiB"]
"""

# The painter has no agent: it is played by this, and QEMU, jail, account and files are the real ones.
_FAKE_AGENT = """
import asyncio
from qemuspawner.machines import warm

class Agent:
    def __init__(self, path):
        pass
    async def wait_until_ready(self, *, timeout_s):
        await asyncio.sleep(0.5)
        return {answers}
    async def run(self, *argv, stdin=b"", timeout_s=30):
        if argv[0] == "/bin/sh":
            return {hook_code}, {says!r}
        return 0, "cpu 0 0 0 {{}} 0 0 0 0".format(next(jiffies))
    def close(self):
        pass

jiffies = iter(range(0, 1 << 30, 100))
warm.GuestAgent = Agent
warm._SETTLE_STEP_S = 0.2
warm._BOOT_TIMEOUT_S = 1
"""


def put_template(state: StatePaths, machine: Machine, fits: Fingerprint, *, name: str = "") -> SavedPaths:
    """A folder as `warm` leaves it, less the content."""
    name = name or template_name(machine, fits)
    folder = SavedPaths(root=state.templates / name)
    folder.root.mkdir()
    folder.state.write_bytes(b"devices" * 100)
    folder.memory.write_bytes(b"memory" * 1000)
    folder.layer(0).write_bytes(b"disk" * 1000)
    files = {path.name: digest_file(path) for path in (folder.state, folder.layer(0))}
    files[folder.memory.name] = size_only(folder.memory)
    saved = Saved(
        kind="template", name=name, saved_at=time.time(), fingerprint=fits, memory="mapped", layers=1,
        files=files, size_bytes=20_000, machine_id=machine.id,
    )  # fmt: skip
    write_manifest(folder.root, saved)
    return folder


def agentless_script(*, answers: bool = True, hook_code: int = 0, says: str = "") -> str:
    """The command `qemuspawner` for machines whose agent is played by the test."""
    return _FAKE_AGENT.format(answers=answers, hook_code=hook_code, says=says) + _MAIN


def command(state: Path, *arguments: str, script: str = _MAIN) -> list[str]:
    """`qemuspawner` in a process of its own; QEMU runs as the sessions' account."""
    return [sys.executable, "-c", script, "--state", str(state), *arguments, *_run_as()]


def _run_as() -> Sequence[str]:
    account = hubs.sessions_account()
    return ("--run-as", account) if account else ()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def demo_state() -> Iterator[Path]:
    """A state folder with the demo machine's template of 1 CPU and 1 GiB; made in half a minute or more."""
    with hubs.state_folder() as state:
        (state / "images").symlink_to(os.environ["QEMUSPAWNER_TEST_IMAGES"])
        make_sessions(state)
        warm = command(state, "warm", DEMO, *DEMO_SIZE, "--accelerator", "tcg")
        done = subprocess.run(warm, env=environment(), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        yield state


def make_sessions(state: Path) -> None:
    """The folder of the sessions, which belongs to their account."""
    sessions = state / "sessions"
    sessions.mkdir()
    if name := hubs.sessions_account():
        account = pwd.getpwnam(name)
        os.chown(sessions, account.pw_uid, account.pw_gid)
    sessions.chmod(0o711)


class PainterWarming:
    """`qemuspawner warm painter`, as a process that can be watched and killed."""

    def __init__(self, state: Path, machines: Path) -> None:
        self.state = state
        self.machines = machines
        (machines / "painter").mkdir(parents=True)
        (machines / "painter/machine.toml").write_text(PAINTER)
        images = state / "images/painter"
        images.mkdir(parents=True)
        guests.make_disk(images / "disk.raw")
        for folder in (images, images.parent):
            folder.chmod(0o755)

    def start(
        self, *options: str, answers: bool = True, hook_code: int = 0, says: str = ""
    ) -> "subprocess.Popen[str]":
        script = agentless_script(answers=answers, hook_code=hook_code, says=says)
        return subprocess.Popen(
            command(
                self.state, "--machines", str(self.machines),
                "warm", "painter", "--accelerator", "tcg", *options, script=script,
            ),
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, *options: str, answers: bool = True, hook_code: int = 0, says: str = ""
    ) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; `says` is the output of the hook in the guest."""
        with self.start(*options, answers=answers, hook_code=hook_code, says=says) as process:
            out, err = process.communicate(timeout=120)
            return process.returncode, out, err


def wait_for_line(process: "subprocess.Popen[str]", begin: str) -> str:
    """Read what the command says until a line begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(begin):
            return line
    raise AssertionError(f"It ended without saying '{begin}': {process.stderr and process.stderr.read()}")
