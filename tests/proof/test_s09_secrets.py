"""No secret is visible: some are planted in the whole product, and all that it shows and keeps is searched.

What a guest is told of a password is for system/test_remote_folders: no real agent is in this one.
"""

import asyncio
import base64
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import hubs
import live
import onlooker
import pytest
import warming
from chromium import visitors
from playwright.async_api import Browser, Page, Request, WebSocket, expect
from processes import find_processes
from proofs import Proof
from yarl import URL

from qemuspawner.locks import find_holder
from qemuspawner.paths import StatePaths, session_id

pytestmark = [pytest.mark.goal("S9"), pytest.mark.timeout(900)]

OTHER = 4242

# A desktop whose guest has an agent and a clipboard, and may ask a server for a folder.
MACHINE = (
    live.PAINTER.replace("[image]", "agent = true\nclipboard = true\n[image]")
    + '[network]\nmode = "allow"\nallow = ["198.51.100.1"]\n'
)
CONFIG = """
c.JupyterHub.log_level = "DEBUG"
c.Spawner.debug = True
c.QemuSpawner.environment = {{"QEMUSPAWNER_LOG_LEVEL": "DEBUG"}}
c.QemuSpawner.suspend_on = ["stop"]
c.QemuSpawner.network = "allow"
c.QemuSpawner.allow_servers = ["198.51.100.1"]
c.QemuSpawner.remote_folders = [
    {{"name": "home", "kind": "cifs", "server": "198.51.100.1", "path": "/home", "mount": "/mnt/home"}},
]

def note_token(spawner):
    with open({tokens!r}, "a") as file:
        print(spawner.api_token, file=file)

c.Spawner.pre_spawn_hook = note_token
"""

# Where secrets are kept: files of the hub's account alone, and the test's own configuration.
ITS_PLACE = ("cookie-secret", "demo-password", "admin-password", "config.py")


@contextlib.contextmanager
def looked_at() -> Iterator[list[bytes]]:
    """What another account has read of processes meanwhile; there at the end."""
    read: list[bytes] = []
    with subprocess.Popen(
        [sys.executable, "-I", "-c", Path(onlooker.__file__).read_text()],
        user=OTHER, group=OTHER, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield read
        read.append(process.communicate()[0])


class Urls:
    """Every address that a page asks for, and where it says that it comes from."""

    def __init__(self, page: Page) -> None:
        self.seen: list[str] = []
        page.on("request", self._note)
        page.on("websocket", self._note_websocket)

    def _note(self, request: Request) -> None:
        self.seen += [request.url, request.headers.get("referer", "")]

    def _note_websocket(self, websocket: WebSocket) -> None:
        self.seen.append(websocket.url)


def spellings(secret: str) -> Iterator[bytes]:
    """It, as an address has it, and in Base64 wherever it begins there."""
    yield from (secret.encode(), quote(secret).encode(), secret.encode().hex().encode())
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret.encode())
        # Without what depends on its neighbours.
        yield whole[4 if before else 0 : -4]


def find(planted: Mapping[str, str], where: str, content: bytes) -> list[str]:
    return [
        f"{what} in {where}"
        for what, secret in planted.items()
        if any(spelling in content for spelling in spellings(secret))
    ]


def read_files(folder: Path) -> dict[Path, bytes]:
    """All that are there; the journal of a database comes and goes."""
    files: dict[Path, bytes] = {}
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    files[path] = path.read_bytes()
    return files


