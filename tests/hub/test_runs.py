"""The record of desktops that ran, as it is after a real hub has started and stopped them."""

import stat
from collections.abc import Awaitable, Callable

import hubs
import pytest
from sqlalchemy import select

from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run, usual_start_s
from qemuspawner.paths import StatePaths

Start = Callable[..., Awaitable[hubs.Hub]]


def runs_of(hub: hubs.Hub) -> list[Run]:
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


async def test_a_desktop_that_ran_is_remembered(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini", "cpus": 2, "memory": "256 MiB"}, server_name="desk")
    await hub.wait_until_ready("alice", server_name="desk")
    (running,) = runs_of(hub)

    await hub.stop(alice, server_name="desk")
    await hub.wait_until_stopped("alice", server_name="desk")

    (run,) = runs_of(hub)
    assert (run.user, run.server, run.machine, run.cpus, run.memory_mib) == (
        *("alice", "desk", "mini"),
        *(2, 256),
    )
    assert running.ended is None
    assert running.ready is not None
    assert run.ended is not None
    assert run.started <= running.ready <= run.ended


async def test_a_start_that_failed_is_remembered_with_its_reason(standin: Start) -> None:
    hub = await standin("fail")
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_stopped("alice")

    (run,) = runs_of(hub)

    assert run.ready is None
    assert run.ended is not None
    assert "The host's disk is <full>." in run.end


async def test_a_desktop_starts_also_where_it_cannot_be_written_down(hub: hubs.Hub) -> None:
    # A folder in the file's place.
    (hub.state_dir / "hub" / "records.sqlite").mkdir(parents=True)
    alice = await hub.log_in("alice")

    await hub.start(alice, {"machine": "mini"})

    await hub.wait_until_ready("alice")


async def test_the_records_are_the_hubs_accounts_alone(hub: hubs.Hub) -> None:
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")

    file = hub.state_dir / "hub" / "records.sqlite"

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_what_is_usual_is_known_after_a_few_starts(hub: hubs.Hub) -> None:
    """And told while a desktop starts, with its real steps."""
    records = Records(StatePaths(root=hub.state_dir))
    alice = await hub.log_in("alice")
    usual = []
    for _ in range(3):
        usual.append(usual_start_s(records, "mini", "cold"))
        await hub.start(alice, {"machine": "mini"})
        await hub.wait_until_ready("alice")
        await hub.stop(alice)
        await hub.wait_until_stopped("alice")

    await hub.start(alice, {"machine": "mini"})
    events = [event async for event in hub.spawner("alice").progress()]

    assert usual == [None, None, None]
    [told] = [event["usual_s"] for event in events if "usual_s" in event]
    assert told == pytest.approx(usual_start_s(records, "mini", "cold"), abs=2)


async def test_the_card_of_a_start_that_failed_says_why(standin: Start) -> None:
    hub = await standin("fail")
    alice = await hub.log_in("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_stopped("alice")

    [card] = (await hub.spawner("alice").desktop_cards())["cards"]

    assert (card["state"], card["machine"]) == ("off", "Mini")
    assert card["end"]["failed"] is True
    assert "The host's disk is <full>." in card["end"]["why"]
