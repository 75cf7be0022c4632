"""What staff read on their pages and get as errors, in their own language."""

import json
import time
from typing import Any

import bracketed
import hubs
import pytest
from chromium import LogIn
from playwright.async_api import Browser, Page, Route, expect

from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.paths import STATIC, StatePaths

GERMAN = {"Accept-Language": "de"}

DESKTOP = {
    "user": "u1",
    "server": "",
    "url": "/user/u1/",
    "machine": "m1",
    "cpus": 2,
    "memory_mib": 4096,
    "node": "n1",
    "state": "running",
    "age_s": 100_000,
    "answers": True,
    "left_s": 3000,
    "idle_s": 5,
    "idle_left_s": None,
    "viewers": 1,
    "load": {
        "cpu_percent": 150,
        "disk_kib_s": 3000,
        "gpu_percent": 3,
        "memory_mib": 900,
        "received_kib_s": 7,
        "sent_kib_s": 2048,
    },
    "awake": [],
    "sleeps": True,
    "asks_for_time": False,
}
ANSWERS: dict[str, Any] = {
    "desktops": {
        "desktops": [
            DESKTOP,
            {**DESKTOP, "user": "u2", "server": "s2", "state": "suspending", "load": None, "sleeps": False},
            {**DESKTOP, "user": "u3", "answers": False, "memory_mib": 512},
        ]
    },
    "hosts": {
        "hosts": [
            {"name": "n1", "desktops": 2, "cpus": 4, "memory_mib": 8192, "drain": None},
            {"name": "n2", "desktops": 0, "cpus": 0, "memory_mib": 0, "drain": {"by": "u1", "reason": "r1"}},
        ]
    },
    "announcements": {
        "announcements": [
            {
                "id": number,
                "text": "t1",
                "level": level,
                "begins_in_s": begins,
                "ends_in_s": ends,
                "must_acknowledge": True,
                "acknowledged": number,
                "by": "u1",
            }
            for number, (level, begins, ends) in enumerate(
                [("info", 0, None), ("warning", 7200, 9000), ("info", 0, -5)]
            )
        ]
    },
}


@pytest.fixture
def pseudo_language(monkeypatch: pytest.MonkeyPatch) -> None:
    bracketed.speak_pseudo(monkeypatch)


@pytest.fixture
async def staff_page(browser: Browser) -> Page:
    """The page of staff; its service's answers are made up."""
    config = {"prefix": "/desktops/", "hub": "/hub/", "cookie_path": "/", "user": "u1", "xsrf": "x"}
    html = (
        bracketed.make_pseudo_language()
        .template("staff.html")
        .render(
            config=config,
            hub_static="/static/",
            languages=[("fr", "L1")],
            scopes=["admin:servers", "access:servers"],
        )
    )

    async def answer(route: Route) -> None:
        path = route.request.url.partition("http://staff.test")[2]
        if path == "/desktops/":
            await route.fulfill(body=html, content_type="text/html")
        elif path.startswith("/desktops/static/"):
            await route.fulfill(path=STATIC / path.rpartition("/")[2])
        elif route.request.method != "GET":
            await route.abort()
        elif (name := path.removeprefix("/desktops/api/")) in ANSWERS:
            await route.fulfill(json=ANSWERS[name])
        else:
            await route.fulfill(status=403 if "u1" in path else 404, json={"message": ""})

    page = await browser.new_page()
    await page.route("**/*", answer)
    await page.goto("http://staff.test/desktops/")
    await expect(page.locator("#rows tr")).to_have_count(3)
    await expect(page.locator("#announcement-rows li")).to_have_count(3)
    return page


async def test_the_page_of_staff_says_nothing_that_is_no_message(staff_page: Page) -> None:
    page = staff_page
    given = {"u1", "u2", "u3", "s2", "m1", "n1", "n2", "t1"}
    await expect(page.locator(".screen").filter(has_text="⟦")).to_have_count(3)
    assert (await page.title()).endswith("desktops⟧")
    assert await bracketed.find_english(page, "body", given=given) == []

    await page.locator("#all").check()
    for button in ("#message", "#stop"):
        await page.locator(button).click()
        await expect(page.locator("#ask")).to_be_visible()
        assert await bracketed.find_english(page, "body", given=given) == []
        await page.keyboard.press("Escape")
    await page.locator("#stop").click()
    await page.locator("#ask-yes").click()
    await expect(page.locator("#problem")).to_contain_text(
        "⟦{count} desktops could not".replace("{count}", "3")
    )
    assert await bracketed.find_english(page, "body", given=given) == []
    await page.locator("#filter").fill("nothing")
    await page.locator("#host-rows button").first.click()
    await expect(page.locator("#ask")).to_be_visible()
    assert await bracketed.find_english(page, "body", given=given) == []


