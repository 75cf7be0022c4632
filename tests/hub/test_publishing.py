"""A user asks that a sleeping desktop becomes a machine; staff look at what it changed, and answer."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import live
import published
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import expect

from qemuspawner.hub.catalogue import machines_api
from qemuspawner.hub.publishing import api
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import StatePaths

StartHub = Callable[..., Awaitable[hubs.Hub]]
# For people to look at; not compared.
SCREENSHOTS = live.PROJECT / "screenshots"
NEW = {"id": "pymca", "name": "PyMca", "audience": "me", "reason": "for the course"}
HOSTILE = "<img src=x onerror=alert(1)> --for-all"


@pytest.fixture
def world(hub: hubs.Hub, tmp_path: Path) -> published.World:
    """Alice's desktop sleeps; she is in a group."""
    world = published.World(state=StatePaths(root=hub.state_dir), machines=hub.machines)
    published.add_base(world, tmp_path)
    published.suspend(world, published.change_disk(world, tmp_path / "changed.raw"))
    hub.user("alice", groups=("beamline",))
    return world


@pytest.fixture
async def alice(hub: hubs.Hub, world: published.World) -> hubs.Person:
    return await hub.with_token("alice")


@pytest.fixture
async def admin(hub: hubs.Hub) -> hubs.Person:
    return await hub.with_token("admin", admin=True)


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: Any = None) -> Any:
    """Status and answer; {} where that has no body."""
    answer = await hub.ask(person, method, path, json=body)
    return answer.status, json.loads(answer.text) if answer.text else {}


async def wish(hub: hubs.Hub, person: hubs.Person, server: str = "", **changes: Any) -> Any:
    return await ask(hub, person, "POST", f"users/alice/desktops/{server}/publish", {**NEW, **changes})


