"""Statistics: what the database counts of runs, for whom, and in which form."""

import csv
import io
import json
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import hubs
import pytest
from sqlalchemy import insert

from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.hub.runs.statistics import TABLES, Span, SpanError, count_use, last_days
from qemuspawner.hub.runs.statistics_pages import find_top, render_csv
from qemuspawner.paths import StatePaths

HOUR = 3600
DAY = 86400
# A Wednesday.
FIRST = date(2026, 7, 1)
BEGIN = datetime(2026, 7, 1, tzinfo=UTC).timestamp()
HOSTILE = "=cmd|' /C calc'!A0<img src=x onerror=document.title='ran'>\"'&🦆"

Add = Callable[..., None]


@pytest.fixture
def records(state_dir: Path) -> Records:
    return Records(StatePaths(root=state_dir))


@pytest.fixture
def add(records: Records) -> Add:
    def add(begin_h: float, end_h: float | None, **values: Any) -> None:
        """A run from so many hours after BEGIN on, until then or, with None, still."""
        started = BEGIN + begin_h * HOUR
        ended = None if end_h is None else BEGIN + end_h * HOUR
        run = {
            **{"session_id": "a" * 20, "user": "alice", "server": "", "machine": "mini", "cpus": 2},
            **{"machine_name": "Mini", "memory_mib": 1024, "node": "host", "way": "cold", "outcome": "ended"},
            **{"started": started, "ready": started + 10, "seen": ended or started, "ended": ended},
        }
        with records.session() as session:
            session.execute(insert(Run).values(run | values))

    return add


def span(steps: int = 3, *, step: Any = "day") -> Span:
    return Span(first=FIRST, step=step, steps=steps)


def column(found: dict[str, Any], name: str, table: str = "steps") -> list[Any]:
    return [row[name] for row in found[table]]


def test_nothing_ran_is_an_answer_too(records: Records) -> None:
    found = count_use(records, span())

    assert column(found, "begin") == ["2026-07-01", "2026-07-02", "2026-07-03"]
    assert set(found["total"].values()) == {0}
    assert all(row == {**row, "starts": 0, "hours": 0, "peak_runs": 0} for row in found["steps"])


def test_hours_are_those_of_each_day(records: Records, add: Add) -> None:
    """From 18 o'clock to 6 two days later, on 2 CPUs."""
    add(18, 54)

    found = count_use(records, span())

    assert column(found, "hours") == [6, 24, 6]
    assert column(found, "cpu_hours") == [12, 48, 12]
    assert column(found, "starts") == [1, 0, 0]
    assert column(found, "peak_runs") == [1, 1, 1]
    assert found["total"] == {
        **{"users": 1, "machines": 1, "runs": 1, "hours": 36, "cpu_hours": 72, "gpu_hours": 0}
    }


def test_only_the_part_within_the_span_counts(records: Records, add: Add) -> None:
    add(-10, 2)
    add(70, 100)
    add(-10, -1)
    add(80, 90)

    found = count_use(records, span())

    assert column(found, "hours") == [2, 0, 2]
    assert column(found, "starts") == [0, 0, 1]
    assert column(found, "peak_runs") == [1, 0, 1]
    assert column(found, "hours", "users") == [4]


def test_a_run_that_goes_on_counts_until_it_was_seen(records: Records, add: Add) -> None:
    add(1, None, seen=BEGIN + 5 * HOUR, outcome="")

    found = count_use(records, span())

    assert column(found, "hours") == [4, 0, 0]
    assert found["ends"] == []


def test_peaks_are_of_what_ran_at_the_same_time(records: Records, add: Add) -> None:
    add(1, 5, cpus=8, memory_mib=4096)
    add(2, 3)
    add(3, 4, user="bob")  # begins as the one before ends
    add(23, 25, cpus=1)
    add(30, 31, cpus=1)

    found = count_use(records, span())

    assert column(found, "peak_runs") == [2, 1, 0]
    assert column(found, "peak_cpus") == [10, 1, 0]
    assert column(found, "peak_memory_mib") == [5120, 1024, 0]