@pytest.mark.usefixtures("pseudo_language")
async def test_the_page_of_machines_says_nothing_that_is_no_message(hub: hubs.Hub, log_in: LogIn) -> None:
    hub.user("admin", admin=True)
    (hub.machines / "broken").mkdir()
    (hub.machines / "broken" / "machine.toml").write_text("nane = 1\n")
    page = await log_in(hub, "admin", to="machines", locale=bracketed.TAG)
    await expect(page.locator("[data-machine=mini]")).to_be_visible()
    given = {"mini", "Mini", "broken", "raw", "admin", "machine", "toml", "nane", "BIOS", "UEFI"}
    given |= {"qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "vhd", "iso"}
    assert await bracketed.find_english(page, "#qs-main", given=given) == []

    mini = page.locator("[data-machine=mini]")
    await mini.locator("[data-key='mini hidden']").click()
    await expect(mini).to_contain_text("⟦Hidden⟧")
    await mini.locator("button").first.click()
    await expect(page.locator("#qs-edit")).to_be_visible()
    await expect(page.locator("#qs-edit-versions li")).to_have_count(2)
    assert await bracketed.find_english(page, "#qs-main", given=given) == []


@pytest.mark.usefixtures("pseudo_language")
async def test_the_page_of_statistics_says_nothing_that_is_no_message(hub: hubs.Hub, log_in: LogIn) -> None:
    hub.user("admin", admin=True)
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        for number, (way, outcome) in enumerate(
            [("cold", "ended"), ("restored", "asleep"), ("woken", "failed"), ("", "lost")]
        ):
            session.add(make_run(number, way=way, outcome=outcome))
    page = await log_in(hub, "admin", to="desktops/statistics", locale=bracketed.TAG)
    await expect(page.locator("svg").first).to_be_visible()

    assert await page.title() == "⟦Statistics of desktops⟧"
    assert await bracketed.find_english(page, "#qs-main", given={"u1", "m1", "r1"}) == []


def make_run(number: int, *, way: str, outcome: str) -> Run:
    ended = time.time() - 3600
    return Run(
        session_id=f"{number:032x}",
        user="u1",
        server="",
        machine="m1",
        machine_name="m1",
        cpus=2,
        memory_mib=2048,
        gpus=1,
        node="n1",
        way=way,
        started=ended - 7200,
        ready=ended - 7000,
        seen=ended,
        ended=ended,
        outcome=outcome,
        end="r1",
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "machines/none", None, 404, "Es gibt keine Maschine „none“."),
        ("POST", "machines", {"id": "mini", "name": "x"}, 409, "Es gibt schon eine Maschine „mini“."),
        ("DELETE", "machines/mini/image", None, 404, "Es ist kein Abbild dieser Maschine unterwegs."),
        ("POST", "desktops/hosts/n1/drain", {}, 400, "„reason“ muss ein Text von 1 bis 200 Zeichen sein."),
        ("DELETE", "desktops/hosts/n1/drain", None, 404, "Der Host „n1“ ist nicht stillgelegt."),
        ("DELETE", "announcements/7", None, 404, "Diese Ankündigung gibt es nicht."),
        ("POST", "announcements", {"text": "x", "lasts": -1}, 400, "„lasts“ muss null sein oder von 0 bis"),
        ("GET", "desktops/statistics?days=x", None, 400, "„days“ ist eine ganze Zahl."),
    ],
)
async def test_refusals_of_the_api_are_in_the_language_of_who_asks(
    hub: hubs.Hub, method: str, path: str, body: Any, status: int, message: str
) -> None:
    admin = await hub.with_token("root", admin=True)

    answer = await admin.request(method, f"{hub.url}api/{path}", json=body, headers=GERMAN)

    assert answer.status == status
    assert json.loads(answer.text)["message"].startswith(message)
