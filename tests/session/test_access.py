"""Roles and tickets."""

from qemuspawner.machine import Image, Machine
from qemuspawner.session.access import Person, Tickets, find_person
from qemuspawner.spec import SessionSpec

SPEC = SessionSpec(
    session_id="x", user="alice", server_name="", state_dir="/x",
    machine=Machine(name="Test", image=Image(file="/x", format="raw")),
    cpus=1, memory_mib=64, lifetime_s=600, max_lifetime_s=1000,
)  # fmt: skip
ALICE = Person(name="alice", role="owner")
BOB = Person(name="bob", role="control")


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_owner_is_the_user_of_that_name() -> None:
    assert find_person({"kind": "user", "name": "alice"}, SPEC) == ALICE


def test_a_service_with_the_owners_name_is_not_the_owner() -> None:
    assert find_person({"kind": "service", "name": "alice"}, SPEC).role == "control"


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
