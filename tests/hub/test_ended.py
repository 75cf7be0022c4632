"""What the hub learns of the end of desktops, from their sessions and without them."""

import asyncio
import json
import os
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import pytest
from sqlalchemy import insert, select

from qemuspawner import scopes
from qemuspawner.hub.notices.notify import Event
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import (
    Run,
    delete_old_runs,
    end_lost_runs,
    find_last_uses,
    find_run,
    note_seen,
)
from qemuspawner.hub.runs.upkeep import keep_up
from qemuspawner.paths import StatePaths
from qemuspawner.spec import Usage

Start = Callable[..., Awaitable[hubs.Hub]]

END = {
    "state": "ended",
    "message": "The session's lifetime of 1 h is over.",
    "cause": "lifetime",
    "usage": {"span_s": 3600, "cpu_mean": 0.5, "cpu_p95": 1, "cpu_peak": 1.6, "memory_mib": 100},
}


def records_of(hub: hubs.Hub) -> Records:
    return Records(StatePaths(root=hub.state_dir))


def runs_of(hub: hubs.Hub) -> list[Run]:
    with records_of(hub).session() as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


async def ask(hub: hubs.Hub, person: hubs.Person, path: str = "", **kwargs: Any) -> hubs.Answer:
    headers = {} if person.token else {"X-XSRFToken": person.xsrf(hub.url)}
    url = f"{hub.url}api/users/alice/desktops/{path}"
    return await person.request("POST", url, headers=headers, **kwargs)


async def session_of(hub: hubs.Hub, url: Any) -> hubs.Person:
    """Whoever has the token of the stand-in that runs there."""
    person = await hub.person("alice")
    answer = await person.request("GET", url / "environment")
    person.token = json.loads(answer.text)["env"]["JUPYTERHUB_API_TOKEN"]
    return person


# Real sessions


async def wait_for_usage(hub: hubs.Hub, server_name: str = "") -> None:
    spawner = hub.spawner("alice", server_name)
    async with asyncio.timeout(60):
        while (await spawner.ask_session("GET", "api/status"))[1].get("usage") is None:
            await asyncio.sleep(0.05)


async def test_a_session_that_is_stopped_tells_why_and_what_it_has_used(start_hub: Start) -> None:
    hub = await start_hub()
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")
    await wait_for_usage(hub, "desk")

    await hub.stop(alice, server_name="desk")
    await hub.wait_until_stopped("alice", server_name="desk")

    (run,) = runs_of(hub)
    assert (run.outcome, run.end) == ("ended", "The desktop was stopped.")
    assert run.usage is not None
    assert run.usage.memory_by == "host"
    assert run.ended is not None


async def test_a_session_that_falls_asleep_is_told_as_asleep(start_hub: Start) -> None:
    hub = await start_hub(suspend_on=["stop"])
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    (run,) = runs_of(hub)
    assert run.outcome == "asleep"
    assert run.end.startswith("The desktop was stopped.")


async def test_a_session_that_is_killed_leaves_its_times(start_hub: Start) -> None:
    hub = await start_hub(poll_interval=1)
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    os.kill(hub.spawner("alice").pid, signal.SIGKILL)

    await hub.wait_until_stopped("alice")

    (run,) = runs_of(hub)
    assert (run.outcome, run.end, run.usage) == ("lost", "", None)
    assert run.ended is not None
    assert run.started < run.ended


# What the hub believes


async def test_who_is_told_of_an_end_is_told_what_would_do_the_next_time(standin: Start) -> None:
    """In its event; of a desktop that sleeps there is nothing to choose."""
    told: list[Event] = []
    hub = await standin(notify=told.append)
    alice = await hub.log_in("alice")
    for server, state in (("desk", "ended"), ("asleep", "suspended")):
        await hub.start(alice, {"machine": "mini", "cpus": 2, "memory": "256 MiB"}, server_name=server)
        session = await session_of(hub, await hub.wait_until_ready("alice", server_name=server))
        usage = END["usage"] | {"cpu_p95": 0.2, "cpu_peak": 0.5}  # type: ignore[operator]
        await ask(hub, session, f"{server}/ended", json=END | {"state": state, "usage": usage})
    async with asyncio.timeout(10):
        while len(told) < 4:
            await asyncio.sleep(0.05)

    events = {event.kind: event for event in told}
    assert events["ended"].advice is not None
    assert events["ended"].advice.label == "Use 1 CPU and 128 MiB"
    link = "/hub/spawn/alice/desk?opt-machine=mini&opt-cpus=1&opt-memory=128"
    assert events["ended"].advice_url.endswith(link)
    assert (events["asleep"].advice, events["asleep"].advice_url) == (None, "")


