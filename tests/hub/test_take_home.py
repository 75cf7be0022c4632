"""A user takes the image of a sleeping desktop home, or of a machine: by REST, and on the pages."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hubs
import live
import published
import pytest
from audit_log import audit_lines
from axe import find_barriers_in_both_looks
from chromium import LogIn
from forked import wait_for
from playwright.async_api import expect

from qemuspawner.hub.publishing.take_home_api import ROUTES
from qemuspawner.hub.runs.upkeep import keep_up
from qemuspawner.machines import downloads
from qemuspawner.machines.edits import set_keys
from qemuspawner.paths import StatePaths, session_id

# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
DESKTOP, MACHINE = "users/alice/desktops//image", "users/alice/machines/base/image"
QCOW2 = b"QFI\xfb"


@pytest.fixture
def world(hub: hubs.Hub, tmp_path: Path) -> published.World:
    """Alice's desktop sleeps; its machine may be taken home."""
    world = published.World(state=StatePaths(root=hub.state_dir), machines=hub.machines)
    published.add_base(world, tmp_path)
    published.suspend(world, published.change_disk(world, tmp_path / "changed.raw"))
    allow(world)
    return world


@pytest.fixture
async def alice(hub: hubs.Hub, world: published.World) -> hubs.Person:
    return await hub.with_token("alice")


def allow(world: published.World, *, download: bool = True, **keys: Any) -> None:
    file = world.machines / "base/machine.toml"
    file.write_text(set_keys(file.read_text(), {"download": download, **keys}))


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str) -> Any:
    answer = await hub.ask(person, method, path)
    return answer.status, json.loads(answer.text) if answer.text else {}


async def pack(hub: hubs.Hub, person: hubs.Person, path: str) -> dict[str, Any]:
    """Have it packed; what is told of the file."""
    status, told = await ask(hub, person, "POST", path)
    assert (status, told["file"]) == (202, None)
    async with asyncio.timeout(90):
        while not told["file"]:
            await asyncio.sleep(0.1)
            status, told = await ask(hub, person, "GET", path)
            assert told["job"] is None or told["job"]["state"] != "failed", told
    return dict(told["file"])