def test_many_that_begin_and_end_at_the_same_moment_are_counted_right(records: Records, add: Add) -> None:
    for number in range(50):
        add(6, 7, cpus=1 + number % 8)
        add(7, 8, cpus=1 + number % 8)

    found = count_use(records, span(1))

    assert column(found, "peak_runs") == [50]
    assert column(found, "hours") == [100]
    assert column(found, "cpu_hours") == [pytest.approx(2 * sum(1 + n % 8 for n in range(50)))]


def test_gpus_are_counted_like_cpus(records: Records, add: Add) -> None:
    add(1, 3, gpus=2)
    add(2, 4, gpus=1)
    add(1, 2)

    found = count_use(records, span(1))

    assert column(found, "gpu_hours") == [6]
    assert column(found, "gpu_hours", "machines") == [6]
    assert column(found, "peak_gpus") == [3]


def test_users_and_machines_are_listed_by_their_hours(records: Records, add: Add) -> None:
    add(0, 1, user="bob", machine="big", machine_name="Big")
    add(0, 5)
    add(6, 7, user="bob")

    found = count_use(records, span(1))

    assert [(row["name"], row["users"], row["runs"], row["hours"]) for row in found["machines"]] == [
        ("Mini", 2, 2, 6),
        ("Big", 1, 1, 1),
    ]
    assert [(row["user"], row["runs"], row["hours"]) for row in found["users"]] == [
        ("alice", 1, 5),
        ("bob", 2, 2),
    ]
    assert column(found, "users") == [2]


@pytest.mark.parametrize(("waits", "median"), [((3,), 3), ((1, 9), 5), ((1, 2, 90), 2), ((4, 1, 2, 90), 3)])
def test_the_median_start_is_the_one_in_the_middle(
    records: Records, add: Add, waits: tuple[float, ...], median: float
) -> None:
    for wait_s in waits:
        add(1, 2, ready=BEGIN + HOUR + wait_s, way="woken")
    add(1, 2, ready=None, outcome="failed")

    found = count_use(records, span(1))

    assert found["ways"] == [{"way": "woken", "starts": len(waits), "median_s": pytest.approx(median)}]


def test_failures_are_counted_by_their_reason(records: Records, add: Add) -> None:
    for end in ("The disk is full.", "The disk is full.", "No KVM."):
        add(1, 2, outcome="failed", end=end)
    add(1, 2, outcome="asleep", end="Nobody used it.")

    found = count_use(records, span(1))

    assert found["failures"] == [{"reason": "The disk is full.", "runs": 2}, {"reason": "No KVM.", "runs": 1}]
    assert found["ends"] == [{"outcome": "failed", "runs": 3}, {"outcome": "asleep", "runs": 1}]
    assert column(found, "failures") == [3]


@pytest.mark.parametrize(
    ("days", "step", "first", "steps"),
    [
        (1, "day", date(2026, 7, 1), 1),
        (30, "day", date(2026, 6, 2), 30),
        (1, "week", date(2026, 6, 29), 1),
        (4, "week", date(2026, 6, 22), 2),
        (365, "week", date(2025, 6, 30), 53),
    ],
)
def test_a_span_is_whole_steps_with_today(days: int, step: Any, first: date, steps: int) -> None:
    assert last_days(days, step, today=FIRST) == Span(first=first, step=step, steps=steps)


@pytest.mark.parametrize(("days", "step"), [(0, "day"), (401, "day"), (2801, "week"), (-1, "week")])
def test_a_span_has_its_bounds(days: int, step: Any) -> None:
    with pytest.raises(SpanError, match="cannot be shown"):
        last_days(days, step, today=FIRST)


