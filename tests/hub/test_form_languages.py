"""The spawn page and the answers about a start, in the language of who asks."""

import html
import json
import re
import runpy
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from keeping import keep
from pseudo import find_untranslated, make_pseudo_language
from sqlalchemy import insert

from qemuspawner import languages, scopes
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.paths import StatePaths, session_id

Start = Callable[..., Awaitable[hubs.Hub]]

GERMAN = {"Accept-Language": "de-CH, en;q=0.5"}
FRENCH = {"Accept-Language": "fr"}
PROJECT = Path(__file__).parent.parent.parent

# What a site says has no Latin letters, so that these are ours.
USER = "1001"
KEYS = """
software = ["画像 1", "一", "二", "三", "四", "五", "六", "七", "八", "九", { name = "立体", gpu = true }]
agent = true
display = "virtio"
"""
PRESETS = """
idle = "20 min"

[gpu]
need = "optional"

[[presets]]
name = "小型"
description = "短時間用。"
cpus = 1
memory = "128 MiB"

[[presets]]
name = "大型"
cpus = 2
memory = "256 MiB"
gpu = "計算:2"
"""
PROPOSALS = """
["2026001"]
title = "光子"
abstract = "概要。"
starts = 2026-01-01
ends = 2026-02-01
members = ["1001"]

["2026002"]
title = "中性子"
starts = 2026-01-01
members = ["1001", "2002"]

["2026003"]
members = 3
"""


class GpuSpawner(QemuSpawner):
    """Of sessions that pass GPUs on."""

    can_pass_gpus = True


def add_machine(hub: hubs.Hub, name: str, title: str, *, keys: str = "", tables: str = "") -> None:
    hubs.add_machine(hub.machines, hub.state_dir, name, title=title, description="説明。", more=tables)
    path = hub.machines / name / "machine.toml"
    path.write_text(keys + path.read_text())


@pytest.fixture
async def hub(quick_hub: Start, tmp_path: Path, machines_dir: Path) -> hubs.Hub:
    """A hub that has one of everything that the form can show."""
    (tmp_path / "proposals.toml").write_text(PROPOSALS)
    hub = await quick_hub(
        jupyterhub={
            "spawner_class": GpuSpawner,
            "custom_scopes": scopes.CUSTOM_SCOPES,
            "extra_user_scopes": set(scopes.USER_SCOPES),
        },
        more={"TomlProposals": {"path": str(tmp_path / "proposals.toml")}},
        proposal_source="toml",
        quotas={
            "user": {"sessions": 3, "memory": "150 MiB", "gpu_hours": 0, "cpu_hours": 12.5, "disk": "20 GiB"},
            "groups": {"部門": {"cpus": 20}},
        },
        gpu_units={"計算": 2},
        scripts=True,
        suspend_on=["lifetime"],
        terms="規約。",
        terms_version="3",
    )
    (hub.machines / "mini/machine.toml").unlink()
    add_machine(hub, "rich", "豊富", keys=KEYS, tables=PRESETS)
    add_machine(hub, "lost", "紛失")
    (hub.state_dir / "images/lost/disk.raw").unlink()
    add_machine(hub, "bad", "不良", tables="wrong = 1\n")
    add_machine(hub, "hidden", "非公開", keys="hidden = true\n")
    hub.user(USER, groups=("部門",))
    add_run(hub, span_s=7200, cpu_p95=2.0, cpu_peak=2.0, memory_peak_mib=250, memory_by="guest")
    return hub


def add_run(hub: hubs.Hub, **used: Any) -> None:
    """The default desktop ran before, and had not enough."""
    now = time.time()
    run = {
        **{"session_id": session_id(USER, ""), "user": USER, "server": "", "machine": "rich"},
        **{"machine_name": "豊富", "cpus": 2, "memory_mib": 256, "node": "1", "way": "cold", "gpus": 0},
        **{"started": now - 7200, "ready": now - 7200, "seen": now, "ended": now, "outcome": "ended"},
    }
    with Records(StatePaths(root=hub.state_dir)).session() as session:
        session.execute(insert(Run), [run | used])


