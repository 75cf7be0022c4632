"""S6: whatever is posted is accepted or refused; nothing of it is a program's argument or a file's name."""

import contextlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import hubs
import nasty
import pytest
from hypothesis import strategies as st
from jupyterhub import apihandlers
from nasty import MARK, Post
from proofs import Proof
from tornado import web

from qemuspawner.hub.admission.gate import StartHandler
from qemuspawner.paths import session_id
from qemuspawner.session.web.routes import ROUTES

StartHub = Callable[..., Awaitable[hubs.Hub]]
STANDIN = Path(__file__).parent.parent / "hub" / "quick_standin.py"
COMMAND = [sys.executable, "-I", "-S", str(STANDIN)]

# A machine for which all that can be asked for is carried out.
CAPABLE = """
name = "Capable"
agent = true
home = "/home/user"
display = "virtio"
[image]
file = "disk.raw"
format = "raw"
[cpus]
default = 1
offered = [1, 2]
[memory]
default = "128 MiB"
offered = ["128 MiB", "256 MiB"]
[lifetime]
default = "1 h"
offered = ["1 h"]
max = "2 h"
[[presets]]
name = "Large"
cpus = 2
"""
FIELDS = {
    "cpus": ["1", "2"],
    "memory": ["128", "256 MiB"],
    "lifetime": ["3600", "1 h"],
    "kept_lifetime": ["1 h"],
    "name": ["Analysis", f"a,b=../{MARK}"],
    "notes": ["", f"-drive {MARK}\n$(touch {MARK})"],
    "keyboard": ["", "fr"],
    "resolution": ["", "1280x800"],
    "script": [f"#!/bin/sh\ntouch {MARK}\n"],
    "sleeping": ["discard"],
    **{name: [""] for name in ("gpu", "branch", "setting", "invite", "terms", "where", "partition")},
}
_BAD = {400, 413}


@pytest.fixture
def machines_dir(machines_dir: Path, state_dir: Path) -> Path:
    hubs.add_machine(machines_dir, state_dir, "capable")
    (machines_dir / "capable" / "machine.toml").write_text(CAPABLE)
    return machines_dir


@pytest.fixture
async def hub(start_hub: StartHub) -> hubs.Hub:
    """One whose sessions are there at once."""
    return await start_hub(cmd=COMMAND, scripts=True)


def find_files(hub: hubs.Hub) -> set[str]:
    """All that is where a hub or a session writes, and what is marked where a path leads out of there."""
    inside = [path for root in (hub.state_dir, hub.machines) for path in root.rglob("*")]
    around = [
        path for folder in ("/", "/tmp", ".", STANDIN.parent) for path in Path(folder).glob(f"*{MARK}*")
    ]
    return {str(path) for path in (*inside, *around) if path.suffix != ".sqlite-journal"}


async def settle(hub: hubs.Hub, name: str) -> bytes:
    """Wait for what somebody has started, and stop it; the command line that it had."""
    await hub.wait_until_ready(name)
    command = Path(f"/proc/{hub.spawner(name).pid}/cmdline").read_bytes()
    await hub.user(name).stop()
    return command


@pytest.mark.goal("S6")
async def test_a_form_is_accepted_or_refused(hub: hubs.Hub, proof: Proof) -> None:
    alice = await hub.log_in("alice")
    url = (hub.url / "spawn").with_query(_xsrf=alice.xsrf(hub.url / "spawn"))
    # As they are now: the answer to a body that cannot be read is a page for nobody, with another XSRF token.
    kept = alice.http.cookie_jar.filter_cookies(url)
    cookies = "; ".join(f"{cookie.key}={cookie.value}" for cookie in kept.values())
    chance = random.Random(6)
    count = proof.rounds(short=120, full=10_000)
    posts = [nasty.make_form(chance, FIELDS, {"machine": "capable"}) for _ in range(count)]
    await hub.start(alice, {"machine": "mini"})
    usual = await settle(hub, "alice")
    before = find_files(hub)
    answers: Counter[int] = Counter()
    odd: list[tuple[int, Post]] = []
    started: Counter[bytes] = Counter()

    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        for post in posts:
            headers = {"Cookie": cookies, "Content-Type": post.kind, "Sec-Fetch-Mode": "navigate"}
            async with http.post(url, data=post.body, headers=headers, allow_redirects=False) as answer:
                await answer.read()
            answers[answer.status] += 1
            if answer.status == 302:
                started[await settle(hub, "alice")] += 1
            elif answer.status not in _BAD:
                odd.append((answer.status, post))

    new = find_files(hub) - before
    proof.note(
        done=f"{len(posts)} posts to the form: fields unknown, doubled, huge or no text, and broken bodies",
        found=", ".join(f"{count} times {status}" for status, count in sorted(answers.items()))
        + f"; {started.total()} desktops with {len(started)} command line, {len(new)} files left",
        limit="302, 400, 413; 1 command line; 0 files",
    )
    assert odd == []
    assert [*started] == [usual]
    assert new == set()
    assert hub.session_folders() == []


