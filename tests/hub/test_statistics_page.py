"""Statistics and advice in a real browser."""

import random
import time
from pathlib import Path
from typing import Any

import hubs
from axe import find_barriers
from chromium import LogIn, read_download
from jupyterhub import orm
from playwright.async_api import Page, expect
from sqlalchemy import insert

from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.paths import StatePaths, session_id

HOSTILE = "<img src=x onerror=document.title='ran'>\"'&🦆" + "w" * 200
DAY = 86400
# For people to look at; not compared.
SCREENSHOTS = Path(__file__).parent.parent.parent / "screenshots"


def add_runs(hub: hubs.Hub, runs: list[dict[str, Any]]) -> None:
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        session.execute(insert(Run), runs)


def make_run(
    *, user: str = "alice", server: str = "", hours: float = 2, ago_s: float = 0, **values: Any
) -> dict[str, Any]:
    ended = time.time() - ago_s
    run = {
        **{"session_id": session_id(user, server), "user": user, "server": server, "machine": "mini"},
        **{"machine_name": "Mini", "cpus": 2, "memory_mib": 256, "node": "host", "way": "restored"},
        **{"started": ended - hours * 3600, "ready": ended - hours * 3600 + 3, "seen": ended, "ended": ended},
        **{"outcome": "ended", "end": "The desktop was stopped.", "gpus": 0},
    }
    return run | values


async def open_as(hub: hubs.Hub, log_in: LogIn, name: str, path: str, *, admin: bool = False) -> Page:
    hub.user(name, admin=admin)
    return await log_in(hub, name, to=path)


async def check(page: Page, name: str, *, within: str) -> None:
    """In a wide and in a narrow window, which is dark: pictures, and what would keep somebody out."""
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    assert await find_barriers(page, within=within) == []
    await page.evaluate("document.documentElement.dataset.bsTheme = 'dark'")
    await page.set_viewport_size({"width": 360, "height": 800})
    await page.screenshot(path=SCREENSHOTS / f"{name}-narrow.png", full_page=True)
    assert await find_barriers(page, within=within) == []
    # Nothing is cut off at the side of a phone.
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360


async def test_staff_see_how_desktops_are_used(hub: hubs.Hub, log_in: LogIn) -> None:
    rng = random.Random(5)
    users = [*(f"user{number}" for number in range(12)), HOSTILE]
    add_runs(
        hub,
        [
            make_run(
                user=rng.choice(users),
                hours=rng.expovariate(1 / 5),
                ago_s=rng.random() * 29 * DAY,
                way=rng.choice(["cold", "restored", "woken"]),
                outcome=rng.choice(["ended", "asleep", "asleep", "failed"]),
                machine_name=(name := rng.choice(["Debian desktop", "Windows 11", HOSTILE])),
                machine=name,
                end=rng.choice(["The host's disk is full.", HOSTILE]),
                gpus=rng.choice([0, 0, 1]),
            )
            for _ in range(400)
        ],
    )

    page = await open_as(hub, log_in, "boss", "desktops/statistics", admin=True)

    await expect(page.get_by_role("heading", name="Statistics of desktops")).to_be_visible()
    await expect(page.get_by_role("img", name="CPU-hours")).to_be_visible()
    assert await page.get_by_role("img", name="Most desktops at once").locator("rect").count() == 30
    await page.get_by_text("The numbers of the plots").click()
    await expect(page.get_by_role("row").filter(has_text="20").first).to_be_visible()
    assert await page.locator("img[src=x]").count() == 0
    assert await page.title() == "Statistics of desktops"
    await page.get_by_text("The numbers of the plots").click()
    await page.get_by_label("By the", exact=True).select_option("week")
    await page.get_by_label("Over the last").select_option("90 days")
    await page.get_by_role("button", name="Show").click()
    await expect(page.get_by_label("By the", exact=True)).to_have_value("week")
    async with page.expect_download() as downloading:
        await page.get_by_role("link", name="Download “Users” as CSV").click()
    text = (await read_download(await downloading.value)).decode()
    assert text.startswith("user,runs,hours")
    await page.goto(f"{hub.url}desktops/statistics")
    await page.get_by_text("The numbers of the plots").click()
    await check(page, "statistics", within="#qs-main")


