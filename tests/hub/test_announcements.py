"""What staff announce: shown on the hub's pages, and acknowledged before a start where that is asked for."""

import json
from typing import Any

import hubs
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn
from playwright.async_api import Page, expect

HOSTILE = "<img src=x onerror=document.title='ran'>\"'&"


async def ask(
    hub: hubs.Hub, person: hubs.Person, method: str, path: str = "", body: Any = None
) -> tuple[int, Any]:
    answer = await person.request(method, hub.url / f"api/announcements{path}", json=body)
    return answer.status, json.loads(answer.text or "null")


async def announce(hub: hubs.Hub, text: str, **more: Any) -> int:
    admin = await hub.with_token("root", admin=True)
    status, answer = await ask(hub, admin, "POST", "", {"text": text, **more})
    assert status == 201, answer
    return int(answer["id"])


async def home(hub: hubs.Hub, person: hubs.Person) -> str:
    return (await person.request("GET", hub.url / "home")).text


async def test_everybody_reads_it_as_text_until_it_is_deleted(hub: hubs.Hub) -> None:
    number = await announce(hub, HOSTILE, level="warning")
    alice, admin = await hub.log_in("alice"), await hub.with_token("root", admin=True)

    shown = await home(hub, alice)
    form = (await hub.get_form(alice)).text
    assert (await ask(hub, admin, "DELETE", f"/{number}"))[0] == 204
    after = await home(hub, alice)

    assert "alert-warning" in shown
    assert "&lt;img src=x onerror=" in shown
    assert "&lt;img src=x onerror=" in form
    assert "<img src=x" not in shown
    assert "data-announcement=" not in after
    assert (await ask(hub, admin, "DELETE", f"/{number}"))[0] == 404


async def test_what_is_of_later_or_over_is_not_shown_but_listed(hub: hubs.Hub) -> None:
    await announce(hub, "Of later", begins_in=3600, lasts=60)
    await announce(hub, "Is over", lasts=0)
    alice, admin = await hub.log_in("alice"), await hub.with_token("root", admin=True)

    shown = await home(hub, alice)
    _, listed = await ask(hub, admin, "GET")

    assert "Of later" not in shown
    assert "Is over" not in shown
    assert [one["text"] for one in listed["announcements"]] == ["Is over", "Of later"]
    assert 3500 < listed["announcements"][1]["begins_in_s"] <= 3600


async def test_nothing_starts_before_it_is_acknowledged_by_rest_either(hub: hubs.Hub) -> None:
    number = await announce(hub, "The terms are new.", must_acknowledge=True)
    alice, admin = await hub.with_token("alice"), await hub.with_token("root", admin=True)

    refused = await hub.start(alice, {"machine": "mini"})
    assert refused.status == 403
    assert json.loads(refused.text)["message"] == (
        "The administrators ask everybody to read this first: The terms are new. "
        "Acknowledge it on the hub's home page, then start again."
    )

    assert (await ask(hub, alice, "POST", f"/{number}/acknowledgement"))[0] == 204
    assert (await hub.start(alice, {"machine": "mini"})).status in (201, 202)
    _, listed = await ask(hub, admin, "GET")
    assert [one["acknowledged"] for one in listed["announcements"]] == [1]


async def test_administrators_start_for_others_what_those_have_not_read(hub: hubs.Hub) -> None:
    await announce(hub, "The terms are new.", must_acknowledge=True)
    hub.user("alice")
    admin = await hub.with_token("root", admin=True)

    assert (await hub.start(admin, {"machine": "mini"}, owner="alice")).status in (201, 202)


async def test_only_staff_announce(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/1")):
        assert (await ask(hub, alice, method, path, {"text": "x"}))[0] == 403
    nobody = await hub.person("nobody")
    assert (await ask(hub, nobody, "POST", "/1/acknowledgement"))[0] == 403
    assert (await ask(hub, alice, "POST", "/1/acknowledgement"))[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"text": " "},
        {"text": "x" * 1001},
        {"text": "x", "level": "danger"},
        {"text": "x", "lasts": -1},
        {"text": "x", "lasts": 10**9},
        {"text": "x", "begins_in": "now"},
        {"text": "x", "begins_in": True},
        {"text": "x", "must_acknowledge": "yes"},
    ],
)
async def test_an_announcement_that_is_none_is_refused(hub: hubs.Hub, body: Any) -> None:
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "", body)

    assert status == 400
    assert answer["message"].startswith("'")


async def test_there_are_never_more_than_twenty(hub: hubs.Hub) -> None:
    for number in range(20):
        await announce(hub, f"Number {number}")
    admin = await hub.with_token("root", admin=True)

    status, answer = await ask(hub, admin, "POST", "", {"text": "One more"})

    assert status == 409
    assert answer["message"] == "There are 20 announcements already. Delete some of them."


# In a browser


@pytest.fixture
async def page(hub: hubs.Hub, log_in: LogIn) -> Page:
    """The home page of alice, who has something to acknowledge."""
    await announce(hub, HOSTILE, must_acknowledge=True, level="warning")
    hub.user("alice")
    return await log_in(hub, "alice")


async def test_several_keep_nobody_out(hub: hubs.Hub, page: Page) -> None:
    await announce(hub, "The beam is back.")
    await page.reload()
    await expect(page.locator("[data-announcement]")).to_have_count(2)

    assert await find_barriers_in_both_looks(page) == []


async def test_it_is_acknowledged_by_the_keyboard_alone_and_stays_so(hub: hubs.Hub, page: Page) -> None:
    announcement = page.get_by_role("group", name="Announcement")
    await expect(announcement).to_contain_text(HOSTILE)

    await announcement.get_by_role("button", name="I have read this").focus()
    await page.keyboard.press("Enter")

    await expect(announcement).to_have_count(0)
    await page.goto(str(hub.url / "spawn"))
    await expect(page.get_by_role("button", name="Start")).to_be_visible()
    await expect(announcement).to_have_count(0)
    assert await page.title() != "ran"
