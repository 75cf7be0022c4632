"""What a site's hook is told of desktops, and that nothing waits for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from smtp_server import smtp_server
from traitlets import TraitError

from qemuspawner.hub.notices.notify import Event, find_email
from qemuspawner.hub.runs.upkeep import keep_up

Start = Callable[..., Awaitable[hubs.Hub]]

told: "asyncio.Queue[Event]"


@pytest.fixture(autouse=True)
def _queue() -> None:
    global told
    told = asyncio.Queue()


async def hook(event: Event) -> None:
    told.put_nowait(event)


async def next_event() -> Event:
    async with asyncio.timeout(30):
        return await told.get()


async def run(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")
    await hub.stop(alice, server_name="desk")
    await hub.wait_until_stopped("alice", server_name="desk")


async def test_the_start_and_the_end_of_a_desktop_are_told(start_hub: Start) -> None:
    hub = await start_hub(notify=hook)
    await run(hub)

    started, ended = await next_event(), await next_event()

    assert (started.kind, started.user, started.server, started.machine) == (
        "started",
        "alice",
        "desk",
        "Mini",
    )
    assert started.url.endswith("/user/alice/desk/")
    assert started.started <= started.at <= time.time()
    assert (ended.kind, ended.reason, ended.asked) == ("ended", "The desktop was stopped.", True)
    assert told.empty()


async def test_a_desktop_that_falls_asleep_is_told_as_asleep(start_hub: Start) -> None:
    hub = await start_hub(notify=hook, suspend_on=["stop"])
    await run(hub)

    assert [(await next_event()).kind for _ in range(2)] == ["started", "asleep"]


async def test_a_start_that_failed_is_told_with_its_reason(standin: Start) -> None:
    hub = await standin("fail", notify=hook)
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_stopped("alice")

    failed = await next_event()

    assert (failed.kind, failed.asked) == ("failed", False)
    assert "The host's disk is <full>." in failed.reason


async def test_a_session_that_says_nothing_has_ended_all_the_same(standin: Start) -> None:
    hub = await standin(notify=hook)
    await run(hub)

    await next_event()
    ended = await next_event()

    assert (ended.kind, ended.asked) == ("ended", False)
    assert ended.reason == "Why it has ended, the hub was not told."


async def test_a_function_that_is_not_async_is_called_in_a_thread(standin: Start) -> None:
    loop = asyncio.get_running_loop()

    def slow(event: Event) -> None:
        time.sleep(1)
        loop.call_soon_threadsafe(told.put_nowait, event)

    hub = await standin(notify=slow)
    began = time.monotonic()
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    # The hub goes on meanwhile.
    assert told.empty()
    assert (await alice.request("GET", hub.url / "home")).status == 200

    assert (await next_event()).kind == "started"
    assert time.monotonic() - began >= 1


async def test_a_hook_that_fails_harms_nobody(standin: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(event: Event) -> None:
        told.put_nowait(event)
        raise RuntimeError("broken")

    hub = await standin(notify=broken)

    await run(hub)

    assert [(await next_event()).kind for _ in range(2)] == ["started", "ended"]


def test_a_hook_that_cannot_be_imported_is_refused() -> None:
    from qemuspawner.hub.spawner import QemuSpawner

    with pytest.raises(TraitError, match="cannot be imported"):
        QemuSpawner(notify="qemuspawner.hub.no_such.Mailer")


def desktop(left_s: int, *, extension: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"user": "alice", "server": "", "left_s": left_s, "sleeps": True, "extension": extension}


async def test_an_end_is_told_once_and_anew_after_an_extension(standin: Start) -> None:
    hub = await standin(notify=hook, notify_before="15 min")
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await next_event()
    spawner = hub.spawner("alice")

    for left_s in (901, 900, 840, 4000, 850):
        spawner.note_time_left(desktop(left_s))

    first, second = await next_event(), await next_event()
    assert [(event.kind, event.left_s, event.sleeps) for event in (first, second)] == [
        ("ends-soon", 900, True),
        ("ends-soon", 850, True),
    ]
    assert told.empty()


async def test_a_request_for_more_time_is_told_once(standin: Start) -> None:
    hub = await standin(notify=hook)
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await next_event()
    asked = {"by": "bob", "reason": "It computes.", "seconds": 7200, "answer": ""}

    for extension in (None, asked, asked, asked | {"answer": "refused"}, asked):
        hub.spawner("alice").note_time_left(desktop(4000, extension=extension))

    first, second = await next_event(), await next_event()
    assert (first.kind, first.by, first.asked_s, first.reason) == (
        "more-time-asked",
        "bob",
        7200,
        "It computes.",
    )
    assert second.kind == "more-time-asked"
    assert told.empty()


async def test_the_hub_looks_at_running_desktops(standin: Start) -> None:
    """The stand-in's lifetime is an hour."""
    hub = await standin(notify=hook, notify_before="2 h")
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    assert (await next_event()).kind == "started"

    await keep_up(hub.spawner("alice")).tend()
    await keep_up(hub.spawner("alice")).tend()

    soon = await next_event()
    assert soon.kind == "ends-soon"
    assert 3500 < soon.left_s <= 3600
    assert told.empty()


async def test_the_shipped_mailer_sends_what_the_hub_tells(
    hub_app: Any, state_dir: Path, machines_dir: Path
) -> None:
    async with smtp_server() as server:
        config = hubs.hub_config(state_dir, machines_dir, notify="qemuspawner.hub.notices.mail.Mailer")
        config.Mailer.update(
            {
                **{"port": server.port, "security": "none", "sender": "hub@example.org", "when_asked": True},
                **{"address": "{username}@example.org", "kinds": ["started", "ended"]},
            }
        )
        async with hubs.running_hub(hub_app, config, state=state_dir, machines=machines_dir) as hub:
            await run(hub)
            async with asyncio.timeout(30):
                mails = [await server.mails.get() for _ in range(2)]

    assert {taken.message["Subject"] for taken in mails} == {
        "Your desktop “desk” is ready",
        "Your desktop “desk” has ended",
    }
    assert all(taken.to == ["alice@example.org"] for taken in mails)


async def test_a_user_says_no_to_mails(standin: Start) -> None:
    hub = await standin(notify=hook)
    alice = await hub.log_in("alice")
    url = hub.url / "api/users/alice/mails"
    headers = {"X-XSRFToken": alice.xsrf(hub.url)}

    answer = await alice.request("PUT", url, headers=headers, json={"wanted": False})
    assert answer.status == 204, answer.text
    assert '"wanted": false' in (await alice.request("GET", url, headers=headers)).text
    await run(hub)

    assert not (await next_event()).wants_mail
    for body in ({}, {"wanted": "yes"}, [], "x"):
        assert (await alice.request("PUT", url, headers=headers, json=body)).status == 400
    bob = await hub.log_in("bob")
    forbidden = await bob.request(
        "PUT", url, headers={"X-XSRFToken": bob.xsrf(hub.url)}, json={"wanted": True}
    )
    assert forbidden.status in (403, 404)


@pytest.mark.parametrize(
    ("auth_state", "email"),
    [
        (None, ""),
        ({"email": "a@example.org"}, "a@example.org"),
        ({"oauth_user": {"email": "b@example.org"}}, "b@example.org"),
        ({"email": ["x"], "oauth_user": "y"}, ""),
    ],
)
def test_an_address_is_found_in_what_the_authenticator_keeps(auth_state: object, email: str) -> None:
    assert find_email(auth_state) == email
