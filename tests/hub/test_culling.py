"""The hook for jupyterhub-idle-culler: which desktops are stopped, by when they were used last."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import hubs
import pytest

from qemuspawner.hub.culling import DesktopArbiter

LIMIT_S = 3600


@pytest.fixture
def arbiter(machines_dir: Path, state_dir: Path) -> DesktopArbiter:
    """Of a catalogue with a machine that may idle for ever, and one for two hours."""
    hubs.add_machine(machines_dir, state_dir, "patient", more='idle = "2 h"\n')
    return DesktopArbiter([machines_dir])


@pytest.mark.parametrize(
    ("options", "limit_s"),
    [
        ({"machine": "mini"}, LIMIT_S),
        ({"machine": "patient"}, 7200 + 600),
        ({"machine": "gone"}, LIMIT_S),
        ({}, LIMIT_S),
        (None, LIMIT_S),
    ],
)
def test_a_machines_own_idle_time_counts_and_a_grace_for_its_session(
    arbiter: DesktopArbiter, options: dict[str, Any] | None, limit_s: int
) -> None:
    def culls(inactive_s: int) -> bool:
        return arbiter(
            inactive=timedelta(seconds=inactive_s),
            inactive_limit=LIMIT_S,
            server={"user_options": options},
        )

    assert not culls(limit_s - 1)
    assert culls(limit_s)


def test_a_desktop_of_unknown_activity_is_left_alone(arbiter: DesktopArbiter) -> None:
    assert not arbiter(inactive=None, inactive_limit=LIMIT_S, server={})
