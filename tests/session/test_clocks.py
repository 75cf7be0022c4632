"""Lifetime and idle time, on a clock that the test moves."""

from typing import Any

import msgspec
import pytest

from qemuspawner.errors import SessionError
from qemuspawner.machine import Image, Machine
from qemuspawner.session.clocks import Clocks
from qemuspawner.spec import SessionSpec

MACHINE = Machine(name="Test", image=Image(file="/x", format="raw"))


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make_clocks(clock: Clock, **keys: Any) -> Clocks:
    spec = SessionSpec(
        session_id="x", user="alice", server_name="", state_dir="/x", machine=MACHINE,
        cpus=1, memory_mib=64, lifetime_s=600, max_lifetime_s=1000,
    )  # fmt: skip
    return Clocks(msgspec.structs.replace(spec, **keys), now=clock)


def test_a_session_ends_when_its_lifetime_is_over() -> None:
    clock = Clock()
    clocks = make_clocks(clock)

    clock.seconds += 599.9
    assert clocks.why_over() is None
    clock.seconds += 0.1
    assert clocks.why_over() == ("lifetime", "The session's lifetime of 10 min is over.")


def test_extending_stops_at_the_longest_lifetime() -> None:
    """600 s and 600 more would be 1200; 1000 is the most."""
    clock = Clock()
    clocks = make_clocks(clock)

    clocks.extend()

    assert clocks.deadline == clocks.started + 1000
    with pytest.raises(SessionError, match="longest lifetime of 16 min 40 s"):
        clocks.extend()


def test_extending_takes_the_seconds_asked_for() -> None:
    clocks = make_clocks(Clock())

    clocks.extend(60)

    assert clocks.deadline == clocks.started + 660


def test_a_session_without_input_ends() -> None:
    clock = Clock()
    clocks = make_clocks(clock, idle_s=60)

    clocks.note_input()
    clock.seconds += 59
    clocks.note_input()
    clock.seconds += 59
    assert clocks.why_over() is None
    clock.seconds += 1
    assert clocks.why_over() == ("idle", "Nobody used the desktop for 1 min.")


def test_a_guest_that_boots_longer_than_the_idle_time_is_not_idle() -> None:
    """Nobody could have used it yet."""
    clock = Clock()
    clocks = make_clocks(clock, idle_s=60)

    clock.seconds += 90

    assert clocks.why_over() is None


def test_a_session_that_may_idle_never_ends_for_it() -> None:
    clock = Clock()
    clocks = make_clocks(clock, idle_s=0)

    clock.seconds += 599

    assert clocks.idle_deadline is None
    assert clocks.why_over() is None


def test_the_next_check_is_at_the_nearest_deadline() -> None:
    clock = Clock()
    clocks = make_clocks(clock, idle_s=60)
    clocks.note_input()

    assert clocks.next_check_s == 60
    clock.seconds += 580
    clocks.note_input()
    assert clocks.next_check_s == 20