async def fetch(
    hub: hubs.Hub, person: hubs.Person, path: str, **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    url, sent = hub.url / "api" / f"{path}/file", {"Authorization": f"token {person.token}", **headers}
    async with person.http.get(url, headers=sent) as answer:
        return answer.status, await answer.read(), answer.headers


@pytest.mark.parametrize(("path", "name"), [(DESKTOP, "base.qcow2"), (MACHINE, "base.qcow2")])
async def test_an_image_is_packed_and_downloaded(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, path: str, name: str
) -> None:
    file = await pack(hub, alice, path)

    status, content, headers = await fetch(hub, alice, path)
    assert (status, len(content)) == (200, file["size_bytes"])
    assert content.startswith(QCOW2)
    [there] = world.state.downloads.glob("*/*")
    assert there.read_bytes() == content
    assert headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert file["name"] == name
    assert 86300 < file["left_s"] <= 86400


async def test_a_download_that_broke_off_goes_on(hub: hubs.Hub, alice: hubs.Person) -> None:
    await pack(hub, alice, DESKTOP)
    _, whole, headers = await fetch(hub, alice, DESKTOP)
    tag, size = headers["ETag"], len(whole)

    async def part(wanted: str, **more: str) -> tuple[int, bytes, str]:
        status, content, told = await fetch(hub, alice, DESKTOP, Range=wanted, **more)
        return status, content, told.get("Content-Range", "")

    assert headers["Accept-Ranges"] == "bytes"
    assert await part("bytes=1000-") == (206, whole[1000:], f"bytes 1000-{size - 1}/{size}")
    assert await part("bytes=0-3") == (206, QCOW2, f"bytes 0-3/{size}")
    assert await part("bytes=-5") == (206, whole[-5:], f"bytes {size - 5}-{size - 1}/{size}")
    assert await part("bytes=7-", **{"If-Range": tag}) == (206, whole[7:], f"bytes 7-{size - 1}/{size}")
    # Of another file it is no rest.
    assert await part("bytes=7-", **{"If-Range": '"other"'}) == (200, whole, "")
    assert await part("bytes=0-3,9-12") == (200, whole, "")
    assert await part(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    answer = await alice.request("HEAD", hub.url / "api" / f"{DESKTOP}/file")
    assert (answer.status, answer.headers["Content-Length"], answer.text) == (200, str(size), "")


async def test_what_was_downloaded_is_in_the_audit_log(
    hub: hubs.Hub, world: published.World, alice: hubs.Person
) -> None:
    file = await pack(hub, alice, DESKTOP)
    await fetch(hub, alice, DESKTOP, Range="bytes=0-99")

    # The hub notes what it sent after the last of it is sent.
    await wait_for(lambda: len(audit_lines(hub.state_dir)) > 1)
    about = {"by": "alice", "owner": "alice", "server": "", "machine": "base"}
    about["session"] = session_id("alice", "")
    sent = {"event": "download-image", "size_bytes": 100, "of_bytes": file["size_bytes"]}
    assert [
        {key: value for key, value in line.items() if key != "at"} for line in audit_lines(hub.state_dir)
    ] == [
        {"event": "pack-image", **about},
        {**sent, **about},
    ]


@pytest.mark.parametrize("path", [DESKTOP, MACHINE])
async def test_where_the_machine_does_not_allow_it_every_route_refuses(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, path: str
) -> None:
    """Also what was packed before."""
    await pack(hub, alice, path)
    allow(world, download=False)

    for method, where in (("GET", path), ("POST", path), ("DELETE", path), ("GET", f"{path}/file")):
        status, told = await ask(hub, alice, method, where)
        assert (status, told["message"]) == (403, "Images of 'Base' are not for taking home."), where
    cards = (await ask(hub, alice, "GET", "users/alice/desktop-cards"))[1]["cards"]
    assert [card["suspended"]["can_download"] for card in cards if card["suspended"]] == [False]


async def test_a_desktop_that_does_not_sleep_has_none(hub: hubs.Hub, alice: hubs.Person) -> None:
    status, told = await ask(hub, alice, "POST", "users/alice/desktops/other/image")

    assert status == 409
    assert told["message"] == "This desktop does not sleep. Suspend it, then download its image."


async def test_what_was_packed_before_the_desktop_went_on_is_not_taken_for_it(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, tmp_path: Path
) -> None:
    await pack(hub, alice, DESKTOP)
    published.suspend(world, tmp_path / "changed.raw", name="19a0000001")
    for old in world.state.session(session_id("alice", "")).saved.glob("19a0000000/saved.json"):
        old.unlink()

    assert (await ask(hub, alice, "GET", DESKTOP))[1]["file"] is None
    assert (await fetch(hub, alice, DESKTOP))[0] == 404


async def test_a_machine_that_one_may_not_start_does_not_exist(
    hub: hubs.Hub, world: published.World, alice: hubs.Person
) -> None:
    allow(world, **{"allow.users": ["bob"]})

    assert (await ask(hub, alice, "POST", MACHINE))[0] == 404
    assert (await ask(hub, alice, "POST", MACHINE.replace("base", "nothing")))[0] == 404


async def test_nobody_else_takes_a_disk_home(hub: hubs.Hub, alice: hubs.Person) -> None:
    """Not staff either, whose role opens all desktops."""
    await pack(hub, alice, DESKTOP)
    admin, bob = await hub.with_token("admin", admin=True), await hub.with_token("bob")
    user = hub.user("alice")
    weak = await hub.person("alice", token=user.new_api_token(scopes=["read:servers!user=alice"]))

    for pattern, handler in ROUTES:
        path = pattern.removeprefix("/api/").replace("([^/]+)", "alice", 1)
        path = path.replace("([^/]*)", "").replace("([^/]+)", "base")
        for method in ("get", "post", "delete", "head"):
            if hasattr(handler, method) and method in {*vars(handler), *vars(handler.__mro__[2])}:
                for person in (admin, bob, weak):
                    assert (await hub.ask(person, method.upper(), path)).status in (403, 404), path
    assert (await fetch(hub, alice, DESKTOP))[0] == 200


async def test_it_is_cancelled_or_given_up(hub: hubs.Hub, world: published.World, alice: hubs.Person) -> None:
    await pack(hub, alice, DESKTOP)
    assert (await ask(hub, alice, "DELETE", DESKTOP))[0] == 204
    assert list(world.state.downloads.glob("*/*")) == []

    assert (await ask(hub, alice, "POST", DESKTOP))[0] == 202
    assert (await ask(hub, alice, "DELETE", DESKTOP))[0] == 204

    assert (await ask(hub, alice, "GET", DESKTOP))[1] == {"job": None, "file": None}


async def test_one_desktop_at_a_time(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, tmp_path: Path
) -> None:
    published.suspend(world, tmp_path / "changed.raw", server="other", name="19a0000001")
    assert (await ask(hub, alice, "POST", DESKTOP))[0] == 202

    status, told = await ask(hub, alice, "POST", "users/alice/desktops/other/image")

    assert (status, told["message"]) == (409, "An image of one of your desktops is being packed already.")
    await ask(hub, alice, "DELETE", DESKTOP)


async def test_the_hub_deletes_what_nobody_took_for_a_day(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pack(hub, alice, DESKTOP)
    monkeypatch.setattr(downloads, "KEEP_S", 0)

    assert (await fetch(hub, alice, DESKTOP))[0] == 404
    await keep_up(hub.spawner("alice")).tend()

    assert list(world.state.downloads.glob("*/*")) == []


# The pages


async def test_on_the_home_page(hub: hubs.Hub, world: published.World, log_in: LogIn, tmp_path: Path) -> None:
    hub.user("alice")
    page = await log_in(hub, "alice")
    await page.get_by_role("button", name="Download the image").click()
    dialog = page.get_by_role("dialog", name="Download the image: Your default desktop")
    await expect(dialog.get_by_role("link", name="Download")).to_be_hidden()
    await dialog.get_by_role("button", name="Pack it").click()
    link = dialog.get_by_role("link", name="Download")
    await expect(link).to_be_visible(timeout=60_000)
    await expect(dialog.get_by_role("status")).to_contain_text("It is there: ")
    assert await find_barriers_in_both_looks(page) == []
    await page.screenshot(path=SCREENSHOTS / "take-home-dialog.png")

    async with page.expect_download() as begun:
        await link.click()
    download = await begun.value
    await download.save_as(tmp_path / "taken.qcow2")

    assert download.suggested_filename == "base.qcow2"
    [there] = world.state.downloads.glob("*/*")
    assert (tmp_path / "taken.qcow2").read_bytes() == there.read_bytes()


async def test_on_the_page_of_the_machines(hub: hubs.Hub, world: published.World, log_in: LogIn) -> None:
    hub.user("admin", admin=True)
    page = await log_in(hub, "admin")
    await page.goto(str(hub.url / "machines"))
    card = page.locator("article[data-machine=base]")
    await card.get_by_role("button", name="Download the image").click()
    dialog = page.get_by_role("dialog", name="Download the image: Base")
    await dialog.get_by_role("button", name="Pack it").click()
    await expect(dialog.get_by_role("link", name="Download")).to_be_visible(timeout=60_000)

    assert await find_barriers_in_both_looks(page) == []


async def test_a_problem_is_said_in_the_dialog(hub: hubs.Hub, world: published.World, log_in: LogIn) -> None:
    hub.user("alice")
    page = await log_in(hub, "alice")
    await page.get_by_role("button", name="Download the image").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_role("button", name="Pack it")).to_be_visible()
    allow(world, download=False)

    await dialog.get_by_role("button", name="Pack it").click()

    await expect(dialog.get_by_role("alert")).to_have_text(
        "Images of 'Base' are not for taking home. The site's staff decide that for each machine."
    )
