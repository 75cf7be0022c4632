"""Lifetime and idle time, on a clock that the test moves."""

from typing import Any

import pytest
from moved_clock import Clock, make_spec

from qemuspawner.errors import SessionError
from qemuspawner.session.life.clocks import Clocks


def make_clocks(clock: Clock, **keys: Any) -> Clocks:
    return Clocks(make_spec(**keys), now=clock)


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


def test_a_guest_that_works_is_not_idle() -> None:
    clock = Clock()
    clocks = make_clocks(clock, idle_s=60)
    clocks.note_input()

    clock.seconds += 59
    clocks.note_busy()

    assert clocks.idle_deadline == clock.seconds + 60
    assert clocks.last_activity == clock.seconds


def test_a_boot_is_no_work() -> None:
    clocks = make_clocks(Clock(), idle_s=60)

    clocks.note_busy()

    assert clocks.last_activity is None
    assert clocks.idle_deadline is None


def test_a_sleep_that_failed_is_tried_again_later_and_is_no_activity() -> None:
    clock = Clock()
    clocks = make_clocks(clock, idle_s=60)
    clocks.note_input()
    used = clock.seconds

    clock.seconds += 60
    clocks.postpone_idle()

    assert clocks.why_over() is None
    assert clocks.idle_deadline == clock.seconds + 60
    assert clocks.last_activity == used


def test_granted_time_goes_beyond_the_longest_lifetime() -> None:
    clocks = make_clocks(Clock())
    clocks.extend()
    assert not clocks.can_extend

    clocks.grant(7200)

    assert clocks.deadline == clocks.max_deadline == clocks.started + 8200


def test_extending_by_seconds_is_not_worth_it() -> None:
    clocks = make_clocks(Clock(), max_lifetime_s=659)

    assert not clocks.can_extend
    assert make_clocks(Clock(), max_lifetime_s=660).can_extend
