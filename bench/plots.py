"""The figures as pictures for the manual: SVG with text that stays text, on any background."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from figures import Figure
from matplotlib.figure import Figure as Picture

# Readable on white and on black.
_INK = "#7a7f87"
_COLOURS = ("#2f81c7", "#d07a28")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",  # the same picture is the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH_IN, _ROW_IN = 7.2, 0.62

Series = Mapping[str, Sequence[float]]  # who -> their values


def write_plots(folder: Path, parts: Mapping[str, Sequence[Figure]]) -> None:
    """A picture of each part that has run and that pictures say something of."""
    with mpl.rc_context(_STYLE):
        if "darts" in parts:
            seconds = [figure for figure in parts["darts"] if figure.unit == "s" and figure.peers]
            _bars(folder / "bench-darts.svg", _beside(seconds), "seconds, logarithmic")
        if "relay" in parts:
            _ratios(folder / "bench-relay.svg", parts["relay"])


def _beside(figures: Sequence[Figure]) -> dict[str, Series]:
    return {figure.name: {"qemuspawner": figure.values, **figure.peers} for figure in figures}


def _bars(path: Path, rows: Mapping[str, Series], unit: str) -> None:
    """A group of bars a row: the median, a line from the smallest to the largest, each round a dot."""
    names = list(dict.fromkeys(name for series in rows.values() for name in series))
    picture = Picture(figsize=(_WIDTH_IN, 0.7 + _ROW_IN * len(rows) * (1 + len(names)) / 3))
    axes = picture.subplots()
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        for row, series in enumerate(rows.values()):
            if values := series.get(name):
                at = row + (number - (len(names) - 1) / 2) * height
                median = statistics.median(values)
                axes.barh(at, median, height * 0.9, color=_COLOURS[number], label=name if not row else None)
                axes.plot([min(values), max(values)], [at, at], color=_INK, linewidth=1)
                axes.plot(values, [at] * len(values), ".", color=_INK, markersize=3)
                axes.annotate(
                    f"{median:.2f}", (max(values), at), (4, 0), textcoords="offset points", va="center"
                )
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    if len(names) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.18), ncols=len(names), frameon=False)
    _save(picture, path)


def _ratios(path: Path, figures: Sequence[Figure]) -> None:
    """How many times better than the first peer, about a line at 1."""
    found = [(figure.name, figure.ratio(next(iter(figure.peers)))) for figure in figures if figure.peers]
    rows = [(name, ratio) for name, ratio in found if ratio]
    picture = Picture(figsize=(_WIDTH_IN, 0.7 + _ROW_IN * len(rows) / 2))
    axes = picture.subplots()
    for row, (_, ratio) in enumerate(rows):
        axes.barh(row, ratio - 1, 0.6, left=1, color=_COLOURS[0 if ratio >= 1 else 1])
        # Never rounded up.
        axes.annotate(
            f"{int(ratio * 100) / 100:g}",
            (max(ratio, 1), row),
            (4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times better than websockify, logarithmic")
    _save(picture, path)


def _save(picture: Picture, path: Path) -> None:
    picture.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
