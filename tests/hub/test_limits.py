"""What roles are allowed: in the form, and by the API alike."""

from collections.abc import Awaitable, Callable

import hubs
import pytest
from traitlets import TraitError

from qemuspawner.hub.spawner import QemuSpawner

Start = Callable[..., Awaitable[hubs.Hub]]

ROLES = {"group:staff": "2 h", "group:students": "30 min", "admin": 0}


@pytest.mark.parametrize(
    ("groups", "admin", "longest"),
    [
        ((), False, "40 min"),
        (("students",), False, "30 min"),
        (("students", "staff"), False, "2 h"),
        ((), True, "2 h"),  # the machine's own
    ],
)
async def test_the_longest_lifetime_is_that_of_ones_role(
    standin: Start, groups: tuple[str, ...], admin: bool, longest: str
) -> None:
    hub = await standin(max_lifetime="40 min", max_lifetimes=ROLES)
    hub.user("alice", admin=admin, groups=groups)
    alice = await hub.log_in("alice", admin=admin)

    form = await hub.get_form(alice)
    refused = await hub.start(alice, {"machine": "mini", "lifetime": "3 h"})
    started = await hub.start(alice, {"machine": "mini", "lifetime": longest})

    assert f'<span id="qs-longest">{longest}</span>' in form.text
    assert refused.status == 400
    assert f"lasts from 1 min to {longest}." in refused.text
    assert started.status in (201, 202)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"staff": "7 d"}, 'it is "admin" or "group:NAME"'),
        ({"group:": "7 d"}, "without a name"),
        ({"group:staff": "much"}, "not of the form"),
        ({"admin": 7}, "at least 60 s"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(value: dict[str, object], why: str) -> None:
    with pytest.raises(TraitError, match=why):
        QemuSpawner(max_lifetimes=value)
