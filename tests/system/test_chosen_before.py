"""What is chosen before the start is so in a real guest: keyboard, size, name, and a script of one's own."""

import asyncio
import io
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import live
import pytest
import pytest_asyncio
from PIL import Image
from yarl import URL

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

SOON_S = 120
SCRIPT = """#!/bin/sh
id -u > who
echo once >> ran
sudo -n id -u >> who
echo "Installed for $(id -un)"
exit 3
"""
CONFIG = """
c.QemuSpawner.scripts = True
c.QemuSpawner.sudo = ["user:bob"]
c.QemuSpawner.guest_files = {{"everybody": "{gift}"}}
"""
Get = Callable[[str], Awaitable[bytes]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub() -> AsyncIterator[live.LiveHub]:
    # Sessions have an account of their own, which must be able to read it.
    with tempfile.TemporaryDirectory(prefix="given-") as gift:
        folder = Path(gift)
        (folder / "home/.config").mkdir(parents=True)
        (folder / "home/.config/site").write_text("given\n")
        (folder / "run").write_text("#!/bin/sh\nid -u > /etc/site\n")
        folder.chmod(0o755)
        async with live.live_hub(more=CONFIG.format(gift=gift)) as hub:
            yield hub


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desktop(hub: live.LiveHub) -> URL:
    return await hub.start_server(
        "alice",
        "chosen",
        machine="debian-desktop",
        memory="1 GiB",
        name="Night <run>",
        notes="one\ntwo",
        keyboard="fr",
        resolution="1440x900",
        script=SCRIPT,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def get(hub: live.LiveHub, desktop: URL) -> AsyncIterator[Get]:
    """A path of the session, asked by alice's program."""
    headers = {"Authorization": f"token {await hub.new_token('alice')}"}
    async with aiohttp.ClientSession(headers=headers) as http:

        async def get(path: str) -> bytes:
            async with http.get(f"{desktop}{path}") as answer:
                assert answer.status == 200, await answer.text()
                return await answer.read()

        yield get


async def status_with(get: Get, words: str) -> dict[str, object]:
    """The status, when one of its steps says `words`."""
    async with asyncio.timeout(SOON_S):
        while True:
            status: dict[str, object] = json.loads(await get("api/status"))
            if words in json.dumps(status["steps"]):
                return status
            await asyncio.sleep(0.5)


async def test_the_script_runs_once_as_the_user_who_may_not_become_root(get: Get) -> None:
    """And its owner can read how it ended and what it wrote."""
    status = await status_with(get, "The start script failed: it ended with code 3: ")

    run = json.loads(await get("api/script"))
    assert (status["script"], run["state"], run["code"]) == ("failed", "failed", 3)
    assert run["output"].startswith("sudo: ")
    assert run["output"].endswith("\nInstalled for user\n")
    assert await get("api/files/content?path=who") == b"1000\n"
    assert await get("api/files/content?path=ran") == b"once\n"


async def test_what_the_site_gives_is_there(get: Get) -> None:
    """The home's owner has it; what the site's own program did, root did."""
    await status_with(get, "The start script failed")

    listed = json.loads(await get("api/files?path=.config"))
    assert await get("api/files/content?path=.config/site") == b"given\n"
    assert "site" in [entry["name"] for entry in listed["entries"]]
    assert "of your site" not in json.dumps(json.loads(await get("api/status"))["steps"])


async def test_the_guest_has_the_keyboard_the_size_and_the_name(hub: live.LiveHub, get: Get) -> None:
    status = await status_with(get, "The start script failed")
    async with asyncio.timeout(SOON_S):
        while Image.open(io.BytesIO(await get("api/screenshot"))).size != (1440, 900):
            await asyncio.sleep(0.5)

    _, listed = await hub.ask("GET", "users/alice/desktops")
    assert (status["keyboard"], status["name"], status["notes"]) == ("fr", "Night <run>", "one\ntwo")
    assert [(one["name"], one["notes"]) for one in listed["desktops"]] == [("Night <run>", "one\ntwo")]
    steps = json.loads(await get("api/status"))["steps"]
    assert [step["text"] for step in steps if "chosen" in step["text"]] == []


async def test_the_page_has_the_name_as_its_title(hub: live.LiveHub, desktop: URL) -> None:
    async with hub.person("alice") as alice:
        page = await hub.open_session(alice, desktop)

    assert "<title>Night &lt;run&gt;" in page.text


async def test_name_and_notes_change_while_it_runs_and_for_the_next_start(
    hub: live.LiveHub, get: Get
) -> None:
    async with hub.person(token=await hub.new_token("alice")) as alice:
        url = hub.url / "hub/api/users/alice/desktops/chosen/about"
        refused = await alice.request("POST", url, json={"notes": "x" * 2001})
        changed = await alice.request("POST", url, json={"name": "Day run"})

    status = json.loads(await get("api/status"))
    server = (await hub.servers("alice"))["chosen"]
    assert (refused.status, changed.status) == (400, 200), changed.text
    assert (status["name"], status["notes"]) == ("Day run", "one\ntwo")
    assert (server["user_options"]["name"], server["user_options"]["notes"]) == ("Day run", "one\ntwo")


LONG_SCRIPT = """#!/bin/sh
echo "before the sleep"
until [ -e woken ]; do sleep 0.5; done
echo "after it"
exit 4
"""


async def test_a_script_is_followed_through_a_sleep_and_its_end_is_still_told_after_another(
    hub: live.LiveHub,
) -> None:
    async with hub.person(token=await hub.new_token("alice")) as alice:

        async def ask(method: str, url: URL, **more: Any) -> dict[str, Any]:
            answer = await alice.request(method, url, **more)
            assert answer.status == 200, answer.text
            told: dict[str, Any] = json.loads(answer.text)
            return told

        async def sleep_and_wake(desktop: URL) -> URL:
            await ask("POST", desktop / "api/suspend")
            async with asyncio.timeout(SOON_S):
                while (await hub.servers("alice")).get("long", {}).get("ready"):
                    await asyncio.sleep(0.2)
            return await hub.start_server("alice", "long")

        async def script_that_is(state: str) -> dict[str, Any]:
            async with asyncio.timeout(SOON_S):
                while (await ask("GET", desktop / "api/status"))["script"] != state:
                    await asyncio.sleep(0.2)
            return await ask("GET", desktop / "api/script")

        desktop = await hub.start_server(
            "alice", "long", machine="debian-desktop", memory="1 GiB", script=LONG_SCRIPT
        )
        await script_that_is("running")
        desktop = await sleep_and_wake(desktop)
        asleep = await script_that_is("running")
        made = await alice.request(
            "POST", desktop / "api/files/folders", json={"folder": "", "name": "woken"}
        )
        ended = await script_that_is("failed")
        desktop = await sleep_and_wake(desktop)
        woken = await script_that_is("failed")

    assert made.status == 201, made.text
    assert asleep == {"state": "running", "code": None, "output": ""}
    assert ended == {"state": "failed", "code": 4, "output": "before the sleep\nafter it\n"}
    assert woken == ended