async def wait_for(
    hub: hubs.Hub, admin: hubs.Person, number: int, condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """What staff see of a wish once that is true."""
    async with asyncio.timeout(90):
        while True:
            _, told = await ask(hub, admin, "GET", "publications")
            found = next(one for one in told["wishes"] if one["id"] == number)
            if condition(found):
                return dict(found)
            await asyncio.sleep(0.1)


async def answer(hub: hubs.Hub, admin: hubs.Person, number: int, said: str, word: str = "") -> int:
    status, _ = await ask(hub, admin, "POST", f"publications/{number}", {"answer": said, "word": word})
    return int(status)


def load(world: published.World, machine_id: str = "pymca") -> Machine:
    return load_machine(world.state.machines / machine_id, world.state.images)


async def test_a_wish_is_looked_at_and_granted(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, admin: hubs.Person
) -> None:
    status, asked = await wish(hub, alice)
    assert (status, asked["state"], asked["reason"]) == (201, "asked", "for the course")

    seen = await wait_for(hub, admin, asked["id"], lambda one: one["changes"])
    packages = {one["name"]: one["after"] for one in seen["changes"]["packages"]}
    assert packages == {"bash": "5.3", "pymca": "5.8.1", "vim": ""}
    assert not (world.state.machines / "pymca").exists()

    assert await answer(hub, admin, asked["id"], "yes", "Well done.") == 202
    await wait_for(hub, admin, asked["id"], lambda one: one["state"] == "published")

    machine = load(world)
    assert (machine.name, machine.owner, machine.hidden) == ("PyMca", "alice", False)
    assert machine.allow.users == ("alice",)
    _, told = await ask(hub, alice, "GET", "users/alice/publications")
    mine = told["wishes"][0]
    assert (mine["state"], mine["by"], mine["word"]) == ("published", "admin", "Well done.")
    _, versions = await ask(hub, admin, "GET", "machines/pymca")
    assert [(one["by"], one["what"]) for one in versions["versions"]] == [
        ("admin", "version 1, of a desktop of alice")
    ]


@pytest.mark.parametrize(
    ("audience", "users", "groups"),
    [
        ({"audience": "group", "group": "beamline"}, (), ("beamline",)),
        ({"audience": "all", "name": HOSTILE}, (), ()),
        ({"audience": "me", "name": "--for-all"}, ("alice",), ()),
    ],
)
async def test_for_whom(
    hub: hubs.Hub,
    world: published.World,
    alice: hubs.Person,
    admin: hubs.Person,
    audience: dict[str, str],
    users: tuple[str, ...],
    groups: tuple[str, ...],
) -> None:
    _, asked = await wish(hub, alice, **audience)

    assert await answer(hub, admin, asked["id"], "yes") == 202
    await wait_for(hub, admin, asked["id"], lambda one: one["state"] == "published")

    machine = load(world)
    assert (machine.allow.users, machine.allow.groups) == (users, groups)
    assert machine.name == audience.get("name", "PyMca")


async def test_a_no_makes_no_machine_and_is_final(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, admin: hubs.Person
) -> None:
    _, asked = await wish(hub, alice)

    assert await answer(hub, admin, asked["id"], "no", "It has a licence.") == 200
    assert await answer(hub, admin, asked["id"], "yes") == 409

    _, told = await ask(hub, alice, "GET", "users/alice/publications")
    assert [(one["state"], one["word"]) for one in told["wishes"]] == [("refused", "It has a licence.")]
    assert not (world.state.machines / "pymca").exists()


async def test_what_has_gone_on_since_is_not_published(
    hub: hubs.Hub, world: published.World, alice: hubs.Person, admin: hubs.Person, tmp_path: Path
) -> None:
    """A yes is for what was looked at."""
    _, asked = await wish(hub, alice)
    await wait_for(hub, admin, asked["id"], lambda one: one["changes"])
    published.suspend(world, tmp_path / "changed.raw", name="19a0000001")

    assert await answer(hub, admin, asked["id"], "yes") == 202

    seen = await wait_for(hub, admin, asked["id"], lambda one: (one["job"] or {}).get("state") == "failed")
    assert "has gone on since that was asked for" in seen["job"]["message"]
    assert seen["state"] == "asked"
    assert not (world.state.machines / "pymca").exists()


async def test_one_wish_for_a_desktop_which_can_be_taken_back(hub: hubs.Hub, alice: hubs.Person) -> None:
    _, asked = await wish(hub, alice)

    assert (await wish(hub, alice, id="other"))[0] == 409
    assert (await ask(hub, alice, "DELETE", f"users/alice/publications/{asked['id']}"))[0] == 204
    assert (await ask(hub, alice, "DELETE", f"users/alice/publications/{asked['id']}"))[0] == 404
    assert (await wish(hub, alice, id="other"))[0] == 201


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"id": "Not An Id"}, 400),
        ({"id": "base"}, 409),
        ({"name": ""}, 400),
        ({"name": "two\nlines"}, 400),
        ({"name": "x" * 61}, 400),
        ({"reason": "x" * 1001}, 400),
        ({"audience": "group", "group": "others"}, 400),
        ({"audience": "all", "group": "beamline"}, 400),
        ({"audience": "nobody"}, 400),
        ({"hidden": False}, 400),
    ],
)
async def test_bad_wishes(hub: hubs.Hub, alice: hubs.Person, changes: dict[str, Any], status: int) -> None:
    assert (await wish(hub, alice, **changes))[0] == status
    assert (await ask(hub, alice, "GET", "users/alice/publications"))[1] == {"wishes": []}


async def test_only_what_sleeps(hub: hubs.Hub, alice: hubs.Person) -> None:
    status, told = await wish(hub, alice, server="other")

    assert (status, told["message"]) == (409, "This desktop does not sleep. Suspend it, then publish it.")


# Who may


async def test_nobody_else_gives_a_desktop_away(
    hub: hubs.Hub, alice: hubs.Person, admin: hubs.Person
) -> None:
    """Not staff either, whose role opens all desktops."""
    bob = await hub.with_token("bob")
    _, asked = await wish(hub, alice)
    path = f"users/alice/publications/{asked['id']}"

    assert (await wish(hub, admin))[0] == 403
    assert (await wish(hub, bob))[0] in (403, 404)
    assert (await ask(hub, admin, "DELETE", path))[0] == 403
    assert (await ask(hub, bob, "DELETE", path))[0] in (403, 404)
    assert (await ask(hub, bob, "DELETE", path.replace("alice", "bob")))[0] == 404
    assert (await ask(hub, bob, "GET", "users/alice/publications"))[0] in (403, 404)


