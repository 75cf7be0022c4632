"""One Markdown table a benchmark, of all its figures: bench/TABLE.md."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from figures import Figure, show, show_spread

_HEAD = """\
# What was measured

Written by `make bench` from bench/results, where every value is. A cell is the median of the rounds, with the
smallest and the largest. "Times better" is the median of the rounds' ratios, above 1 where we are better; all
is rounded the way that is worse for us. Limits are of medians; "p90" is what nine values in ten keep. A
figure that misses its limit says so. Each part says when it ran: some may be of another run than others.
"""
_QUICK = " **Of few rounds, to try it.**"


def write_table(path: Path, parts: Iterable[tuple[str, dict[str, str], list[Figure]]]) -> None:
    """Each part with its title and what is known of its run."""
    lines = [_HEAD]
    for title, facts, figures in parts:
        run = f"`python {facts['command']}`, {facts['when']}; {facts['where']}"
        lines += [
            f"## {title}",
            "",
            f"{run}; load before it: {facts['load before']}.{_QUICK if facts.get('form') == 'quick' else ''}",
            "",
            "| measure | | rounds | beside it | times better | limit | kept |",
            "|---|---|---|---|---|---|---|",
            *(row for figure in figures for row in _rows(figure)),
            "",
        ]
    path.write_text("\n".join(lines))


def _rows(figure: Figure) -> Iterator[str]:
    """One for the figure with its first peer, and one for each further peer."""
    own = f"{figure.name}, {figure.unit} | {show_spread(figure.values, up=not figure.more_is_better)}"
    kept = {True: "yes", False: "**no**", None: ""}[figure.is_met()]
    peers = list(figure.peers) or [""]
    for peer in peers:
        first = peer == peers[0]
        cells = (
            own if first else " | ",
            str(len(figure.values)) if first else "",
            f"{peer}: {show_spread(figure.peers[peer], up=figure.more_is_better)}" if peer else "",
            _ratio(figure, peer) if peer else "",
            _limits(figure) if first else "",
            kept if first else "",
        )
        yield "| " + " | ".join(cells) + " |"


def _ratio(figure: Figure, peer: str) -> str:
    ratio = figure.ratio(peer)
    return "" if ratio is None else show(ratio, up=False)


def _limits(figure: Figure) -> str:
    limits = []
    if figure.limit is not None:
        limits.append(f"{'≥' if figure.more_is_better else '≤'} {figure.limit:g}")
    if figure.limit_p90 is not None:
        limits.append(f"p90 ≤ {figure.limit_p90:g}")
    if figure.times_better is not None:
        limits.append(f"{figure.times_better:g} times")
    return ", ".join(limits)