@pytest.fixture
def brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for German gets every message in brackets."""
    messages = runpy.run_path(str(PROJECT / "scripts/messages.py"))["extract"]()
    english = languages.load_languages()["en"]
    spoken = {"en": english, "de": make_pseudo_language(messages)}
    monkeypatch.setattr(languages, "load_languages", lambda: spoken)


def problems(page: str) -> dict[str, str]:
    """What is said next to fields, and above the form."""
    beside = re.findall(r'id="qs-(\w+)-problem">(.*?)</div>', page, re.DOTALL)
    above = re.findall(r'class="spawn-error-msg[^>]*>(.*?)</div>', page, re.DOTALL)
    found = {name: html.unescape(text.strip()) for name, text in beside}
    return found | ({"": html.unescape(above[0].strip())} if above else {})


@pytest.mark.usefixtures("brackets")
async def test_nothing_of_the_form_is_left_in_english(hub: hubs.Hub) -> None:
    """Nor what a link or a script says, nor what is kept for whom."""
    person = await hub.log_in(USER, admin=True)
    options = {"machine": "rich", "preset": "小型"}
    saved = await hub.ask(person, "PUT", f"users/{USER}/settings/昨日", json=options)
    assert saved.status == 204, saved.text
    wrong = {
        "opt-machine": "rich",
        **{
            "opt-cpus": "7",
            "opt-memory": "x",
            "opt-gpu": "無",
            "opt-lifetime": "1.5 s",
            "opt-name": "名" * 90,
        },
        **{
            "opt-notes": "\a",
            "opt-keyboard": "鍵",
            "opt-resolution": "1x1",
            "opt-proposal": "9",
            "opt-他": "1",
        },
        **{"opt-script": "1", "opt-terms": "1", "opt-sleeping": "discard", "opt-invite": "3"},
    }

    everything = (
        "qs-advice",
        "qs-used-up",
        "qs-terms",
        "qs-proposal",
        "qs-settings",
        "qs-more",
        "qs-why",
        "qs-capacity",
    )

    for server_name, query in (("", ""), ("", wrong), ("other", "opt-machine=lost")):
        page = await person.request(
            "GET",
            (hub.url / "spawn" / USER / server_name if server_name else hub.url / "spawn").with_query(query),
            headers=GERMAN,
        )
        assert page.status == 200
        assert query or all(f'class="{one}' in page.text or f'id="{one}' in page.text for one in everything)
        assert find_untranslated(page.text, within="qs-spawn") == []


@pytest.mark.usefixtures("brackets")
@pytest.mark.parametrize("kept", ["asleep", "checkpoints", "branch"])
async def test_nothing_of_what_is_kept_is_said_in_english(hub: hubs.Hub, kept: str) -> None:
    person = await hub.log_in(USER)
    machine = {"name": "豊富"}
    keep(hub, USER, name="19a0000001", kind="checkpoint", title="以前", machine=machine)
    keep(hub, USER, name="19a0000002", kind="checkpoint", automatic=True, machine=machine)
    if kept == "asleep":
        keep(hub, USER, name="19a0000003", machine=machine, memory="lost")
    branch = kept == "branch"
    url = hub.url / "spawn" / USER / "other" if branch else hub.url / "spawn"

    page = await person.request(
        "GET", url.with_query("opt-branch=/19a0000001" if branch else ""), headers=GERMAN
    )

    assert find_untranslated(page.text, within="qs-spawn") == []


async def test_errors_stand_beside_their_fields_in_french(hub: hubs.Hub) -> None:
    """Above the form too, and also of a server that JupyterHub shows the default one's form for."""
    person = await hub.log_in(USER)
    url = hub.url / "spawn" / USER / "other"

    answer = await person.request(
        "POST",
        url.with_query(_xsrf=person.xsrf(url)),
        data={"machine": "rich", "cpus": "7", "memory": "128", "terms": "3", "name": "名" * 90},
        headers=FRENCH,
    )

    said = problems(answer.text)
    assert answer.status == 400
    assert (
        said["cpus"] == "L\u2019option «\xa0cpus\xa0» est «\xa07\xa0»\u202f; «\xa0豊富\xa0» propose 1 ou 2."
    )
    assert "(il fait 90 caractères)\u202f; le nom d\u2019un bureau tient sur une ligne" in said["name"]
    assert said[""] == f"{said['cpus']} {said['name']}"
    assert "Durée" in answer.text
    assert 'lang="fr"' in answer.text


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (GERMAN, "Die Option „cpus“ ist „9“; „豊富“ bietet 1 oder 2 an."),
        (FRENCH, "L\u2019option «\xa0cpus\xa0» est «\xa09\xa0»\u202f; «\xa0豊富\xa0» propose 1 ou 2."),
        ({}, "The option 'cpus' is '9'; '豊富' offers 1 or 2."),
    ],
)
async def test_a_start_by_rest_is_refused_in_the_language_of_the_request(
    hub: hubs.Hub, headers: dict[str, str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub's log has it in English."""
    person = await hub.with_token(USER)
    (hub.machines / "lost/machine.toml").unlink()
    (hub.machines / "hidden/machine.toml").unlink()

    answer = await person.request(
        "POST",
        hub.url / "api/users" / USER / "server",
        json={"user_options": {"cpus": 9, "terms": "3"}},
        headers=headers,
    )

    assert (answer.status, json.loads(answer.text)["message"]) == (400, message)
    assert "The option 'cpus' is '9'" in caplog.text
    assert headers == {} or message not in caplog.text


async def test_other_routes_of_the_form_answer_in_german(hub: hubs.Hub) -> None:
    person = await hub.with_token(USER)

    async def ask(method: str, path: str, **kwargs: Any) -> Any:
        url = hub.url / "api/users" / USER / path
        return json.loads((await person.request(method, url, headers=GERMAN, **kwargs)).text)

    obstacles = await ask("GET", "choices")
    refused = await ask("PUT", "settings/x", json={"machine": "rich", "memory": "1 PiB"})
    list_only = await ask("PUT", "settings/x", json=[])

    assert obstacles["rich/大型"].startswith("Kontingent „Arbeitsspeicher“ („1001“): 0 MiB von 150 MiB sind")
    assert "„lost“" not in obstacles["rich/大型"]
    assert refused["message"].startswith("Die Option „memory“ ist „1 PiB“ (es hat weder")
    assert list_only["message"] == "Der Inhalt der Anfrage muss ein Objekt mit Optionen sein."


async def test_who_was_invited_is_said_in_german_after_the_hub_was_restarted(hub: hubs.Hub) -> None:
    """It was stored, in the words of no language."""
    person = await hub.with_token(USER)
    hub.user("2002")
    options = {"machine": "rich", "preset": "小型", "proposal": "2026002", "invite": "view", "terms": "3"}
    answer = await hub.start(person, options)
    assert answer.status in (201, 202), answer.text
    await hub.wait_until_ready(USER)
    spawner = hub.spawner(USER)

    spawner.load_state(json.loads(json.dumps(spawner.get_state())))

    said = languages.load_languages()["de"].say(spawner.on_proposal)
    assert said["invited"] == ["Zum Zusehen eingeladen: 2002."]