def staff_routes() -> list[tuple[str, str]]:
    return [
        (name.upper(), pattern.removeprefix("/api/").replace("([0-9]{1,9})", "1"))
        for pattern, handler in api.ROUTES
        if pattern.startswith("/api/publications")
        for name in ("get", "post", "put")
        if name in vars(handler)
    ]


@pytest.mark.parametrize(("method", "path"), staff_routes())
async def test_nobody_but_administrators_answers(
    hub: hubs.Hub, alice: hubs.Person, method: str, path: str
) -> None:
    await wish(hub, alice)
    admin = hub.user("admin", admin=True)
    one = await hub.person("admin", token=admin.new_api_token(scopes=["admin:servers"]), admin=True)
    both = await hub.person("admin", token=admin.new_api_token(scopes=list(machines_api.SCOPES)), admin=True)
    body = {"answer": "no"}

    assert [(await ask(hub, person, method, path, body))[0] for person in (alice, one)] == [403, 403]
    assert (await ask(hub, both, method, path, body))[0] in (200, 202, 409)


# The pages


async def test_asked_for_on_the_home_page_and_granted_on_that_of_the_machines(
    hub: hubs.Hub, world: published.World, log_in: LogIn
) -> None:
    hub.user("alice", groups=("beamline", HOSTILE))
    hub.user("admin", admin=True)
    home = await log_in(hub, "alice")
    await home.get_by_role("button", name="Publish as a machine").click()
    dialog = home.get_by_role("dialog", name="Publish as a machine: Your default desktop")
    await dialog.get_by_label("Name of the machine").fill(HOSTILE)
    await dialog.get_by_label("Id of the machine").fill("base")
    await dialog.get_by_label("Who may start it").select_option("the group beamline")
    await dialog.get_by_label("What it is for").fill(HOSTILE)
    await dialog.get_by_role("button", name="Ask for it").click()
    await expect(dialog).to_contain_text("There is a machine 'base' already. Choose another id.")
    assert await find_barriers_in_both_looks(home) == []
    await home.screenshot(path=SCREENSHOTS / "publish-dialog.png")
    await dialog.get_by_label("Id of the machine").fill("pymca")
    await dialog.get_by_role("button", name="Ask for it").click()
    mine = home.get_by_role("region", name="Machines that you asked for")
    await expect(mine).to_contain_text("Staff look at it.")

    staff = await log_in(hub, "admin")
    await staff.goto(str(hub.url / "machines"))
    wishes = staff.get_by_role("region", name="To be published")
    await expect(wishes).to_contain_text("For the group beamline.")
    await wishes.get_by_text("3 packages").click(timeout=60_000)
    await expect(wishes).to_contain_text("pymca 5.8.1 installed")
    await wishes.get_by_text("/etc: 0 new, 1 changed, 1 removed").click()
    await expect(wishes.get_by_text("~ /etc/motd")).to_be_visible()
    assert await staff.locator("img[src=x]").count() == 0
    assert await find_barriers_in_both_looks(staff) == []
    await staff.screenshot(path=SCREENSHOTS / "publications.png", full_page=True)
    await wishes.get_by_label("A word to its user").fill("Well done.")
    await wishes.get_by_role("button", name="Publish").click()
    await expect(wishes).to_be_hidden(timeout=60_000)
    await staff.reload()
    await expect(staff.locator("article[data-machine=pymca]")).to_contain_text(
        "Made from a desktop of alice."
    )

    await home.reload()
    await expect(mine).to_contain_text("It is there.")
    await expect(mine).to_contain_text("admin: Well done.")
    assert load(world).allow.groups == ("beamline",)


async def test_a_wish_is_refused_and_another_taken_back_on_the_pages(
    hub: hubs.Hub, alice: hubs.Person, log_in: LogIn
) -> None:
    hub.user("admin", admin=True)
    await wish(hub, alice)
    staff = await log_in(hub, "admin")
    await staff.goto(str(hub.url / "machines"))
    wishes = staff.get_by_role("region", name="To be published")
    await wishes.get_by_role("button", name="Refuse: PyMca").click()
    await expect(wishes).to_be_hidden()

    await wish(hub, alice, id="other", name="Other")
    home = await log_in(hub, "alice")
    mine = home.get_by_role("region", name="Machines that you asked for")
    await expect(mine).to_contain_text("Staff said no.")
    await mine.get_by_role("button", name="Take it back: Other").click()
    await expect(mine).not_to_contain_text("Other")
