"""S8: nothing that people write is run by the hub's pages, and they speak to their own host alone."""

import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hubs
import keeping
import pytest
from jupyterhub import orm
from payloads import PAYLOADS, Watch
from playwright.async_api import Browser, Page, expect
from proofs import Proof
from sqlalchemy import insert

from qemuspawner import scopes
from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub.form.settings import save_setting
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.paths import StatePaths, session_id

pytestmark = pytest.mark.goal("S8")
StartHub = Callable[..., Awaitable[hubs.Hub]]
OWNER, GUEST, STAFF = PAYLOADS[4], PAYLOADS[16], "root"


@pytest.fixture
def texts(proof: Proof) -> Sequence[str]:
    """All payloads, or some of each kind."""
    return PAYLOADS[:: proof.rounds(short=4, full=1)]


def name_servers(texts: Sequence[str]) -> dict[str, str]:
    """A server for each."""
    return {f"desk-{number}": text for number, text in enumerate(texts)}


def write_machines(machines: Path, state: Path, texts: Sequence[str]) -> None:
    """A machine for each, which has it in all of its texts."""
    for number, text in enumerate(texts):
        name, shown = f"nasty-{number}", json.dumps(text, ensure_ascii=False)
        hubs.add_machine(machines, state, name)
        path = machines / name / "machine.toml"
        keys = f"software = [{shown}, {{ name = {shown}, gpu = true }}]\nversion = {shown}\n"
        written = path.read_text().replace(f'name = "{name.title()}"', f"name = {shown}")
        written = written.replace('description = ""', f"description = {shown}").replace('version = "1"\n', "")
        path.write_text(keys + written + f"\n[[presets]]\nname = {shown}\ndescription = {shown}\ncpus = 1\n")


def write_proposals(path: Path, texts: Sequence[str]) -> None:
    tables = []
    for number, text in enumerate(texts):
        shown = json.dumps(text, ensure_ascii=False)
        members = json.dumps([OWNER, STAFF])
        tables.append(f"[{number}]\ntitle = {shown}\nabstract = {shown}\nmembers = {members}\n")
    path.write_text("\n".join(tables))


@pytest.fixture
async def hub(
    start_hub: StartHub, machines_dir: Path, state_dir: Path, tmp_path: Path, texts: Sequence[str]
) -> hubs.Hub:
    """One in which every text that somebody could have written is a payload."""
    write_machines(machines_dir, state_dir, texts)
    write_proposals(tmp_path / "proposals.toml", texts)
    return await start_hub(
        jupyterhub={"custom_scopes": scopes.CUSTOM_SCOPES, "extra_user_scopes": set(scopes.USER_SCOPES)},
        more={"TomlProposals": {"path": str(tmp_path / "proposals.toml")}},
        proposal_source="toml",
        terms="\n\n".join(texts),
        terms_version="1",
        quotas={"groups": {text: {"cpus": 1000} for text in texts}},
    )


async def write_everything(hub: hubs.Hub, texts: Sequence[str]) -> None:
    """What users, those with whom they share, and staff have written."""
    database = hub.app.db
    owner = hub.user(OWNER, groups=texts).orm_user
    hub.user(STAFF, admin=True, groups=texts)
    for server, text in name_servers(texts).items():
        options = {"machine": "mini", "name": text, "notes": text}
        database.add(orm.Spawner(name=server, user=owner, user_options=options, display_name=text[:200]))
    database.commit()
    for server, text in name_servers(texts).items():
        share(hub, owner.orm_spawners[server], hub.user(text).orm_user, scopes.VIEW)
        share(hub, owner.orm_spawners[server], orm.Group.find(database, text), scopes.CONTROL)
        keeping.keep(hub, OWNER, server, size=0, machine={"name": text}, problem=text)
        keeping.keep(hub, OWNER, server, size=0, name="19a0000001", kind="checkpoint", title=text)
    records = Records(StatePaths(root=hub.state_dir))
    for text in (text for text in texts if text.isprintable() and len(text) <= 60):
        with contextlib.suppress(QemuSpawnerError):  # there are so many and no more
            save_setting(records, user=OWNER, name=text, options={"machine": "mini", "name": text})
    with records.session() as session:
        runs = [make_run(server, text) for server, text in name_servers(texts).items()]
        session.execute(insert(Run), runs)
    root = await hub.with_token(STAFF, admin=True)
    for text in texts[:20]:
        answer = await hub.ask(root, "POST", "announcements", json={"text": text, "level": "warning"})
        assert answer.status == 201, answer.text


