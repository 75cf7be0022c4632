"""A user's home in the desktop is the one that their notebooks have: the same files, the same owner."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import hubs
import live
import pytest
from own_accounts import knowing_account
from tornado.testing import bind_unused_port

pytestmark = pytest.mark.timeout(600)

UID = 4321
CONFIG = """
c.QemuSpawner.run_as = "{username}"
c.QemuSpawner.folders = [
    {"name": "home", "path": "{home}", "mount": "/mnt/home", "read_only": False, "required": True}
]
c.QemuSpawner.sudo = "nobody"
c.QemuSpawner.scripts = True
"""
# As the desktop's user, when the home is there.
SCRIPT = """#!/bin/sh
cd /mnt/home && cat by-the-notebook && stat -c %u by-the-notebook && id -u
mkdir results && echo measured > results/by-the-desktop
"""


@contextlib.contextmanager
def jupyter_server(home: Path) -> Iterator[str]:
    """The URL of the contents of a notebook server, as the account has it from its hub."""
    listening, port = bind_unused_port()
    listening.close()
    command = [
        *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
        *(sys.executable, "-m", "jupyter_server", f"--ServerApp.root_dir={home}", f"--port={port}"),
        *("--IdentityProvider.token=test", "--ServerApp.open_browser=False"),
    ]
    environ = os.environ | {"HOME": str(home)}
    server = subprocess.Popen(command, env=environ, cwd=home, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/api/contents/"
    finally:
        server.terminate()
        server.wait()


async def ask(method: str, url: str, **keys: Any) -> dict[str, Any]:
    """An answer of the notebook server, which may still be on its way up."""
    headers = {"Authorization": "token test"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as http, asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                async with http.request(method, url, **keys) as answer:
                    return dict(await answer.json())
            await asyncio.sleep(0.2)


@pytest.fixture
def home() -> Iterator[Path]:
    with hubs.state_folder() as folder:
        home = folder / "alice"
        home.mkdir(mode=0o700)
        os.chown(home, UID, UID)
        yield home


@pytest.fixture
async def hub(home: Path) -> AsyncIterator[live.LiveHub]:
    within = knowing_account(home.parent, name="alice", uid=UID, home=home)
    async with live.live_hub(more=CONFIG, within=within) as hub:
        yield hub


async def test_files_of_notebooks_and_desktops_are_the_same(hub: live.LiveHub, home: Path) -> None:
    """Whoever writes one, it is the account's on the host, and the user's in the desktop."""
    with jupyter_server(home) as contents:
        note = {"type": "file", "format": "text", "content": "from the notebook\n"}
        await ask("PUT", contents + "by-the-notebook", json=note)

        url = await hub.start_server(
            "alice", machine="debian-desktop", cpus="1", memory="1 GiB", script=SCRIPT
        )
        run = await finished_script(hub, url / "api/script")
        told = await ask("GET", contents + "results/by-the-desktop")

    assert run == {"state": "done", "code": 0, "output": "from the notebook\n1000\n1000\n"}
    assert told["content"] == "measured\n"
    assert {path.stat().st_uid for path in home.rglob("*")} == {UID}


async def finished_script(hub: live.LiveHub, url: Any) -> dict[str, Any]:
    """How the start script went, when it has."""
    headers = {"Authorization": f"token {await hub.new_token('alice')}"}
    async with aiohttp.ClientSession(headers=headers) as http, asyncio.timeout(300):
        while True:
            async with http.get(url) as answer:
                if answer.status == 200 and (run := await answer.json())["state"] != "running":
                    return dict(run)
            await asyncio.sleep(0.5)
