"""A user's own script in a new desktop, run by an agent whose guest is this host."""

import os
import signal
from pathlib import Path

import pytest
from local_agent import local_agent

from qemuspawner.errors import VmError
from qemuspawner.session.first_start import run_script


async def run(folder: Path, script: str) -> str:
    async with local_agent(folder / "qga") as (_, agent):
        return await run_script(agent, script)


async def test_a_script_runs_with_its_own_interpreter_and_its_last_words_are_told(tmp_path: Path) -> None:
    script = '#!/usr/bin/awk -f\nBEGIN { for (i = 0; i < 999; i++) print i; print "\\033[1mdone" }\n'

    words = await run(tmp_path, script)

    assert words.endswith("997 998 [1mdone")
    assert len(words) == 300


async def test_a_script_that_fails_says_how(tmp_path: Path) -> None:
    with pytest.raises(VmError, match=r"it ended with code 3: no such package$"):
        await run(tmp_path, "#!/bin/sh\necho no such package >&2\nexit 3\n")


async def test_a_script_without_a_word_fails_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="code 1: it said nothing"):
        await run(tmp_path, "#!/bin/sh\nexit 1\n")


async def test_what_a_script_leaves_running_keeps_nobody_waiting(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    words = await run(tmp_path, f"#!/bin/sh\nsleep 300 &\necho $! > {pid}\necho started\n")

    assert words == "started"
    # It still runs.
    os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_nothing_of_a_script_stays(tmp_path: Path) -> None:
    before = set(Path("/var/tmp").iterdir())

    where = await run(tmp_path, '#!/bin/sh\necho "$0"\n')

    assert where.startswith("/var/tmp/start-script.")
    assert set(Path("/var/tmp").iterdir()) == before
