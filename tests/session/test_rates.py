"""How fast programs may act."""

from qemuspawner.session.screen.rates import Rates


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_spent_comes_back_with_time() -> None:
    clock = Clock()
    rates = Rates(per_s=10, burst=100, now=clock)

    assert rates.spend("alice", 100) == 0
    assert rates.spend("alice", 5) == 0.5
    clock.now += 0.5
    assert rates.spend("alice", 5) == 0
    assert rates.spend("alice", 1) == 0.1


def test_a_refusal_takes_nothing() -> None:
    clock = Clock()
    rates = Rates(per_s=10, burst=100, now=clock)
    rates.spend("alice", 60)

    assert rates.spend("alice", 50) == 1
    assert rates.spend("alice", 40) == 0


def test_there_is_never_more_than_the_burst() -> None:
    clock = Clock()
    rates = Rates(per_s=10, burst=100, now=clock)
    rates.spend("alice", 1)
    clock.now += 1000

    assert rates.spend("alice", 101) == 0.1


def test_everybody_has_a_bucket_of_their_own() -> None:
    rates = Rates(per_s=10, burst=100, now=Clock())
    rates.spend("alice", 100)

    assert rates.spend("bob", 100) == 0
