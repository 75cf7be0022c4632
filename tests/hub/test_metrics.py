"""What Prometheus is told at the hub's own place, and the dashboard that shows it."""

import asyncio
import json
import platform
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import hubs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qemuspawner.hub.admission import capacity
from qemuspawner.hub.admission.gpu_units import GpuUnit
from qemuspawner.paths import TEMPLATES

StartHub = Callable[..., Awaitable[hubs.Hub]]
DASHBOARD = TEMPLATES.parent / "grafana" / "desktops.json"


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    """A hub whose sessions are real ones."""
    return await start_hub()


async def scrape(hub: hubs.Hub) -> dict[str, dict[tuple[str, ...], float]]:
    """Each metric, by the values of its labels."""
    admin = await hub.with_token("root", admin=True)
    answer = await admin.request("GET", hub.url / "metrics")
    assert answer.status == 200, answer.text
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def scrape_until(hub: hubs.Hub, metric: str) -> dict[str, dict[tuple[str, ...], float]]:
    """The first that has this metric: one scrape asks sessions, and a later one tells what they say."""
    async with asyncio.timeout(20):
        while metric not in (found := await scrape(hub)):
            await asyncio.sleep(0.1)
    return found


async def test_desktops_are_counted_with_what_they_were_promised(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    before = await scrape(hub)
    await hub.start(alice, {"machine": "mini", "cpus": 2, "memory": "256 MiB"})
    await hub.wait_until_ready("alice")

    found = await scrape(hub)

    node = platform.node()
    assert before.get("qemuspawner_sessions", {}) == {}
    assert found["qemuspawner_sessions"] == {("mini", node, "running"): 1}
    assert found["qemuspawner_promised_cpus"] == {(node,): 2}
    assert found["qemuspawner_promised_memory_bytes"] == {(node,): 256 * 1024**2}
    starts = "qemuspawner_start_seconds_count"
    assert found[starts]["cold",] == before[starts]["cold",] + 1


async def test_what_sessions_say_is_told_by_the_next_scrape(hub: hubs.Hub) -> None:
    """A scrape waits for none of them."""
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")

    found = await scrape_until(hub, "qemuspawner_viewers")

    assert found["qemuspawner_viewers"] == {(platform.node(),): 0}
    assert found["qemuspawner_silent_sessions"] == {(platform.node(),): 0}


async def test_gpus_are_told_as_they_were_promised_and_are_used(
    quick_hub: StartHub, machines_dir: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By host and model; of a desktop without one nothing is said."""
    hubs.add_machine(machines_dir, state_dir, "gpu", more='\n[gpu]\nneed = "optional"\n')
    units = tuple(GpuUnit(model="A100", device=f"0000:6{number}:00.0") for number in range(3))
    monkeypatch.setattr(capacity, "find_units", lambda _allowed, _denied: units)
    capacity._look_for_gpus.cache_clear()
    status = {"load": {"cpu_percent": 5, "gpu_percent": 75}}
    hub = await quick_hub(gpus=["*"], environment={"QEMUSPAWNER_STANDIN_STATUS": json.dumps(status)})
    alice = await hub.with_token("alice")
    for server, gpu in (("one", "A100:2"), ("two", "A100"), ("none", "none")):
        await hub.start(alice, {"machine": "gpu", "gpu": gpu}, server_name=server)
        await hub.wait_until_ready("alice", server_name=server)

    found = await scrape_until(hub, "qemuspawner_used_gpus")
    capacity._look_for_gpus.cache_clear()

    assert found["qemuspawner_promised_gpus"] == {("A100", platform.node()): 3}
    assert found["qemuspawner_used_gpus"] == {(platform.node(),): 2.25}


async def test_a_host_without_gpus_has_no_number_of_them(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")

    found = await scrape_until(hub, "qemuspawner_viewers")

    assert not any("gpu" in name for name in found if name.startswith("qemuspawner"))


async def test_what_was_refused_is_counted_by_its_reason(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    before = await scrape(hub)

    await hub.start(alice, {"machine": "none"})

    refusals = "qemuspawner_refusals_total"
    assert (await scrape(hub))[refusals]["options",] == before[refusals]["options",] + 1


async def test_nobodys_name_is_in_it(hub: hubs.Hub) -> None:
    secret = "mallory-with-a-name"
    mallory = await hub.with_token(secret)
    await hub.start(mallory, {"machine": "mini"}, server_name="hidden-desk")
    await hub.wait_until_ready(secret, server_name="hidden-desk")
    admin = await hub.with_token("root", admin=True)

    texts = [(await admin.request("GET", hub.url / "metrics")).text for _ in range(2)]

    ours = [line for text in texts for line in text.splitlines() if line.startswith("qemuspawner")]
    assert ours
    assert not any(secret in line or "hidden-desk" in line for line in ours)


async def test_whoever_may_not_read_metrics_is_told_none(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    assert (await alice.request("GET", hub.url / "metrics")).status == 403


def expressions(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query")


async def test_the_dashboard_shows_what_there_is_and_all_of_it(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    await hub.wait_until_ready("alice")
    await scrape(hub)
    admin = await hub.with_token("root", admin=True)
    text = (await admin.request("GET", hub.url / "metrics")).text
    families = list(text_string_to_metric_families(text))
    # A family says what it is before there is a sample of it.
    names = {family.name for family in families} | {
        sample.name for family in families for sample in family.samples
    }

    shown = {
        name
        for expression in expressions(json.loads(DASHBOARD.read_text()))
        for name in re.findall(r"\b(?:qemuspawner|jupyterhub)_[a-z_]+", expression)
    }

    assert shown - names == set()
    # Counters also tell since when they count.
    ours = {one.name for one in families if re.match("qemuspawner(?!.*_created$)", one.name)}
    assert {name for name in ours if not any(one.startswith(name) for one in shown)} == set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """No data source of ours is in it, and each panel has an id of its own."""
    dashboard = json.loads(DASHBOARD.read_text())

    sources = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert sources == {"${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