def core_limit(pid: int | None) -> str:
    """Now, and the most that it could be set to."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    words = next(line.split() for line in lines if line.startswith("Max core file size"))
    return " ".join(words[4:])


async def make_template(state: Path) -> None:
    """A desktop that is restored is shown at once, also where its agent, as here, will never answer."""
    words = ("--machines", str(state / "machines"), "warm", "painter", "--accelerator", "tcg")
    command = warming.command(state, *words, script=warming.agentless_script())
    process = await asyncio.create_subprocess_exec(*command, env=warming.environment())
    assert await process.wait() == 0


async def use(page: Page, planted: Mapping[str, str]) -> None:
    """Copy and log in to a server, as people do at a desktop."""
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await page.get_by_role("button", name="Clipboard", exact=True).click()
    await page.locator("#clipboard-text").fill(planted["clipboard"])
    await page.locator("#clipboard-send").click()
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Folders of servers").click()
    await page.get_by_role("button", name="Connect: home").click()
    await page.get_by_role("textbox", name="Account").fill("alice")
    await page.get_by_label("Password").fill(planted["password of a folder"])
    async with page.expect_request("**/api/remote-folders*"):
        await page.keyboard.press("Enter")


async def try_token(hub: live.LiveHub, desktop: URL, token: str) -> None:
    """As it is meant to be used, and in addresses, as it is not."""
    async with hub.person(token=token) as person:
        assert (await person.request("GET", desktop / "api/status")).status == 200
    async with hub.person() as anybody:
        for url in (desktop / "api/status", hub.url / "hub/api/user", hub.url / "hub/home"):
            await anybody.request("GET", url.with_query(token=token))


async def test_no_secret_is_visible(browser: Browser, proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    """In command lines, environments, addresses, logs, databases, manifests and core files."""
    desktops = proof.rounds(short=1, full=10)
    planted = {name: f"planted-{secrets.token_hex(12)}" for name in ("clipboard", "password of a folder")}
    planted["key of the hub"] = secrets.token_hex(32)
    monkeypatch.setenv("JUPYTERHUB_CRYPT_KEY", planted["key of the hub"])
    urls: list[str] = []
    limits: set[str] = set()
    with hubs.state_folder() as folder, looked_at() as read:
        # Where the test itself writes down what is looked for: not among what is searched.
        tokens = folder / "tokens"
        async with live.live_hub(more=CONFIG.format(tokens=str(tokens)), named_servers=0) as hub:
            (hub.state / "machines/painter/machine.toml").write_text(MACHINE)
            await make_template(hub.state)
            planted |= {
                "token of a service": hub.token,
                "token of a person": await hub.new_token("alice"),
                "password of a person": hub.password("alice"),
                "cookie secret": (hub.state / "cookie-secret").read_text().strip(),
            }
            async with visitors(browser) as log_in:
                page = await log_in(hub, "alice")
                noted = Urls(page)
                for number in range(desktops):
                    name = f"desk{number}"
                    url = await hub.start_server("alice", name, machine="painter")
                    await page.goto(str(url))
                    await use(page, planted)
                    await try_token(hub, url, planted["token of a person"])
                    paths = StatePaths.of(str(hub.state)).session(session_id("alice", name))
                    limits |= {core_limit(pid) for pid in (*find_processes(paths), find_holder(paths.lock))}
                    status, _ = await hub.ask("DELETE", f"users/alice/servers/{name}")
                    assert status in (202, 204)
                urls += noted.seen
            for name in await hub.servers("alice"):
                await hub.stop_server("alice", name)
            planted |= {
                f"token of desktop {number}": token for number, token in enumerate(tokens.read_text().split())
            }
            state = hub.state
            files = read_files(state)
            modes = {(state / name).stat().st_mode & 0o777 for name in ITS_PLACE[:3]}

    found = find(planted, "command lines and environments", b"\n".join(read))
    found += find(planted, "addresses", "\n".join(urls).encode())
    for path, content in files.items():
        if path.name not in ITS_PLACE:
            found += find(planted, str(path.relative_to(state)), content)
    proof.note(
        done=f"{len(planted)} secrets in a hub with {desktops} desktops and a browser: searched were what"
        f" another account reads of all processes, {len(urls)} addresses, {len(files)} files with logs,"
        f" databases and manifests, and the limits of core files",
        found=f"{len(found)} hits, {len(limits - {'0 0 bytes'})} other limits than 0 for core files",
        limit="0 hits",
    )
    assert found == []
    assert modes == {0o600}
    assert limits == {"0 0 bytes"}
