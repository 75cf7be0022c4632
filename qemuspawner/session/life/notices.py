"""What is shown inside the guest, where its page may be out of sight: its end, and what staff say."""

from dataclasses import dataclass

from msgspec import structs

from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.session.life.clocks import Clocks
from qemuspawner.spec import SessionSpec, StaffMessage, SuspendOn
from qemuspawner.texts import Text, join_sentences
from qemuspawner.units import render_seconds

# The page warns at the same moments; see clock.js.
_LIFETIME_LEADS_S = (120, 600)
_IDLE_LEAD_S = 300


@dataclass(frozen=True, kw_only=True)
class Notice:
    title: str
    text: str


class Notices:
    """Which one is due, each once for each deadline."""

    def __init__(self, clocks: Clocks, spec: SessionSpec) -> None:
        self._clocks = clocks
        self._spec = spec
        self._said_lifetime = (0.0, 0)
        self._said_idle = 0.0
        self._told: StaffMessage | None = None
        self._told_at = 0.0
        self._shows_told = False

    @property
    def told(self) -> StaffMessage | None:
        """The newest message of the site's staff."""
        # By the wall clock of now, as all moments of a status.
        return self._told and structs.replace(self._told, at=self._clocks.unix(self._told_at))

    def tell(self, text: str, *, by: str) -> None:
        """The site's staff has something to say; it takes the place of what they said before."""
        number = self._told.number + 1 if self._told else 1
        self._told = StaffMessage(by=by, text=text, at=0, number=number)
        self._told_at = self._clocks.now()
        self._shows_told = True

    def due(self) -> Notice | None:
        """The one to show now; None where there is nothing new to say."""
        if self._told is not None and self._shows_told:
            self._shows_told = False
            return Notice(
                title=Text("From the administrators ({name})", name=self._told.by), text=self._told.text
            )
        now, deadline, idle = self._clocks.now(), self._clocks.deadline, self._clocks.idle_deadline
        lead_s = next((lead for lead in _LIFETIME_LEADS_S if deadline - now <= lead), 0)
        if lead_s and self._said_lifetime != (deadline, lead_s):
            self._said_lifetime = (deadline, lead_s)
            more = Text("Its page can extend that.") if self._clocks.can_extend else ""
            fate = self._fate("lifetime", deadline - now)
            return Notice(title=Text("The time is nearly over"), text=join_sentences(fate, more))
        idle_lead_s = min(_IDLE_LEAD_S, self._spec.idle_s / 2)
        if idle is not None and idle - now <= idle_lead_s and self._said_idle != idle:
            self._said_idle = idle
            text = join_sentences(self._fate("idle", idle - now), Text("Any key keeps it awake."))
            return Notice(title=Text("Is anybody there?"), text=text)
        return None

    def _fate(self, cause: SuspendOn, left_s: float) -> str:
        span = render_seconds(max(0, round(left_s)))
        if cause not in self._spec.suspend_on:
            return Text("This desktop ends in {span}.", span=span)
        if find_suspend_obstacle(self._spec):
            return Text("This desktop shuts down in {span}.", span=span)
        return Text("This desktop falls asleep in {span}.", span=span)
