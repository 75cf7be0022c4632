"""A desktop for one person at a terminal: the session is the same as under a hub, and lets in nobody else."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import guests
import pytest
from yarl import URL

from qemuspawner.cli import main
from qemuspawner.paths import StatePaths

PROGRAM = "from qemuspawner.cli import main; main()"
PAINTER = """
name = "Painter"
shutdown = "1 s"
[image]
file = "disk.raw"
format = "raw"
[memory]
default = "64 MiB"
offered = ["64 MiB"]
"""


@pytest.fixture
def arguments(state_dir: Path, tmp_path: Path) -> list[str]:
    """The command's own, with a machine that is ready in a second."""
    machines = tmp_path / "catalogue"
    (machines / "painter").mkdir(parents=True)
    (machines / "painter" / "machine.toml").write_text(PAINTER)
    images = state_dir / "images" / "painter"
    images.mkdir(parents=True)
    guests.make_disk(images / "disk.raw")
    return ["--state", str(state_dir), "--machines", str(machines)]


class Terminal:
    """`qemuspawner start` as it runs, up to the desktop's being ready."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while "is ready" not in self.said:
                line = await self.process.stdout.readline()
                assert line, self.said
                self.said += line.decode()

    @property
    def login(self) -> URL:
        found = re.search(r"http://\S+", self.said)
        assert found is not None
        return URL(found[0])

    async def end(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        return await self.process.wait()


@pytest.fixture
async def terminal(arguments: list[str]) -> AsyncIterator[Terminal]:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments, "start", "painter"),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
    )
    terminal = Terminal(process)
    try:
        await terminal.wait_until_ready()
        yield terminal
    finally:
        await terminal.end()


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[aiohttp.ClientSession]:
    # Cookies of addresses, which have no names.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield http


async def test_the_address_of_the_terminal_opens_the_desktop_once(terminal: Terminal) -> None:
    async with browser() as mine, mine.get(terminal.login) as page:
        assert (page.status, page.url.path.split("/")[1]) == (200, "user")
        assert "Painter" in await page.text()
        async with mine.get(page.url / "api/status") as status:
            assert (await status.json())["you"]["role"] == "owner"
        # Who is in already may open it again.
        async with mine.get(terminal.login) as again:
            assert again.status == 200
        desktop = page.url

    async with browser() as other:
        for url in (terminal.login, desktop):
            async with other.get(url) as answer:
                assert answer.status == 403
                assert "terminal" in await answer.text() or "used already" in await answer.text()


async def test_nobody_gets_in_by_guessing(terminal: Terminal) -> None:
    async with browser() as other:
        hub = terminal.login.origin()
        async with other.get(hub / "login", params={"code": ""}) as answer:
            assert answer.status == 403
        async with other.get(hub / "hub/api/user", headers={"Authorization": "token "}) as answer:
            assert answer.status == 403
        async with other.post(hub / "hub/api/oauth2/token", data={"code": "x"}) as answer:
            assert answer.status == 403
        async with other.get(hub / "hub/api/users/x/desktop-shares/") as answer:
            assert answer.status == 403
        async with other.get(terminal.login, headers={"Host": "evil.example.org"}) as answer:
            assert answer.status == 403


async def test_a_login_leads_nowhere_else(terminal: Terminal) -> None:
    """A page of somebody else's cannot have the code of a login sent to itself."""
    async with browser() as mine:
        async with mine.get(terminal.login, allow_redirects=False) as first:
            desktop = URL(first.headers["Location"])
        async with mine.get(desktop, allow_redirects=False) as second:
            asks = URL(second.headers["Location"])
        query = {name: values[0] for name, values in parse_qs(urlsplit(str(asks)).query).items()}
        query["redirect_uri"] = "https://evil.example.org/"

        async with mine.get(asks.with_query(query), allow_redirects=False) as answer:
            assert answer.status == 400


async def test_ctrl_c_ends_it_and_leaves_nothing(terminal: Terminal, state_dir: Path) -> None:
    assert await terminal.end() == 0

    assert [path for path in StatePaths(root=state_dir).sessions.iterdir() if path.name[0] != "."] == []


async def test_the_same_desktop_is_not_started_twice(
    terminal: Terminal, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "start", "painter"])

    assert caught.value.code == 1
    assert "Your desktop of 'painter' runs already, as process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--cpus", "0"], "A desktop of 0 CPUs and 64 MiB for 8 h cannot be"),
        (["--memory", "8 MiB"], "A desktop of 1 CPUs and 8 MiB"),
        (["--memory", "much"], "An option cannot be read: it is"),
        (["--lifetime", "1 s"], "for 1 s cannot be"),
        (["--port", "70000"], "Port 70000 cannot be opened"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    options: list[str], why: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "start", "painter", *options])

    assert caught.value.code == 1
    assert why in capsys.readouterr().err


def test_a_machine_without_its_image_says_how_to_get_it(
    arguments: list[str], state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (state_dir / "images/painter/disk.raw").unlink()

    with pytest.raises(SystemExit) as caught:
        main([*arguments, "start", "painter"])

    assert caught.value.code == 1
    assert "hint: Run 'qemuspawner machines fetch painter'." in capsys.readouterr().err