@pytest.mark.goal("S6")
async def test_a_start_by_the_api_is_accepted_or_refused(hub: hubs.Hub, proof: Proof) -> None:
    alice = await hub.with_token("alice")
    url = hub.url / "api/users/alice/server"
    good = st.sampled_from([(name, value) for name, values in FIELDS.items() for value in values])
    bad = st.tuples(st.sampled_from(["machine", *FIELDS]) | nasty.texts, nasty.JSON)
    # Most have a machine: without one nothing else is looked at.
    options = st.lists(good | good | bad, max_size=4).map(lambda some: {"machine": "capable", **dict(some)})
    bodies = nasty.json_bodies(options.map(lambda one: {"user_options": one}) | nasty.JSON)
    await hub.start(alice, {"machine": "mini"})
    usual = await settle(hub, "alice")
    before = find_files(hub)
    answers: Counter[int] = Counter()
    odd: list[tuple[int, bytes]] = []
    started: Counter[bytes] = Counter()

    for body in (*nasty.HALF, *nasty.draw(bodies, proof.rounds(short=120, full=10_000))):
        headers = {"Content-Type": "application/json"}
        answer = await alice.request("POST", url, data=body, headers=headers)
        answers[answer.status] += 1
        if answer.status in (201, 202):
            started[await settle(hub, "alice")] += 1
        elif answer.status not in _BAD:
            odd.append((answer.status, body))

    new = find_files(hub) - before
    proof.note(
        done=f"{answers.total()} starts by the API, drawn by hypothesis",
        found=", ".join(f"{count} times {status}" for status, count in sorted(answers.items()))
        + f"; {started.total()} desktops with {len(started)} command line, {len(new)} files left",
        limit="201, 202, 400, 413; 1 command line; 0 files",
    )
    assert odd == []
    assert [*started] == [usual]
    assert new == set()
    assert hub.session_folders() == []


# What stands in the paths of our routes, for things that there are.
PLACES = {
    "users/([^/]+)": "users/alice",
    "machines/([^/]+)": "machines/capable",
    "versions/([0-9]{1,6})": "versions/1",
    "uploads/([^/]+)": "uploads/disk",
    "hosts/([^/]+)": "hosts/elsewhere",
    "announcements/([0-9]{1,18})": "announcements/1",
    "publications/([0-9]{1,9})": "publications/1",
    "settings/(.+)": "settings/mine",
    "favourites/(machine|proposal)/(.+)": "favourites/machine/capable",
    "favourites/(machine|proposal)": "favourites/machine",
    "saved/([0-9a-f]{20})/([0-9a-f]{6,20})": f"saved/{session_id('alice', '')}/abcdef",
    "saved/([0-9a-f]{20})": f"saved/{session_id('alice', '')}",
    **{
        f"{name}/([^/]*)": f"{name}/"
        for name in ("desktops", "desktop-shares", "desktop-people", "access-requests")
    },
}
# What is done where nothing is changed in it.
GOOD: dict[str, dict[str, object]] = {
    "announcements": {"text": "Maintenance"},
    "desktops/hosts/elsewhere/drain": {"reason": "Maintenance"},
    "users/alice/settings/mine": {"machine": "capable"},
    "users/alice/mails": {"wanted": True},
}


def find_routes() -> Iterator[tuple[str, str]]:
    """Method and path of each of our routes that takes a body."""
    for pattern, handler, *_ in apihandlers.default_handlers:
        if handler.__module__.startswith("qemuspawner.") and handler is not StartHandler:
            path = pattern.removeprefix("/api/")
            for place, known in PLACES.items():
                path = path.replace(place, known)
            yield from ((method, path) for method in find_methods(handler))


def find_methods(handler: type[web.RequestHandler]) -> list[str]:
    """Those of a route that change something."""
    unknown = web.RequestHandler._unimplemented_method
    methods = ("POST", "PUT", "PATCH", "DELETE")
    return [method for method in methods if getattr(handler, method.lower()) is not unknown]


