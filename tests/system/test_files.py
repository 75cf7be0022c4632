"""Files of the demo machine: by tuspy over its real agent, and by a person in a real browser."""

import asyncio
import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import live
import pytest
import pytest_asyncio
import vms
from chromium import LogIn, read_download
from files_app import Served, serve_files
from playwright.async_api import Page, expect
from tusclient.client import TusClient

from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.qemu.agent import GuestAgent

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
SIZE = 5 << 20
DATA = secrets.token_bytes(SIZE)
DIGEST = hashlib.sha256(DATA).hexdigest()


# Over the agent alone


class Desktop:
    """The demo machine, which can be put to sleep and woken again."""

    def __init__(self, state: Path) -> None:
        images = Path(os.environ["QEMUSPAWNER_TEST_IMAGES"])
        self.machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", images)
        self._spec = vms.make_spec(state, self.machine, memory_mib=1024)
        self.stack = contextlib.AsyncExitStack()

    async def start(self) -> GuestAgent:
        running = vms.running_guest(self._spec)
        self._guest, self._prepared = await self.stack.enter_async_context(running)
        assert self._guest.agent is not None
        assert await self._guest.agent.wait_until_ready(timeout_s=240)
        return self._guest.agent

    async def sleep(self) -> None:
        await vms.suspend(self._guest, self._prepared)
        await self.stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desktop]:
    desktop = Desktop(tmp_path_factory.mktemp("state"))
    yield desktop
    await desktop.stack.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(desktop: Desktop, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One boot for the tests with tuspy."""
    agent = await desktop.start()
    async with serve_files(tmp_path_factory.mktemp("app"), agent, Path(desktop.machine.home)) as served:
        yield served


def begin(served: Served, name: str) -> str:
    """Upload the first 2 MiB of DATA with tuspy; where the upload is."""
    uploader = TusClient(str(served.url / "uploads")).uploader(
        file_stream=io.BytesIO(DATA), metadata={"filename": name}, chunk_size=2 << 20
    )
    uploader.upload_chunk()
    return str(uploader.url)


def go_on(served: Served, where: str) -> int:
    """Upload the rest; where it was resumed."""
    uploader = TusClient(str(served.url / "uploads")).uploader(file_stream=io.BytesIO(DATA), url=where)
    resumed_at = int(uploader.offset)
    uploader.upload()
    return resumed_at


async def in_guest(served: Served, command: str) -> str:
    """What a shell command of root's says."""
    agent: GuestAgent = served.guest.agent
    code, output = await agent.run("/bin/sh", "-c", command, timeout_s=60)
    assert code == 0, output
    return output.strip()


async def test_an_interrupted_upload_is_resumed_and_whole_and_the_users_own(served: Served) -> None:
    where = await asyncio.to_thread(begin, served, "data.bin")
    seen = await in_guest(served, "ls /home/user/Desktop")

    assert await asyncio.to_thread(go_on, served, where) == 2 << 20

    assert "data.bin" not in seen.split()
    assert await in_guest(served, "sha256sum < /home/user/Desktop/data.bin") == f"{DIGEST}  -"
    assert await in_guest(served, "stat -c '%U %G %a' /home/user/Desktop/data.bin") == "user user 644"
    assert await in_guest(served, "ls -A /home/user/Desktop | grep -c '^.upload' || :") == "0"


async def test_what_was_uploaded_is_downloaded_from_where_it_was_broken_off(served: Served) -> None:
    url = (served.url / "content").with_query(path="Desktop/data.bin")
    async with aiohttp.ClientSession() as http:
        async with http.get(url) as answer:
            first = await answer.content.readexactly(1_000_001)
            tag = answer.headers["ETag"]
        async with http.get(url, headers={"Range": "bytes=1000001-", "If-Range": tag}) as answer:
            assert answer.status == 206
            rest = await answer.read()

    assert hashlib.sha256(first + rest).hexdigest() == DIGEST


async def test_hostile_names_of_the_guest_are_listed_and_downloaded(served: Served) -> None:
    script = r"""
        mkdir -p /home/user/strange && cd /home/user/strange && printf x > "$(printf 'a\nb')" &&
        printf y > "$(printf 'no \377 utf')" && printf z > '$(reboot)' && ln -s / root && mkfifo pipe &&
        ln -s /etc/shadow shadow && chown -h user * && : > .hidden
    """
    await in_guest(served, script)
    async with aiohttp.ClientSession() as http:
        async with http.get(served.url.with_query(path="strange")) as answer:
            entries = {entry["name"]: entry for entry in (await answer.json())["entries"]}
        contents = {}
        for name, entry in entries.items():
            url = f"{served.url}/content?path={entry['path']}"
            async with http.get(aiohttp.client.URL(url, encoded=True)) as answer:
                contents[name] = await answer.read() if answer.status == 200 else answer.status

    assert contents == {
        "a\ufffdb": b"x", "no \ufffd utf": b"y", "$(reboot)": b"z",
        "root": 409, "pipe": 409, "shadow": 403, ".hidden": b"",
    }  # fmt: skip


async def test_the_user_may_do_no_more_than_inside(served: Served) -> None:
    """A link out of the home leads as far as the account may go."""
    await in_guest(served, "ln -sfn / /home/user/root")
    async with aiohttp.ClientSession() as http:
        async with http.get(served.url.with_query(path="root/etc")) as answer:
            assert "hostname" in {entry["name"] for entry in (await answer.json())["entries"]}
        async with http.get(served.url.with_query(path="root/root")) as answer:
            assert (answer.status, (await answer.json())["message"]) == (
                403,
                "'root' is closed to the desktop's user.",
            )
        async with http.post(served.url / "folders", json={"folder": "root/etc", "name": "new"}) as answer:
            assert "Permission denied" in (await answer.json())["message"]


async def test_an_upload_goes_on_after_the_desktop_slept(served: Served, desktop: Desktop) -> None:
    """Last of these: the machine is another process then."""
    where = await asyncio.to_thread(begin, served, "slept.bin")
    await desktop.sleep()
    async with aiohttp.ClientSession() as http, http.get(served.url) as answer:
        assert (answer.status, (await answer.json())["message"]) == (
            503,
            "The guest agent did not answer within 10 s.",
        )
    served.guest = SimpleNamespace(agent=await desktop.start())

    assert await asyncio.to_thread(go_on, served, where) == 2 << 20

    assert await in_guest(served, "sha256sum < /home/user/Desktop/slept.bin") == f"{DIGEST}  -"


# In a browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(hub: live.LiveHub, log_in: LogIn) -> Page:
    """Of alice, at her demo desktop."""
    desktop = await hub.start_server("alice", machine="debian-desktop", memory="1 GiB", cpus=1)
    page = await log_in("alice", to=desktop)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")
    return page


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png")


# Files as somebody drags them in; Playwright has no such thing.
DRAG = """
([type, files]) => {
    const transfer = new DataTransfer();
    for (const [name, text] of files) transfer.items.add(new File([text], name));
    const target = document.querySelector("#screen canvas");
    target.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""


async def test_a_person_uploads_looks_and_downloads(hub: live.LiveHub, page: Page, tmp_path: Path) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    (tmp_path / "data.bin").write_bytes(DATA)
    uploads = page.get_by_role("region", name="Uploads")

    # Two files dropped onto the desktop
    files = [["one.txt", "1"], ["two <b>.txt", "22"]]
    await page.evaluate(DRAG, ["dragover", files])
    await expect(page.get_by_text("Drop to upload to the desktop")).to_be_visible()
    await shoot(page, "files-drop")
    await page.evaluate(DRAG, ["drop", files])
    await expect(uploads.get_by_text("Done, 1 byte")).to_be_visible(timeout=60_000)
    await expect(uploads.get_by_text("Done, 2 bytes")).to_be_visible(timeout=60_000)
    await expect(page.locator("#drop")).to_be_hidden()

    # Into a folder of one's own, by the keyboard
    await page.keyboard.press("Control+Alt+Shift+KeyM")
    await page.get_by_role("button", name="Files", exact=True).focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="Desktop", exact=True).press("Enter")
    await expect(page.get_by_role("link", name="two <b>.txt")).to_be_visible(timeout=30_000)
    await page.get_by_role("button", name="New folder…").press("Enter")
    await page.get_by_label("Name", exact=True).fill("results")
    await page.keyboard.press("Enter")
    await page.get_by_role("button", name="results").press("Enter")
    await expect(page.get_by_text("This folder is empty.")).to_be_visible(timeout=30_000)

    # By the button; the connection is lost meanwhile, and it goes on by itself
    async with page.expect_response(lambda response: response.request.method == "PATCH", timeout=60_000):
        await page.locator("#files-input").set_input_files(tmp_path / "data.bin")
    # At once: it is one part of several, and what is left takes a second or two.
    await page.context.set_offline(True)
    await expect(uploads.get_by_text("Waiting for the connection")).to_be_visible(timeout=60_000)
    await shoot(page, "files-uploading")
    await page.context.set_offline(False)
    await expect(uploads.get_by_text("Done, 5.0 MiB")).to_be_visible(timeout=120_000)
    await expect(page.locator("body")).to_have_attribute("data-phase", "connected", timeout=60_000)
    await expect(page.locator("#bar")).to_have_attribute("aria-busy", "false")

    # Once more: it asks
    if not await page.locator("#files-menu").is_visible():
        await page.get_by_role("button", name="Files", exact=True).click()
    await page.locator("#files-input").set_input_files(tmp_path / "data.bin")
    await expect(page.get_by_role("heading", name="“data.bin” exists already")).to_be_visible(timeout=60_000)
    await shoot(page, "files-taken")
    await page.get_by_role("button", name="Keep both").click()
    await expect(page.get_by_role("link", name="data (2).bin")).to_be_visible(timeout=120_000)
    await shoot(page, "files")

    # And back
    async with page.expect_download() as started:
        await page.get_by_role("link", name=re.compile(r"^data\.bin")).click()
    download = await started.value
    assert download.suggested_filename == "data.bin"
    assert hashlib.sha256(await read_download(download)).hexdigest() == DIGEST
    assert problems == []
