"""What a benchmark found, one way for all of them: a name, a unit, one value a round, a limit, a peer.

A benchmark that is run by itself prints its own tables. Where RESULTS names a file, as `python -m bench`
does, `record` also adds a line of JSON to it with every value.
"""

import decimal
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

RESULTS = "BENCH_RESULTS"  # the variable
_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure of one run."""

    name: str
    unit: str
    values: Sequence[float]  # one a round
    more_is_better: bool = False
    limit: float | None = None  # of the median: the most, or the least where more is better
    limit_p90: float | None = None  # the most of nine values in ten
    # What stands beside it: its name and its values in the same unit, round by round where they are as many.
    peers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    times_better: float | None = None  # at least, than the first of the peers

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p90(self) -> float:
        """What nine values in ten do not exceed, by the nearest rank."""
        return sorted(self.values)[math.ceil(0.9 * len(self.values)) - 1]

    def ratio(self, peer: str) -> float | None:
        """How many times better than the peer: the median of the rounds' ratios, else the medians' ratio."""
        theirs = self.peers[peer]
        if len(theirs) != len(self.values):
            theirs, ours = [statistics.median(theirs)], [self.median]
        else:
            ours = list(self.values)
        pairs = [(a, b) if self.more_is_better else (b, a) for a, b in zip(ours, theirs, strict=True)]
        # Differences may be nothing or less: these have no ratio.
        ratios = [above / below for above, below in pairs if above > 0 and below > 0]
        return statistics.median(ratios) if ratios else None

    def is_met(self) -> bool | None:
        """Nothing where no limit is set."""
        found = []
        if self.limit is not None:
            met = self.median >= self.limit if self.more_is_better else self.median <= self.limit
            found.append(met)
        if self.limit_p90 is not None:
            found.append(self.p90 <= self.limit_p90)
        if self.times_better is not None:
            ratio = self.ratio(next(iter(self.peers)))
            found.append(ratio is not None and ratio >= self.times_better)
        return all(found) if found else None


def record(
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    more_is_better: bool = False,
    limit: float | None = None,
    limit_p90: float | None = None,
    peers: Mapping[str, Sequence[float]] | None = None,
    times_better: float | None = None,
) -> None:
    """Hand a figure over, where somebody collects them."""
    figure = Figure(
        name=name,
        unit=unit,
        values=list(values),
        more_is_better=more_is_better,
        limit=limit,
        limit_p90=limit_p90,
        peers=dict(peers or {}),
        times_better=times_better,
    )
    if RESULTS in os.environ:
        with Path(os.environ[RESULTS]).open("a") as file:
            file.write(json.dumps(asdict(figure), ensure_ascii=False) + "\n")


def read(path: Path) -> tuple[dict[str, str], list[Figure]]:
    """The facts of a run, which are its first line, and its figures."""
    facts, *figures = map(json.loads, path.read_text().splitlines())
    return facts, [Figure(**figure) for figure in figures]


def show(value: float, *, up: bool) -> str:
    """With three digits, rounded the way that is worse for us."""
    rounding = decimal.ROUND_CEILING if up else decimal.ROUND_FLOOR
    number = decimal.Decimal(value)
    if not number:
        return "0"
    places = max(0, _DIGITS - 1 - number.adjusted())
    return f"{number.quantize(decimal.Decimal(1).scaleb(-places), rounding=rounding):f}"


def show_spread(values: Sequence[float], *, up: bool) -> str:
    """The median, and between what they are."""
    middle = show(statistics.median(values), up=up)
    if len(values) == 1:
        return middle
    return f"{middle} ({show(min(values), up=up)}..{show(max(values), up=up)})"