def share(hub: hubs.Hub, server: orm.Spawner, with_whom: orm.User | orm.Group, role: str) -> None:
    granted = [f"{scope}!server={OWNER}/{server.name}" for scope in ("access:servers", role)]
    orm.Share.grant(hub.app.db, server, with_whom, scopes=granted)


def make_run(server: str, text: str) -> dict[str, Any]:
    now = time.time()
    return {
        **{"session_id": session_id(OWNER, server), "user": OWNER, "server": server, "machine": text},
        **{"machine_name": text, "cpus": 2, "memory_mib": 256, "node": text, "way": "restored", "gpus": 0},
        **{
            "started": now - 7200,
            "ready": now - 7190,
            "seen": now,
            "ended": now,
            "outcome": "failed",
            "end": text,
        },
    }


async def log_in(hub: hubs.Hub, page: Page, name: str) -> None:
    await page.goto(str(hub.url / "login"))
    await page.get_by_label("Username").fill(name)
    await page.get_by_label("Password").fill(hub.password(name))
    await page.get_by_role("button", name="Sign in").click()
    await page.wait_for_url(lambda url: "/login" not in url)


async def open_all(page: Page) -> None:
    """Everything that unfolds, and the dialog of sharing."""
    await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    share = page.get_by_role("button", name="Share “").first
    if await share.count():
        await share.click()
        await expect(page.get_by_role("heading", name="Share “").first).to_be_visible()


async def test_texts_of_people_stay_texts_on_the_hubs_pages(
    hub: hubs.Hub, browser: Browser, proof: Proof, texts: Sequence[str]
) -> None:
    await write_everything(hub, texts)
    at = f"{quote(OWNER)}/desk-0"
    shared = [f"access:servers!server={OWNER}/desk-0"]
    _, code = orm.ShareCode.new(hub.app.db, hub.spawner(OWNER, "desk-0").orm_spawner, scopes=shared)
    pages = {
        OWNER: (
            "home",
            "spawn",
            f"spawn/{at}",
            f"user/{at}/",
            "spawn?branch=desk-1/19a0000001",
        ),
        GUEST: ("home", "spawn", f"accept-share?code={code}"),
        STAFF: ("home", "spawn", "admin", "machines", "desktops/statistics", "token"),
    }
    watch = Watch()
    least = len(texts)
    for name, paths in pages.items():
        context = await browser.new_context()
        await watch.over(context, str(hub.url))
        page = await context.new_page()
        await log_in(hub, page, name)
        for path in paths:
            answer = await page.goto(f"{hub.url}{path}")
            # 424: of a desktop that does not run.
            assert answer is not None and answer.status in (200, 424), (path, answer)
            await page.wait_for_load_state("networkidle")
            await open_all(page)
            await watch.look(page)
            if name == OWNER and path in ("home", "spawn"):
                read = await page.evaluate("document.documentElement.textContent")
                least = min(least, sum(text in read for text in texts))
        await context.close()

    proof.note(
        done=f"{watch.pages} pages of the hub with {len(texts)} payloads as names, notes, machines, "
        "proposals, shares, groups, checkpoints, settings, runs, terms and announcements",
        found=f"{least} shown as text; {watch.describe()}",
        limit=f"{len(texts)} shown as text; 0 of each",
    )
    assert watch.troubles == {}
    assert least == len(texts)