async def test_a_site_where_nothing_ran_has_a_page(hub: hubs.Hub, log_in: LogIn) -> None:
    page = await open_as(hub, log_in, "boss", "desktops/statistics", admin=True)

    await expect(page.get_by_text("No desktop ran in this time.")).to_be_visible()


async def test_the_form_says_what_was_used_and_fills_in_what_would_do(hub: hubs.Hub, log_in: LogIn) -> None:
    used = {"span_s": 7200, "cpu_mean": 0.1, "cpu_p95": 0.2, "cpu_peak": 0.3}
    add_runs(hub, [make_run(server="desk", **used, memory_peak_mib=90, memory_by="guest")])

    page = await open_as(hub, log_in, "alice", "spawn/alice/desk")
    advice = page.get_by_role("note")
    await expect(advice).to_contain_text(
        "The last time this desktop used at most 0.3 of 2 CPUs and 90 MiB of 256 MiB of memory."
    )
    await page.get_by_text("Advanced", exact=True).click()
    await page.get_by_label("CPUs").select_option("2")
    await check(page, "advice", within=".qs-advice")
    await advice.get_by_role("link", name="Use 1 CPU and 128 MiB").click()

    await expect(page.get_by_label("CPUs")).to_have_value("1")
    await expect(page.get_by_label("Memory")).to_have_value("128")
    await expect(page.get_by_text("Nothing starts before you press Start.")).to_be_visible()
    assert not hub.spawner("alice", "desk").active


async def test_another_desktop_gets_no_advice_of_this_one(hub: hubs.Hub, log_in: LogIn) -> None:
    add_runs(hub, [make_run(server="desk", span_s=7200, cpu_peak=0.3)])

    page = await open_as(hub, log_in, "alice", "spawn")

    await expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
    await expect(page.get_by_role("note")).to_have_count(0)


async def test_a_card_says_the_same_and_leads_to_the_form(hub: hubs.Hub, log_in: LogIn) -> None:
    options = {"machine": "mini", "cpus": 2, "memory": 256}
    hub.app.db.add(orm.Spawner(name="desk", user=hub.user("alice").orm_user, user_options=options))
    hub.app.db.commit()
    add_runs(hub, [make_run(server="desk", span_s=7200, cpu_peak=0.3, memory_peak_mib=90, memory_by="guest")])

    page = await log_in(hub, "alice")
    card = page.get_by_role("article", name="“desk”")
    await expect(card).to_contain_text("at most 0.3 of 2 CPUs and 90 MiB of 256 MiB of memory.")
    await card.get_by_role("link", name="Use 1 CPU and 128 MiB").click()

    await expect(page.get_by_label("Memory")).to_have_value("128")
    assert not hub.spawner("alice", "desk").active


async def test_advice_is_told_to_scripts_of_its_user_alone(hub: hubs.Hub) -> None:
    add_runs(hub, [make_run(server="desk", span_s=7200, cpu_peak=0.3, cpus=2)])
    alice, bob = await hub.with_token("alice"), await hub.with_token("bob")
    url = f"{hub.url}api/users/alice/desktops/desk/advice"

    answer = await alice.request("GET", url)

    assert answer.status == 200
    assert '"preset":{"machine":"mini","cpus":1,"memory":256}' in answer.text
    assert (await bob.request("GET", url)).status in (403, 404)
    assert '"advice":null' in (await alice.request("GET", url.replace("desk/", "other/"))).text


async def test_mails_are_switched_off_on_the_home_page(standin: Any, log_in: LogIn) -> None:
    hub = await standin(notify=lambda _event: None)
    page = await log_in(hub, "alice")
    mails = page.get_by_role("switch", name="Mail me when one of my desktops")
    await expect(mails).to_be_checked()
    await expect(mails).to_be_enabled()

    await mails.press("Space")

    await expect(page.get_by_text("You get no mails.")).to_be_visible()
    await page.reload()
    await expect(mails).not_to_be_checked()
    await expect(mails).to_be_enabled()
    await check(page, "mails", within="[aria-labelledby=qs-mails-title]")


async def test_a_hub_that_tells_nobody_has_no_such_switch(hub: hubs.Hub, log_in: LogIn) -> None:
    page = await log_in(hub, "alice")

    await expect(page.get_by_role("heading", name="Your desktops")).to_be_visible()
    await expect(page.get_by_role("switch")).to_have_count(0)