async def test_the_session_of_a_desktop_tells_its_end(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    session = await session_of(hub, await hub.wait_until_ready("alice"))

    answer = await ask(hub, session, "/ended", json=END)

    assert answer.status == 204, answer.text
    (run,) = runs_of(hub)
    assert (run.outcome, run.end) == ("ended", END["message"])
    assert run.usage == Usage(span_s=3600, cpu_mean=0.5, cpu_p95=1, cpu_peak=1.6, memory_mib=100)


async def test_the_first_reason_counts(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    session = await session_of(hub, await hub.wait_until_ready("alice"))
    await ask(hub, session, "/ended", json=END)

    assert (await ask(hub, session, "/ended", json=END | {"state": "failed", "message": "x"})).status == 204
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    (run,) = runs_of(hub)
    assert (run.outcome, run.end) == ("ended", END["message"])


async def test_nobody_but_the_session_tells_its_end(start_hub: Start, standin: Start) -> None:
    hub = await standin(
        jupyterhub={"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)}
    )
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.start(alice, {"machine": "mini"}, server_name="desk")
    url = await hub.wait_until_ready("alice")
    other = await session_of(hub, await hub.wait_until_ready("alice", server_name="desk"))
    others = [
        alice,
        await hub.with_token("alice"),
        await hub.log_in("boss", admin=True),
        await hub.with_token("boss", admin=True),
        await hub.with_token("bob"),
        other,
    ]

    statuses = [(await ask(hub, person, "/ended", json=END)).status for person in others]

    assert set(statuses) <= {403, 404}
    former = await session_of(hub, url)
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    assert (await ask(hub, former, "/ended", json=END)).status == 403
    assert [run.ended is None for run in runs_of(hub)] == [False, True, True]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[]",
        '{"state": "running"}',
        '{"state": "ended", "usage": {"span_s": -1}}',
        '{"state": "ended", "usage": {"span_s": 1e400}}',
        '{"state": "ended", "usage": {"span_s": 1' + "0" * 30 + "}}",
        '{"state": "ended", "usage": {"span_s": 1, "cpu_peak": NaN}}',
        '{"state": "ended", "message": 5}',
        '{"state": "ended", "cause": "bored"}',
    ],
)
async def test_what_is_no_end_is_refused(hub: hubs.Hub, body: str) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    session = await session_of(hub, await hub.wait_until_ready("alice"))

    answer = await ask(hub, session, "/ended", data=body.encode())

    assert answer.status == 400, answer.text
    assert [run.ended for run in runs_of(hub)] == [None]


async def test_long_words_of_a_session_are_cut(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    session = await session_of(hub, await hub.wait_until_ready("alice"))

    assert (await ask(hub, session, "/ended", json=END | {"message": "x" * 100_000})).status == 413
    assert (await ask(hub, session, "/ended", json=END | {"message": "x" * 10_000})).status == 204

    assert [len(run.end) for run in runs_of(hub)] == [1000]


# The records themselves


@pytest.fixture
def records(state_dir: Any) -> Records:
    return Records(StatePaths(root=state_dir))


def add(records: Records, **values: Any) -> None:
    now = time.time()
    run = {
        **{"session_id": "a" * 20, "user": "alice", "server": "", "machine": "mini", "machine_name": "Mini"},
        **{"cpus": 1, "memory_mib": 128, "node": "host", "started": now - 3600, "seen": now},
    }
    with records.session() as session:
        session.execute(insert(Run).values(run | values))


def all_runs(records: Records) -> list[Run]:
    with records.session() as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


def test_runs_that_nobody_knows_of_ended_when_they_were_seen_last(records: Records) -> None:
    now = time.time()
    add(records, seen=now - 1000)  # still runs
    add(records, seen=now - 1000)  # is lost
    add(records, seen=now - 10)  # may be just starting
    add(records, seen=now - 1000, ended=now - 900, outcome="ended")

    assert end_lost_runs(records, {1}) == 1

    assert [(run.outcome, run.ended) for run in all_runs(records)] == [
        ("", None),
        ("lost", pytest.approx(now - 1000)),
        ("", None),
        ("ended", pytest.approx(now - 900)),
    ]


def test_all_that_runs_is_noted_at_once(records: Records) -> None:
    now = time.time()
    add(records, seen=now - 1000)
    add(records, seen=now - 1000)
    add(records, seen=now - 1000)

    note_seen(records, {1: now - 20, 3: now - 10, 99: now})  # the last one was deleted

    assert [run.seen for run in all_runs(records)] == [
        pytest.approx(now - 20),
        pytest.approx(now - 1000),
        pytest.approx(now - 10),
    ]


async def test_a_desktop_that_was_looked_at_is_noted_within_the_minute(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {})
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    before = find_run(spawner.records, spawner.run_id)

    await spawner.poll()
    looked_at = time.time()
    await keep_up(spawner).tend()
    after = find_run(spawner.records, spawner.run_id)

    assert before is not None
    assert after is not None
    assert before.seen < after.seen <= looked_at


def test_runs_of_long_ago_are_deleted(records: Records) -> None:
    now = time.time()
    add(records, ended=now - 86400)
    add(records, ended=now - 3600)
    add(records, started=now - 86400)  # it still runs

    assert delete_old_runs(records, keep_s=7200) == 1

    assert [run.id for run in all_runs(records)] == [2, 3]


def test_the_newest_run_of_each_server_with_known_use_counts(records: Records) -> None:
    now = time.time()
    add(records, ended=now, span_s=10)
    add(records, ended=now, span_s=20)
    add(records, ended=now)  # killed
    add(records, ended=now, span_s=30, server="desk")
    add(records, ended=now, span_s=40, user="bob")
    add(records, span_s=50)  # it runs

    found = find_last_uses(records, "alice")

    assert {server: run.span_s for server, run in found.items()} == {"": 20, "desk": 30}
    assert find_last_uses(records, "alice", server="desk").keys() == {"desk"}


def test_records_of_an_older_version_are_taken_on(records: Records, state_dir: Any) -> None:
    add(records, end="The reason.")
    file = StatePaths(root=state_dir).records
    with sqlite3.connect(file) as connection:
        for column in ("outcome", "span_s", "memory_by"):
            connection.execute(f"ALTER TABLE runs DROP COLUMN {column}")
    connection.close()

    newer = Records(StatePaths(root=state_dir))
    add(newer, outcome="failed", span_s=5)

    assert [(run.end, run.outcome, run.span_s) for run in all_runs(newer)] == [
        ("The reason.", "", None),
        ("", "failed", 5),
    ]
