"""What the project promises, and the table of what a run of `make prove` found of it: bench/PROOF.md.

A proof is a test in tests/proof with the marker `goal`. In `make test` it is short; with --full, as `make
prove` runs it, it is as long as its goal says, and its findings become the goal's rows in the table.
"""

import datetime
import os
import platform
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

TABLE = Path(__file__).parent.parent / "bench" / "PROOF.md"
GOALS: Mapping[str, str] = {
    "R1": "No QEMU and no helper outlives its supervisor, and no folder the next sweep",
    "R2": "The death of QEMU is seen and told, and the disk stays sound",
    "R3": "A restart of the hub touches no desktop",
    "R4": "A full disk loses nothing",
    "R5": "Without memory one desktop dies alone, and says so",
    "R6": "A host is never promised twice",
    "R7": "A hostile image reads nothing and holds nobody up",
    "R8": "A guest or QEMU that hangs is told, and ends when asked to",
    "R9": "A lifetime is the time that passes, whatever the wall clock says",
    "R10": "A lifetime ends in time, and is warned of before",
    "R11": "Nothing grows while desktops come and go",
    "R12": "Two hundred desktops leave hub and host usable",
    "S1": "A guest reaches neither host nor local network",
    "S2": "Who escapes from QEMU finds nothing",
    "S3": "Every route answers each person as its row says",
    "S4": "Who only looks on does nothing, whatever is sent",
    "S5": "Broken or hostile RFB harms neither relay nor QEMU",
    "S6": "A form is accepted or refused, and never more than that",
    "S7": "Only the own page with a fresh ticket opens a websocket",
    "S8": "Nothing that people or guests write is run by the page",
    "S9": "No secret is visible",
    "S10": "No guest runs without its walls",
    "S11": "Another account of the host gets in nowhere",
    "S12": "Who is let in no more is out",
    "L1": "A desktop is only ever in a state that its history allows",
}
_HEAD = """\
# What was proved

Written by `make prove`: each row is what the last full run of its goal found. A row that says "failed" is a
promise that was not kept in that run.

| goal | what is promised | what was done | found | limit | when, where |
|---|---|---|---|---|---|
"""
_ROW = re.compile(r"\| (?P<goal>[RSL]\d+) \|.*\|")
_FINDING = "finding"  # among a report's user properties


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one proof found: each in words and figures, with units."""

    goal: str
    done: str
    found: str
    limit: str


class Proof:
    """What a proof knows of its run."""

    def __init__(self, goal: str, *, full: bool, node: pytest.Item) -> None:
        self.full = full
        self._goal = goal
        self._node = node

    def rounds(self, *, short: int, full: int) -> int:
        """How often the thing is to be done."""
        return full if self.full else short

    def within(self, limit_s: float) -> float:
        """The limit that is asserted, seconds: the short form runs beside other tests, which slow it."""
        return limit_s if self.full else 5 * limit_s

    def note(self, *, done: str, found: str, limit: str) -> None:
        """Write a row: what was done and how often, what came out, and what the limit is.

        Call it before the assertions, so that a row of a goal that was missed has its figures as well.
        """
        finding = Finding(goal=self._goal, done=done, found=found, limit=limit)
        self._node.user_properties.append((_FINDING, vars(finding)))


def find_goal(item: pytest.Item) -> str | None:
    """The goal that a test proves, where it is a proof."""
    marker = item.get_closest_marker("goal")
    if marker is None:
        return None
    (goal,) = marker.args
    assert goal in GOALS, f"{item.nodeid}: '{goal}' is none of the goals"
    return str(goal)


class Table:
    """Gathers what the proofs of a full run found, and writes it at the end; other goals' rows stay."""

    def __init__(self) -> None:
        self._rows: dict[str, list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == _FINDING:
                finding = Finding(**value)  # type: ignore[arg-type]
                self._rows[finding.goal].append(_row(finding, failed=report.failed))

    def pytest_sessionfinish(self) -> None:
        if self._rows:
            rows = dict(_read_rows()) | self._rows
            lines = [line for goal in GOALS for line in rows.get(goal, [])]
            TABLE.write_text(_HEAD + "\n".join(lines) + "\n")


def _row(finding: Finding, *, failed: bool) -> str:
    found = f"**failed**: {finding.found}" if failed else finding.found
    machine = f"{platform.machine()} with {len(os.sched_getaffinity(0))} CPUs"
    where = f"{datetime.date.today()}, {_version()}, {machine}, Linux {platform.release().split('-')[0]}"
    cells = (finding.goal, GOALS[finding.goal], finding.done, found, finding.limit, where)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _version() -> str:
    """The commit that was proved, and whether something differed from it."""
    command = ["git", "-C", TABLE.parent, "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _read_rows() -> Iterator[tuple[str, list[str]]]:
    rows: dict[str, list[str]] = defaultdict(list)
    for line in TABLE.read_text().splitlines() if TABLE.exists() else ():
        if found := _ROW.fullmatch(line):
            rows[found["goal"]].append(line)
    yield from rows.items()
