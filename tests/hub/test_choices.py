"""What the form's choices are told to be by the API, and what a start then does."""

import json
from collections.abc import Awaitable, Callable

import hubs

Start = Callable[..., Awaitable[hubs.Hub]]

FULL = "Quota 'CPUs' of 'alice': 1 of 2 are used; 2 more were asked for."
PRESETS = """
[[presets]]
name = "Large"
cpus = 2

[[presets]]
name = "Fast"
gpu = "A100"
"""


async def test_each_choice_is_told_with_what_a_start_would_be_refused_for(standin: Start) -> None:
    hub = await standin(quotas={"user": {"cpus": 2}})
    hubs.add_machine(hub.machines, hub.state_dir, "tomo", more=PRESETS)
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"}, server_name="other")
    await hub.wait_until_ready("alice", server_name="other")

    told = json.loads((await hub.ask(alice, "GET", "users/alice/choices")).text)
    large = await hub.start(alice, {"machine": "tomo", "preset": "Large"})
    fast = await hub.start(alice, {"machine": "tomo", "preset": "Fast"})

    assert list(told) == ["mini", "tomo/Large", "tomo/Fast", "tomo"]
    assert told["mini"] == told["tomo"] == ""
    assert told["tomo/Large"].startswith(FULL)
    assert told["tomo/Fast"] == "The option 'gpu' is 'A100'; 'Tomo' takes no GPU."
    assert large.status == 409
    assert json.loads(large.text)["message"].startswith(FULL)
    assert (fast.status, json.loads(fast.text)["message"]) == (400, told["tomo/Fast"])
