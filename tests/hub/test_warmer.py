"""Templates that the hub has made in the background; a stand-in takes the command's place."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest

from qemuspawner.hub.catalogue.commands import ENVIRONMENT
from qemuspawner.hub.mixin import QemuSpawnerMixin
from qemuspawner.hub.sessions import warmer as module
from qemuspawner.hub.sessions.warmer import Missing, Warmer

StartHub = Callable[..., Awaitable[hubs.Hub]]

# Notes how it was called, when it began and when it ended.
PROGRAM = """
import json, os, signal, sys, time
notes, seconds, code = sys.argv[1:4]
def note(what):
    with open(notes, "a") as file:
        print(json.dumps([what, sys.argv[4:], sorted(os.environ), os.getcwd()]), file=file)
signal.signal(signal.SIGTERM, lambda *_: (note("terminated"), os._exit(1)))
note("begins")
time.sleep(float(seconds))
note("ends")
sys.exit(int(code))
"""

DEBIAN = Missing(machine_id="debian", cpus=2, memory_mib=2048)
OTHER = Missing(machine_id="other", cpus=1, memory_mib=1024)


class Program:
    """The stand-in, and what it noted."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "notes"

    def command(self, *arguments: str, seconds: float = 0, code: int = 0) -> list[str]:
        return [sys.executable, "-c", PROGRAM, str(self._notes), str(seconds), str(code), *arguments]

    def notes(self) -> list[Any]:
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [json.loads(line) for line in lines]

    def events(self) -> list[str]:
        return [what for what, *_ in self.notes()]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


async def test_templates_are_made_one_at_a_time(program: Program) -> None:
    warmer = Warmer()

    warmer.request(DEBIAN, program.command(seconds=0.3))
    warmer.request(OTHER, program.command())
    warmer.request(DEBIAN, program.command())
    await warmer.wait()

    assert program.events() == ["begins", "ends", "begins", "ends"]


async def test_after_a_failure_it_is_left_alone_for_an_hour(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmer = Warmer()
    for _ in range(2):
        warmer.request(DEBIAN, program.command(code=1))
        await warmer.wait()
    assert program.events() == ["begins", "ends"]

    now = module.time.monotonic
    monkeypatch.setattr(module.time, "monotonic", lambda: now() + 3601)
    warmer.request(DEBIAN, program.command())
    await warmer.wait()

    assert len(program.events()) == 4


async def test_a_command_that_is_missing_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    warmer = Warmer()

    warmer.request(DEBIAN, ["/no/such/command"])
    await warmer.wait()

    assert "The template of 'debian' cannot be made: No such file or directory." in caplog.text


async def test_the_command_is_told_no_secret_of_the_hub(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIGPROXY_AUTH_TOKEN", "secret")
    warmer = Warmer()

    warmer.request(DEBIAN, program.command())
    await warmer.wait()

    [_, _, environment, folder], _ = program.notes()
    # The stand-in's Python adds the locale.
    assert set(environment) <= {*ENVIRONMENT, "LC_CTYPE"}
    assert folder == "/"


async def test_it_ends_with_the_hub(program: Program) -> None:
    warmer = Warmer()
    warmer.request(DEBIAN, program.command(seconds=60))
    async with asyncio.timeout(10):
        while not program.events():
            await asyncio.sleep(0.05)

    assert warmer._task is not None
    warmer._task.cancel()
    await asyncio.wait([warmer._task], timeout=10)

    assert program.events() == ["begins", "terminated"]


# In the hub


@pytest.fixture
def warmed(program: Program, monkeypatch: pytest.MonkeyPatch) -> Warmer:
    """The hub's warmer, with the stand-in for its command."""
    warmer = Warmer()
    monkeypatch.setattr("qemuspawner.hub.sessions.warms.warmer", lambda: warmer)
    real = QemuSpawnerMixin._warm_command
    monkeypatch.setattr(
        QemuSpawnerMixin, "_warm_command", property(lambda self: program.command(*real.fget(self)))
    )
    return warmer


def with_agent(machines: Path) -> None:
    """Only such a machine can have a template."""
    toml = machines / "mini/machine.toml"
    toml.write_text(toml.read_text().replace("[image]", "agent = true\n[image]"))


async def test_a_cold_start_has_its_template_made(
    standin: StartHub, warmed: Warmer, program: Program, machines_dir: Path
) -> None:
    with_agent(machines_dir)
    hub = await standin(warm_missing=True, templates_disk="3 GiB", jail=False)
    alice = await hub.with_token("alice")

    await hub.start(alice, {"cpus": 2, "memory": "256 MiB"})
    await hub.wait_until_ready("alice")
    await warmed.wait()

    [_, arguments, *_], _ = program.notes()
    account = hubs.sessions_account()
    assert arguments[0].endswith("/qemuspawner")
    assert arguments[1:] == [
        f"--state={hub.state_dir}",
        f"--machines={machines_dir}",
        *("warm", "mini", "--cpus", "2", "--memory", "256"),
        *("--nice", "--accelerator", "auto", "--max-disk", "3072", "--no-jail", "--allow-tcg"),
        *(["--run-as", account] if account and os.geteuid() == 0 else []),
    ]


async def test_no_users_own_account_makes_what_all_start_from(standin: StartHub) -> None:
    hub = await standin(run_as="{username}")

    assert "--run-as" not in hub.spawner("nobody")._warm_arguments()


@pytest.mark.parametrize("settings", [{}, {"warm_missing": True, "templates": False}])
async def test_nothing_is_made_unasked(
    standin: StartHub, warmed: Warmer, program: Program, machines_dir: Path, settings: dict[str, bool]
) -> None:
    with_agent(machines_dir)
    hub = await standin(**settings)
    alice = await hub.with_token("alice")

    await hub.start(alice)
    await hub.wait_until_ready("alice")
    await warmed.wait()

    assert program.events() == []


async def test_a_machine_that_can_have_no_template_is_not_tried(
    standin: StartHub, warmed: Warmer, program: Program
) -> None:
    hub = await standin(warm_missing=True)
    alice = await hub.with_token("alice")

    await hub.start(alice)
    await hub.wait_until_ready("alice")
    await warmed.wait()

    assert program.events() == []
