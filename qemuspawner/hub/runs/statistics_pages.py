"""Statistics for staff: a page with plots, tables for a spreadsheet, and JSON for scripts."""

import asyncio
import csv
import io
import json
import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from jupyterhub import apihandlers, handlers
from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.hub.languages import http_error, speak_languages
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import KeepsRuns, records_of
from qemuspawner.hub.runs.statistics import STEP_DAYS, TABLES, Span, SpanError, count_use, last_days
from qemuspawner.texts import Text

_DEFAULT_DAYS = 30
# What the page offers, in days.
_SPANS = {30: Text("30 days"), 90: Text("90 days"), 182: Text("half a year"), 365: Text("a year")}
_PLOTS = {
    "starts": Text("Starts"),
    "users": Text("Users"),
    "hours": Text("Hours of desktops"),
    "cpu_hours": Text("CPU-hours"),
    "gpu_hours": Text("GPU-hours"),
    "peak_runs": Text("Most desktops at once"),
    "peak_cpus": Text("Most CPUs at once"),
    "peak_memory_gib": Text("Most memory at once, in GiB"),
    "peak_gpus": Text("Most GPUs at once"),
}
# How a spreadsheet would read a cell as a formula. Source: OWASP, CSV injection.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Bars from 0 to `top`, one for each step."""

    key: str
    title: str
    top: float
    values: tuple[float, ...]


class _Statistics:
    """What the handlers share."""

    settings: Any
    request: Any
    get_argument: Any

    def records(self) -> Records:
        kind = self.settings["spawner_class"]
        if not issubclass(kind, KeepsRuns):
            raise web.HTTPError(404)
        # Without a user it only tells its traits.
        return records_of(kind(config=self.settings["config"]).state_dir)

    def span(self) -> Span:
        """Raises HTTPError 400."""
        step, days = self.get_argument("step", "day"), self.get_argument("days", str(_DEFAULT_DAYS))
        try:
            if step not in STEP_DAYS:
                raise SpanError(Text("'step' is 'day' or 'week'."))
            if not (days.isascii() and days.isdigit() and len(days) < 6):
                raise SpanError(Text("'days' is a whole number."))
            return last_days(int(days), step, today=datetime.now(UTC).date())
        except SpanError as exc:
            raise http_error(self.request, 400, exc.message) from exc

    async def count(self, span: Span) -> dict[str, Any]:
        return await asyncio.to_thread(count_use, self.records(), span)


class StatisticsHandler(_Statistics, APIHandler):  # type: ignore[misc]
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        """All tables, over the last `days` by `step`."""
        span = self.span()
        self.write(json.dumps({"first": str(span.first), "step": span.step, **await self.count(span)}))


class StatisticsTableHandler(_Statistics, APIHandler):  # type: ignore[misc]
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def get(self, name: str) -> None:
        """One table as CSV."""
        if name not in TABLES:
            raise web.HTTPError(404)
        rows = (await self.count(self.span()))[name]
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", f'attachment; filename="{name}.csv"')
        self.finish(render_csv(TABLES[name], rows))


class StatisticsPageHandler(_Statistics, BaseHandler):  # type: ignore[misc]
    @web.authenticated
    @needs_scope("admin:servers")  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        span = self.span()
        found = await self.count(span)
        days = int(self.get_argument("days", str(_DEFAULT_DAYS)))
        # Nobody may have a spawner yet, which does this, too.
        speak_languages(self.settings)
        html = await self.render_template(
            "statistics.html",
            current_user=self.current_user,
            found=found,
            plots=[asdict(plot) for plot in make_plots(found["steps"])],
            days=days,
            step=span.step,
            spans=_SPANS if days in _SPANS else {**_SPANS, days: Text("{days} days", days=days)},
        )
        self.finish(html)


def make_plots(steps: list[dict[str, Any]]) -> list[Plot]:
    """Those of which there is anything to see."""
    rows = [{**row, "peak_memory_gib": row["peak_memory_mib"] / 1024} for row in steps]
    plots = []
    for key, title in _PLOTS.items():
        values = tuple(float(row[key]) for row in rows)
        if any(values):
            plots.append(Plot(key=key, title=title, top=find_top(max(values)), values=values))
    return plots


def find_top(value: float) -> float:
    """The least of 1, 2, 5, 10, 20, ... that is not below `value`."""
    ten = 10.0 ** max(math.floor(math.log10(value)), 0) if value > 1 else 1.0
    return next(ten * factor for factor in (1, 2, 5, 10) if ten * factor >= value)


def render_csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """With names that a spreadsheet takes for text, whatever they are."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return round(value, 3) if isinstance(value, float) else value


apihandlers.default_handlers += [
    (r"/api/desktops/statistics", StatisticsHandler),
    (r"/api/desktops/statistics/([a-z]+)\.csv", StatisticsTableHandler),
]
handlers.default_handlers.append((r"/desktops/statistics", StatisticsPageHandler))