@pytest.mark.goal("S6")
async def test_a_request_of_the_hubs_api_is_done_or_refused(hub: hubs.Hub, proof: Proof) -> None:
    """Every route of ours, by who may most."""
    admin = await hub.with_token("root", admin=True)
    hub.user("alice")
    # What was made is there for those that change it, and is deleted last.
    routes = sorted(find_routes(), key=lambda route: route[0] == "DELETE")
    known = sorted(
        {name for body in GOOD.values() for name in body}
        | {"name", "notes", "user", "group", "seconds", "machine"}
    )
    fields = st.dictionaries(st.sampled_from(known) | nasty.texts, nasty.JSON, max_size=2)
    count = proof.rounds(short=5, full=400)
    changes = nasty.draw(fields, count)
    broken = [*nasty.HALF, *nasty.draw(nasty.json_bodies(nasty.JSON), count // 5)]
    answers: Counter[int] = Counter()
    odd: list[tuple[int, str, str, str | bytes]] = []
    done: set[str] = set()

    for change in ({}, *changes, *broken):
        for method, path in routes:
            body = change if isinstance(change, bytes) else json.dumps({**GOOD.get(path, {}), **change})
            answer = await hub.ask(admin, method, path, data=body)
            answers[answer.status] += 1
            if answer.status < 300:
                done.add(path)
            elif answer.status >= 500:
                odd.append((answer.status, method, path, body))

    proof.note(
        done=f"{answers.total()} requests to {len(routes)} routes of the hub's API, by an administrator",
        found=", ".join(f"{count} times {status}" for status, count in sorted(answers.items())),
        limit="less than 500",
    )
    assert odd == []
    assert {*GOOD, "announcements/1", "announcements/1/acknowledgement"} <= done


@pytest.mark.goal("S6")
async def test_a_request_of_a_session_is_done_or_refused(start_hub: StartHub, proof: Proof) -> None:
    """Every route of a real one, by its owner, but for the one that ends it whatever it is sent."""
    hub = await start_hub(max_checkpoints=1)
    alice = await hub.with_token("alice")
    await hub.start(alice, {"machine": "mini"})
    desktop = await hub.wait_until_ready("alice")
    known = (
        "name",
        "notes",
        "text",
        "title",
        "user",
        "role",
        "seconds",
        "reason",
        "action",
        "act",
        "to",
        "keys",
    )
    bodies = nasty.json_bodies(st.dictionaries(st.sampled_from(known) | nasty.texts, nasty.JSON, max_size=4))
    routes = [
        (method, re.sub(r"\(.*\)", "abc", route.path))
        for route in ROUTES
        for method in find_methods(route.handler)
        if route.path != "api/suspend"
    ]
    answers: Counter[int] = Counter()
    odd: list[tuple[int, str, str, bytes]] = []

    for body in (*nasty.HALF, *nasty.draw(bodies, proof.rounds(short=3, full=200))):
        for method, path in routes:
            answer = await alice.request(method, desktop / path, data=body)
            answers[answer.status] += 1
            # 503: the machine has no guest agent, nor files.
            if answer.status >= 500 and answer.status != 503:
                odd.append((answer.status, method, path, body))

    proof.note(
        done=f"{answers.total()} requests to {len(routes)} routes of a session, by its owner",
        found=", ".join(f"{count} times {status}" for status, count in sorted(answers.items())),
        limit="less than 500, or 503",
    )
    assert odd == []
    assert (await alice.request("GET", desktop / "api/status")).status == 200


@pytest.mark.goal("S6")
async def test_no_program_is_given_what_was_typed(start_hub: StartHub, proof: Proof) -> None:
    """Neither QEMU nor its walls: of real sessions, whose user, server and texts all look like options."""
    hub = await start_hub()
    eve = await hub.log_in(f"eve,{MARK}=..")
    found = []
    names = [text for text in nasty.TEXTS if MARK in text and text.isprintable() and len(text) < 80]

    for name in names[: proof.rounds(short=2, full=len(names))]:
        answer = await hub.submit_form(eve, machine="mini", name=name, notes=f"-drive {MARK}\n{name}")
        assert answer.status == 302, answer.text
        await hub.wait_until_ready(eve.name)
        found += [command for command in find_commands() if MARK.encode() in command]
        await hub.user(eve.name).stop()

    proof.note(
        done=f"{len(names)} desktops with such names, notes and users, all processes of the host looked at",
        found=f"{len(found)} command lines with anything of that",
        limit="0",
    )
    assert found == []


def find_commands() -> Iterator[bytes]:
    """The command line of each process of the host."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_bytes()