def test_a_hundred_thousand_runs_are_counted_by_the_database(records: Records) -> None:
    """Some 2 s; what would be a loop over all of them here took minutes."""
    with records.session() as session:
        session.execute(
            insert(Run),
            [
                {
                    **{"session_id": "a" * 20, "user": f"u{n % 500}", "server": "", "machine": f"m{n % 20}"},
                    **{"machine_name": "M", "cpus": 1 + n % 8, "memory_mib": 1024, "node": "host"},
                    **{"started": BEGIN + n * 300, "seen": 0, "ended": BEGIN + n * 300 + HOUR},
                    **{"ready": BEGIN + n * 300 + n % 60, "way": "cold", "outcome": "failed", "end": f"r{n}"},
                }
                for n in range(100_000)
            ],
        )
    began = time.monotonic()

    found = count_use(records, span(348))

    assert time.monotonic() - began < 60
    assert sum(column(found, "starts")) == 100_000
    assert sum(column(found, "hours")) == pytest.approx(100_000, rel=1e-6)
    assert max(column(found, "peak_runs")) == 12
    assert len(found["users"]) == len(found["failures"]) == 50


# Plots and CSV


@pytest.mark.parametrize(
    ("value", "top"),
    [(0.2, 1), (1, 1), (1.1, 2), (2, 2), (3, 5), (9, 10), (11, 20), (512, 1000), (1000, 1000)],
)
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert find_top(value) == top


def test_a_spreadsheet_takes_names_for_text() -> None:
    text = render_csv(
        ("user", "hours"), [{"user": HOSTILE, "hours": 1.23456}, {"user": 'a,"b\n', "hours": 2}]
    )

    assert list(csv.reader(io.StringIO(text))) == [
        ["user", "hours"],
        [f"'{HOSTILE}", "1.235"],
        ['a,"b\n', "2"],
    ]


# The hub's routes


async def get(hub: hubs.Hub, person: hubs.Person, path: str) -> hubs.Answer:
    return await person.request("GET", f"{hub.url}{path}", allow_redirects=False)


PATHS = ("api/desktops/statistics", "api/desktops/statistics/users.csv")
PAGE = "desktops/statistics"


async def test_staff_get_page_tables_and_json(hub: hubs.Hub) -> None:
    now = time.time()
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        run = {
            **{"session_id": "a" * 20, "user": HOSTILE, "server": "", "machine": "mini", "cpus": 2},
            **{
                "machine_name": HOSTILE,
                "memory_mib": 1024,
                "node": "host",
                "outcome": "failed",
                "end": HOSTILE,
            },
            **{"started": now - 60, "ready": now - 50, "seen": now, "ended": now},
        }
        session.execute(insert(Run).values(run))
    boss = await hub.log_in("boss", admin=True)

    page = await get(hub, boss, PAGE)
    table = await get(hub, boss, "api/desktops/statistics/users.csv?days=7")
    script = await hub.with_token("boss", admin=True)
    answer = json.loads((await get(hub, script, "api/desktops/statistics?days=7&step=week")).text)

    assert page.status == 200
    assert "<svg" in page.text
    assert "<img src=x" not in page.text
    assert table.status == 200
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert [row[0] for row in csv.reader(io.StringIO(table.text))] == ["user", f"'{HOSTILE}"]
    assert answer["step"] == "week"
    assert answer["users"][0]["user"] == HOSTILE
    assert answer["total"]["runs"] == 1
    for name in TABLES:
        assert (await get(hub, script, f"api/desktops/statistics/{name}.csv")).status == 200


async def test_nobody_else_gets_them(hub: hubs.Hub) -> None:
    alice, token, stranger = await hub.log_in("alice"), await hub.with_token("alice"), await hub.person("bob")

    for path in PATHS:
        assert (await get(hub, alice, path)).status in (403, 404)
        assert (await get(hub, token, path)).status in (403, 404)
        assert (await get(hub, stranger, path)).status == 403
    assert (await get(hub, alice, PAGE)).status == 403
    assert (await get(hub, stranger, PAGE)).status == 302


@pytest.mark.parametrize(
    "query", ["days=0", "days=99999", "days=x", "days=-1", "days=²", "step=hour", "days=" + "9" * 5000]
)
async def test_a_span_that_cannot_be_is_refused(hub: hubs.Hub, query: str) -> None:
    boss = await hub.log_in("boss", admin=True)

    for path in (*PATHS, PAGE):
        assert (await get(hub, boss, f"{path}?{query}")).status == 400
    assert (await get(hub, boss, "api/desktops/statistics/secrets.csv")).status == 404
