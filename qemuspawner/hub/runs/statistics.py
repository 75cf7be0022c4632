"""How the site's desktops were used over a span of time, counted by the database."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.orm import Session

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.records import Records
from qemuspawner.texts import Text

Step = Literal["day", "week"]

STEP_DAYS: dict[Step, int] = {"day": 1, "week": 7}
_DAY_S = 86400
# Plots of more bars show nothing.
MAX_STEPS = 400
# Of users, machines and reasons: the first ones.
_MAX_ROWS = 50

# Runs that were there in the span, with their part of it. One that was never seen to end ended when it was
# seen last.
_PARTS = """
WITH parts AS (
    SELECT user, machine, machine_name, cpus, memory_mib, gpus,
        max(started, :begin) AS first, min(coalesce(ended, seen), :end) AS last
    FROM runs WHERE started < :end AND coalesce(ended, seen) > :begin
)
"""

# What ran at the same time, swept along the moments at which that changed. An end comes before a start of the
# same moment, and each step begins with a moment of its own, so that no interval lies in two of them.
_RUNNING = """
, steps(at) AS (
    SELECT :begin UNION ALL SELECT at + :step_s FROM steps WHERE at + :step_s < :end
), changes AS (
    SELECT first AS at, 1 AS runs, cpus, memory_mib, gpus FROM parts
    UNION ALL SELECT last, -1, -cpus, -memory_mib, -gpus FROM parts
    UNION ALL SELECT at, 0, 0, 0, 0 FROM steps
), sums AS (
    SELECT at, lead(at, 1, :end) OVER sweep - at AS span_s,
        sum(runs) OVER sweep AS runs, sum(cpus) OVER sweep AS cpus,
        sum(memory_mib) OVER sweep AS memory_mib, sum(gpus) OVER sweep AS gpus
    FROM changes WINDOW sweep AS (ORDER BY at, runs ROWS UNBOUNDED PRECEDING)
)
SELECT CAST((at - :begin) / :step_s AS INTEGER) AS step,
    max(runs) AS peak_runs, max(cpus) AS peak_cpus, max(memory_mib) AS peak_memory_mib,
    max(gpus) AS peak_gpus,
    sum(runs * span_s) / 3600 AS hours, sum(cpus * span_s) / 3600 AS cpu_hours,
    sum(gpus * span_s) / 3600 AS gpu_hours
FROM sums WHERE at < :end GROUP BY step ORDER BY step
"""

_STARTS = """
SELECT CAST((started - :begin) / :step_s AS INTEGER) AS step,
    count(*) AS starts, count(DISTINCT user) AS users, sum(outcome = 'failed') AS failures
FROM runs WHERE started >= :begin AND started < :end GROUP BY step
"""

_HOURS = """
    count(*) AS runs, sum(last - first) / 3600 AS hours, sum((last - first) * cpus) / 3600 AS cpu_hours,
    sum((last - first) * gpus) / 3600 AS gpu_hours
FROM parts
"""

_MACHINES = (
    _PARTS
    + "SELECT machine, max(machine_name) AS name, count(DISTINCT user) AS users,"
    + _HOURS
    + "GROUP BY machine ORDER BY hours DESC, machine LIMIT :most"
)

_USERS = _PARTS + "SELECT user," + _HOURS + "GROUP BY user ORDER BY hours DESC, user LIMIT :most"

_TOTAL = _PARTS + "SELECT count(DISTINCT user) AS users, count(DISTINCT machine) AS machines," + _HOURS

# The median is the mean of the one or two in the middle.
_WAYS = """
WITH waits AS (
    SELECT way, ready - started AS wait_s,
        row_number() OVER (PARTITION BY way ORDER BY ready - started) AS place,
        count(*) OVER (PARTITION BY way) AS starts
    FROM runs WHERE started >= :begin AND started < :end AND ready IS NOT NULL
)
SELECT way, max(starts) AS starts,
    avg(CASE WHEN place IN ((starts + 1) / 2, (starts + 2) / 2) THEN wait_s END) AS median_s
