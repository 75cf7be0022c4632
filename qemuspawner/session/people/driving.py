"""Who has mouse and keyboard where only one person at a time may."""

from collections.abc import Sequence

from qemuspawner.errors import SessionError
from qemuspawner.session.people.access import Person
from qemuspawner.texts import Text


class Driving:
    """All who control, or one of them: the driver."""

    def __init__(self, *, one: bool) -> None:
        self.one = one
        self.driver = ""  # "" while nobody is there who could

    def settle(self, present: Sequence[Person]) -> None:
        """Find a driver among those who are there, the longest first, where the last one has left.

        The owner comes before all others, but takes nobody's mouse away by merely being there.
        """
        able = [person for person in present if person.may("control")]
        if any(person.name == self.driver for person in able):
            return
        able.sort(key=lambda person: person.role != "owner")
        self.driver = able[0].name if able else ""

    def drives(self, name: str) -> bool:
        """Whether somebody who may control has mouse and keyboard; while nobody is there, programs have."""
        return not self.one or self.driver in ("", name)

    def hand_over(self, to: str, *, by: Person, present: Sequence[Person]) -> None:
        """Make `to` the driver.

        Raises:
            SessionError: `by` may not give it away, or `to` cannot have it.
        """
        if by.role != "owner" and by.name != self.driver:
            raise SessionError(
                Text("{driver} has mouse and keyboard.", driver=self.driver), hint=Text("Ask for them.")
            )
        if not any(person.name == to and person.may("control") for person in present):
            raise SessionError(
                Text("'{to}' is not here, or may only look on.", to=to),
                hint=Text("Let them control the desktop first."),
            )
        self.driver = to
