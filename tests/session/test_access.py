"""Tickets."""

from qemuspawner.session.people.access import Person, Tickets

ALICE = Person(name="alice", role="owner")
BOB = Person(name="bob", role="control")


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_ticket_opens_once() -> None:
    tickets = Tickets()
    ticket = tickets.issue(ALICE)

    assert tickets.redeem(ticket, ALICE)
    assert not tickets.redeem(ticket, ALICE)


def test_a_ticket_is_worth_nothing_to_somebody_else() -> None:
    """And is used up by the attempt."""
    tickets = Tickets()
    ticket = tickets.issue(ALICE)

    assert not tickets.redeem(ticket, BOB)
    assert not tickets.redeem(ticket, ALICE)


def test_a_ticket_is_worth_nothing_after_30_seconds() -> None:
    clock = Clock()
    tickets = Tickets(now=clock)
    ticket = tickets.issue(ALICE)

    clock.seconds = 30

    assert not tickets.redeem(ticket, ALICE)


def test_tickets_do_not_pile_up() -> None:
    """The oldest go when more than 100 wait."""
    tickets = Tickets()
    first = tickets.issue(ALICE)
    for _ in range(100):
        last = tickets.issue(ALICE)

    assert not tickets.redeem(first, ALICE)
    assert tickets.redeem(last, ALICE)