FROM waits GROUP BY way ORDER BY starts DESC LIMIT :most
"""

_ENDS = """
SELECT outcome, count(*) AS runs FROM runs
WHERE ended >= :begin AND ended < :end GROUP BY outcome ORDER BY runs DESC LIMIT :most
"""

_FAILURES = """
SELECT "end" AS reason, count(*) AS runs FROM runs
WHERE ended >= :begin AND ended < :end AND outcome = 'failed'
GROUP BY reason ORDER BY runs DESC, reason LIMIT :most
"""

Row = dict[str, Any]

# Each table of the answer with its columns in order.
TABLES: dict[str, tuple[str, ...]] = {
    "steps": (
        *("begin", "starts", "users", "failures", "hours", "cpu_hours", "gpu_hours"),
        *("peak_runs", "peak_cpus", "peak_memory_mib", "peak_gpus"),
    ),
    "machines": ("machine", "name", "users", "runs", "hours", "cpu_hours", "gpu_hours"),
    "users": ("user", "runs", "hours", "cpu_hours", "gpu_hours"),
    "ways": ("way", "starts", "median_s"),
    "ends": ("outcome", "runs"),
    "failures": ("reason", "runs"),
}


class SpanError(QemuSpawnerError):
    """A span of time that cannot be counted."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Whole steps from the midnight that begins `first` (UTC) on; the last one ends after today."""

    first: date
    step: Step
    steps: int

    @property
    def begin(self) -> float:
        return datetime(self.first.year, self.first.month, self.first.day, tzinfo=UTC).timestamp()

    @property
    def step_s(self) -> int:
        return STEP_DAYS[self.step] * _DAY_S

    @property
    def end(self) -> float:
        return self.begin + self.steps * self.step_s

    @property
    def days(self) -> Sequence[date]:
        """With which each step begins."""
        return [self.first + timedelta(days=STEP_DAYS[self.step] * number) for number in range(self.steps)]


def last_days(days: int, step: Step, *, today: date) -> Span:
    """The steps in which the last `days` days lie, today among them; weeks begin on Monday.

    Raises:
        SpanError: It is longer than what can be shown.
    """
    most = MAX_STEPS * STEP_DAYS[step]
    if not 1 <= days <= most:
        raise SpanError(
            Text("{days} days cannot be shown; it is from 1 to {most} days.", days=days, most=most)
        )
    first = today - timedelta(days=days - 1)
    if step == "week":
        first -= timedelta(days=first.weekday())
    return Span(first=first, step=step, steps=math.ceil(((today - first).days + 1) / STEP_DAYS[step]))


def count_use(records: Records, span: Span) -> dict[str, Any]:
    """The tables of TABLES, each a list of rows, and `total`, one row. Hours are of the span alone."""
    values = {"begin": span.begin, "end": span.end, "step_s": span.step_s, "most": _MAX_ROWS}
    with records.session() as session:
        swept = {row["step"]: row for row in _rows(session, _PARTS + _RUNNING, values)}
        starts = {row["step"]: row for row in _rows(session, _STARTS, values)}
        (total,) = _rows(session, _TOTAL, values)
        tables = {
            "machines": _rows(session, _MACHINES, values),
            "users": _rows(session, _USERS, values),
            "ways": _rows(session, _WAYS, values),
            "ends": _rows(session, _ENDS, values),
            "failures": _rows(session, _FAILURES, values),
        }
    steps = [
        {"starts": 0, "users": 0, "failures": 0, **swept[number], **starts.get(number, {}), "begin": str(day)}
        for number, day in enumerate(span.days)
    ]
    return {
        "total": {name: value or 0 for name, value in total.items()},
        "steps": [{name: row[name] for name in TABLES["steps"]} for row in steps],
        **tables,
    }


def _rows(session: Session, query: str, values: dict[str, Any]) -> list[Row]:
    used = {name: value for name, value in values.items() if f":{name}" in query}
    return [dict(row) for row in session.execute(text(query), used).mappings()]
