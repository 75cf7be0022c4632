"""Partitions and reservations of a real cluster, on the form and by the API."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import hubs
import pytest
from axe import find_barriers_in_both_looks
from chromium import LogIn, visitors
from playwright.async_api import Browser, Page, expect
from slurm_cluster import SlurmCluster
from slurm_hubs import refused_by_form

from qemuspawner.hub.form.options import FIELDS, ONCE

SCREENSHOTS = Path(__file__).parent.parent.parent / "screenshots"
MACHINE = """
[gpu]
need = "optional"

[[presets]]
name = "Small"
cpus = 1

[[presets]]
name = "GPU"
cpus = 2
gpu = "t4"
"""
TRAITS = {
    "partitions": {"short": [], "desktop": [], "gpu": ["staff"]},
    "reservations": {"course*": []},
    "gpus": ["t4"],
}


@pytest.fixture
async def hub(
    start_slurm_hub: Callable[..., Awaitable[hubs.Hub]], state_dir: Path, machines_dir: Path
) -> hubs.Hub:
    hubs.add_machine(machines_dir, state_dir, "tomo", title="Tomography", more=MACHINE)
    return await start_slurm_hub(**TRAITS)


@pytest.fixture
def course(cluster: SlurmCluster) -> Iterator[None]:
    """Two nodes are reserved for the account of the jobs, for two hours."""
    wanted = ("StartTime=now", "Duration=120", f"Users={hubs.sessions_account()}", "Nodes=n[1-2]")
    cluster.run("scontrol", "create", "reservation", "ReservationName=course", *wanted)
    yield
    cluster.run("scontrol", "delete", "ReservationName=course")


@pytest.fixture
async def log_in(browser: Browser) -> AsyncIterator[LogIn]:
    async with visitors(browser) as log_in:
        yield log_in


def jobs(cluster: SlurmCluster) -> set[str]:
    """Also those that are over, until Slurm forgets them."""
    return set(cluster.run("squeue", "-h", "-t", "all", "-o", "%i").split())


async def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    for size, width in (("", 1280), ("-phone", 360)):
        await page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            await page.evaluate("theme => document.documentElement.dataset.bsTheme = theme", theme)
            await page.screenshot(
                path=SCREENSHOTS / f"{name}{size}{'-dark' if theme == 'dark' else ''}.png", full_page=True
            )
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.set_viewport_size({"width": 1280, "height": 900})


async def test_the_form_shows_what_the_cluster_has_and_a_start_goes_where_it_says(
    course: None, hub: hubs.Hub, cluster: SlurmCluster, log_in: LogIn
) -> None:
    hub.user("alice", groups=("staff",))
    page = await log_in(hub, "alice")
    await page.goto(f"{hub.url}spawn")
    section = page.get_by_role("group", name="Partition of the cluster")
    desktop, short, gpu = (
        section.locator(f"[data-partition={name}]") for name in ("desktop", "short", "gpu")
    )

    # Two of the three nodes are others'.
    await expect(desktop).to_contain_text("at most 3 h 50 min")
    await expect(desktop).to_contain_text("fits now on 1 of 3 nodes")
    await expect(desktop).to_contain_text("2 of 2 GPUs t4 free")
    await expect(short).to_contain_text("There is too little time for a desktop in the partition 'short'.")
    await expect(short.get_by_role("radio")).to_be_disabled()
    await page.get_by_role("radio", name="Tomography: GPU").click()
    await expect(gpu).to_contain_text("a desktop lasts at most 50 min; 1 h were asked for")
    await page.locator(".qs-advanced > summary").click()
    await page.get_by_label("Lifetime").select_option("50 min")
    await expect(gpu).to_contain_text("fits now on its only node")
    await section.get_by_label("Reservation").select_option("course")
    await expect(gpu).to_contain_text("has no nodes for it")
    await expect(desktop).to_contain_text("No node of the partition")
    small = page.get_by_role("radio", name="Tomography: Small")
    await small.click()
    await expect(page.locator("label", has=small)).to_contain_text("fits now on 2 of 3 nodes")
    await expect(desktop).to_contain_text("fits now on 2 of 3 nodes")
    assert await find_barriers_in_both_looks(page) == []
    await shoot(page, "form-cluster")
    await desktop.get_by_role("radio").click()
    await page.get_by_role("button", name="Start", exact=True).click()
    await page.wait_for_url("**/spawn-pending/**")
    await hub.wait_until_ready("alice")
    job = cluster.run("squeue", "-h", "-o", "%P %v %N %l").split()

    assert job[:2] == ["desktop", "course"]
    assert job[2] in ("n1", "n2")
    options = hub.spawner("alice").user_options
    assert (options["partition"], options["reservation"]) == ("desktop", "course")


async def test_form_and_api_refuse_alike_what_a_user_may_not_have(
    course: None, hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    """Shell text, line breaks and a megabyte included; nothing reaches Slurm."""
    alice, eve = await hub.log_in("alice"), await hub.with_token("eve")
    before = jobs(cluster)
    offered = "it is one of 'short' or 'desktop'."
    wrong: dict[str, tuple[dict[str, str], str]] = {
        "unknown": ({"partition": "none"}, f"The option 'partition' is 'none'; {offered}"),
        "not for her groups": ({"partition": "gpu"}, f"The option 'partition' is 'gpu'; {offered}"),
        "too little time": (
            {"partition": "short"},
            "There is too little time for a desktop in the partition 'short'.",
        ),
        "no such reservation": (
            {"reservation": "$(id)\n"},
            "The option 'reservation' is '$(id)\\n'; it is one of 'course'.",
        ),
        "shell": ({"partition": "short;id"}, f"The option 'partition' is 'short;id'; {offered}"),
        "long": ({"partition": "d" * 1_000_000}, f"The option 'partition' is '{'d' * 60}…'; {offered}"),
    }

    said = {}
    for name, (options, _) in wrong.items():
        asked = {"machine": "mini", **options}
        by_api = await hub.start(eve, asked)
        assert by_api.status == 400
        said[name] = json.loads(by_api.text)["message"]
        assert said[name] in await refused_by_form(hub, alice, **asked)

    assert said == {name: sentence for name, (_, sentence) in wrong.items()}
    assert jobs(cluster) <= before


async def test_no_option_brings_shell_text_or_a_megabyte_to_the_cluster(
    hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    before = jobs(cluster)
    eve = await hub.with_token("eve")
    texts = ["$(touch /tmp/owned)\n;`id`", "x" * 1_000_000]

    answers = {
        (name, text[:5]): await hub.start(eve, {"machine": "mini", "lifetime": "30 s", name: text})
        for name in (*FIELDS, *ONCE, "setting", "prologue", "req_partition")
        for text in texts
    }

    assert {name: answer.status for name, answer in answers.items() if answer.status != 400} == {}
    assert max(len(answer.text) for answer in answers.values()) < 5000
    assert jobs(cluster) <= before


@pytest.fixture
def slow_sinfo(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sinfo that waits while the file that this returns is there, as it is from the start."""
    slow = state_dir / "slow"
    slow.touch()
    program = state_dir / "bin" / "sinfo"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nwhile [ -e {slow} ]; do sleep 0.2; done\nexec {shutil.which("sinfo")} "$@"\n'
    )
    for path in (program, program.parent):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return slow


async def test_who_looks_at_the_form_does_not_wait_for_a_slow_cluster(
    slow_sinfo: Path, hub: hubs.Hub, cluster: SlurmCluster
) -> None:
    """What it said before counts for a start, and is not told as what is free now."""
    alice = await hub.log_in("alice")
    spawner = hub.spawner("alice")

    at_first = await hub.get_form(alice)
    slow_sinfo.unlink()
    async with asyncio.timeout(30):
        while spawner.find_partitions() is None:
            await spawner.look_around()
    later = await hub.get_form(alice)

    assert at_first.status == later.status == 200
    assert "Partition of the cluster" not in at_first.text
    assert "Partition of the cluster" in later.text
    assert "fits now on 3 of 3 nodes" in later.text
