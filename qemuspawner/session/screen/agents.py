"""Programs at a desktop: which tokens lend them a hand, how fast they may act, the hand that they share."""

from collections.abc import Iterable
from pathlib import Path

from jupyterhub.services.auth import check_scopes

from qemuspawner.scopes import AGENT
from qemuspawner.session.screen.hand import Hand
from qemuspawner.session.screen.rates import Rates
from qemuspawner.spec import SessionSpec

# Keys and buttons a second, of each person: as fast as somebody who types very fast.
_EVENTS_PER_S = 50.0
# At once: a text as long as one may be.
_BURST_EVENTS = 2000


def may_lend_hand(scopes: Iterable[str], spec: SessionSpec) -> bool:
    """Whether these expanded scopes hold the agent's one for this session, its owner, or all."""
    needed = f"{AGENT}!server={spec.user}/{spec.server_name}"
    return bool(check_scopes({needed}, set(scopes)))


class Agents:
    """All programs at one session's desktop."""

    def __init__(self, vnc_socket: Path) -> None:
        self.hand = Hand(vnc_socket)
        self.rates = Rates(per_s=_EVENTS_PER_S, burst=_BURST_EVENTS)
        self.waiting: set[str] = set()  # people of whom a program waits for the screen
