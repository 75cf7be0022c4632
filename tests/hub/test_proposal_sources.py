"""Sources of proposals: what they make of files, groups and answers that may be anything."""

import asyncio
import contextlib
import gzip
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from traitlets import TraitError

from qemuspawner.hub.proposals.groups import GroupProposals
from qemuspawner.hub.proposals.http import HttpProposals
from qemuspawner.hub.proposals.known import Answer, KnownProposals
from qemuspawner.hub.proposals.proposal import Asker, Proposal, make_all
from qemuspawner.hub.proposals.source import Loaded, ProposalSource, SourceError
from qemuspawner.hub.proposals.toml import TomlProposals
from qemuspawner.spec import DataFolder

ALICE = Asker(name="alice")
Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Reply], Awaitable[str]]

SCICAT = [
    {
        "proposalId": "20.500.12269/2026-01",
        "title": "Perovskites",
        "abstract": "Layers\nunder light",
        "startTime": "2026-03-01T09:00:00.000Z",
        "endTime": "2026-03-04T12:00:00Z",
        "ownerGroup": "p2026-01",
        "accessGroups": ["beam-7"],
        "pi_email": "pi@example.org",
    }
]
ICAT = {
    "data": [
        {
            "Investigation": {
                "name": "MX-2345",
                "title": "Lysozyme",
                "summary": None,
                "startDate": "2026-05-01T10:00:00+02:00",
                "endDate": "2026-05-02T10:00:00+02:00",
                "investigationUsers": [
                    {"user": {"name": "alice"}},
                    {"user": {"name": "bob"}},
                    {"user": None},
                ],
                "investigationInstruments": [{"instrument": {"name": "id23"}}],
            }
        }
    ]
}


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A web service that answers every request with `reply`; its URL."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(reply: Reply) -> str:
            app = web.Application()
            app.router.add_get("/{path:.*}", reply)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            return f"http://127.0.0.1:{runner.addresses[0][1]}"

        yield serve


def write(path: Path, text: str) -> TomlProposals:
    path.write_text(text)
    return TomlProposals(path=str(path))


async def refused(source: ProposalSource) -> str:
    with pytest.raises(SourceError) as caught:
        await source.load(ALICE)
    return caught.value.text


# The file


async def test_a_file_has_a_table_for_each_proposal(tmp_path: Path) -> None:
    source = write(
        tmp_path / "proposals.toml",
        """
        [20260101]
        title = "Perovskites"
        abstract = "Layers under light"
        starts = 2026-03-01
        ends = 2026-03-04T12:00:00
        members = ["alice"]
        groups = ["beam-7"]
        data = [
          { name = "raw", path = "/data/20260101" },
          { name = "work", path = "/scratch/x", read_only = false },
        ]
        """,
    )

    loaded = await source.load(ALICE)

    assert loaded == Loaded(
        proposals={
            "20260101": Proposal(
                id="20260101",
                title="Perovskites",
                abstract="Layers under light",
                starts=date(2026, 3, 1),
                ends=date(2026, 3, 4),
                members=frozenset({"alice"}),
                groups=frozenset({"beam-7"}),
                data=(
                    DataFolder(name="raw", path="/data/20260101"),
                    DataFolder(name="work", path="/scratch/x", read_only=False),
                ),
            )
        }
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("colour = 1", "there is no key 'colour'"),
        ("title = 1", "'title' is no text"),
        ("members = [1]", "'members' has an entry that is no name of 1 to 255 characters"),
        ("members = { a = 1 }", "'members' is not a list of names"),
        ("starts = 7", "'starts' is not a day such as 2026-03-31"),
        ("ends = 'soon'", "'ends' is not a day such as 2026-03-31"),
        ("starts = 2026-03-02\nends = 2026-03-01", "it ends on 2026-03-01, before it starts on 2026-03-02"),
        ("data = 'x'", "'data' is not a list of at most 16 tables"),
        (
            "data = [{ name = 'raw', path = '/data/../etc' }]",
            "'data' has the folder 'raw', whose 'path' is not an absolute and plain one",
        ),
        (
            "data = [{ name = 'raw', path = 'data' }]",
            "'data' has the folder 'raw', whose 'path' is not an absolute and plain one",
        ),
        (
            "data = [{ name = 'raw', path = '/a' }, { name = 'raw', path = '/b' }]",
            "'data' has two folders of the same name",
        ),
    ],
)
async def test_a_broken_entry_is_named_and_hides_no_other(tmp_path: Path, entry: str, reason: str) -> None:
    source = write(tmp_path / "proposals.toml", f"[good]\n[bad]\n{entry}\n[better]\n")

    loaded = await source.load(ALICE)

    assert list(loaded.proposals) == ["good", "better"]
    assert loaded.problems == (f"The proposal 'bad' is not offered: {reason}.",)


async def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    loaded = await write(tmp_path / "proposals.toml", "bad = 1\n[good]\n").load(ALICE)

    assert list(loaded.proposals) == ["good"]
    assert loaded.problems == ("The proposal 'bad' is not offered: it is not a table.",)


@pytest.mark.parametrize("text", ["[", "\xff", "a = " + "[" * 100_000, "# " + "x" * 9_000_000])
async def test_a_file_that_is_none_says_so_and_not_where_it_lies(tmp_path: Path, text: str) -> None:
    path = tmp_path / "proposals.toml"
    path.write_bytes(text.encode("latin-1"))

    assert (
        await refused(TomlProposals(path=str(path))) == "The list of proposals cannot be read at the moment."
    )


async def test_a_file_that_has_not_changed_is_not_parsed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form is shown often, and a large file takes a while."""
    source = write(tmp_path / "proposals.toml", "[7]\n")
    first = await source.load(ALICE)
    monkeypatch.setattr("tomllib.loads", lambda text: {})

    assert await source.load(ALICE) == first
    (tmp_path / "proposals.toml").write_text("[8]\n[9]\n")
    assert await source.load(ALICE) == Loaded()


# Groups of the hub


async def test_a_group_whose_name_matches_is_a_proposal() -> None:
    groups = {
        "proposal-7": {"title": "Perovskites", "ends": "2026-03-04", "members": ["eve"], "colour": "red"},
        "proposal-8": {},
        "students": {"title": "Not one"},
    }

    loaded = await GroupProposals().load(Asker(name="alice", groups=groups))

    assert loaded.proposals == {
        "7": Proposal(id="7", title="Perovskites", ends=date(2026, 3, 4), groups=frozenset({"proposal-7"})),
        "8": Proposal(id="8", title="8", groups=frozenset({"proposal-8"})),
    }


async def test_a_pattern_without_an_id_takes_the_whole_name() -> None:
    loaded = await GroupProposals(pattern="mx.*").load(Asker(name="alice", groups={"mx12": {}, "amx": {}}))

    assert list(loaded.proposals) == ["mx12"]


def test_a_pattern_that_is_none_is_refused_when_the_hub_starts() -> None:
    with pytest.raises(TraitError, match=r"pattern is '\('"):
        GroupProposals(pattern="(")


# The web


async def test_scicat_is_read_as_it_answers(serve: Serve, tmp_path: Path) -> None:
    asked: list[web.Request] = []

    async def reply(request: web.Request) -> web.Response:
        asked.append(request)
        return web.json_response(SCICAT)

    (tmp_path / "token").write_text("s3cret\n")
    source = HttpProposals(
        url=await serve(reply) + "/api/v3/proposals",
        token_file=str(tmp_path / "token"),
        data=[{"name": "raw", "path": "/data/{id}/raw"}, {"name": "own", "path": "/p/{ownerGroup}"}],
    )

    loaded = await source.load(ALICE)

    assert asked[0].headers["Authorization"] == "Bearer s3cret"
    assert loaded == Loaded(
        proposals={
            "20.500.12269/2026-01": Proposal(
                id="20.500.12269/2026-01",
                title="Perovskites",
                abstract="Layers under light",
                starts=date(2026, 3, 1),
                ends=date(2026, 3, 4),
                groups=frozenset({"p2026-01", "beam-7"}),
                data=(
                    DataFolder(name="raw", path="/data/20.500.12269/2026-01/raw"),
                    DataFolder(name="own", path="/p/p2026-01"),
                ),
            )
        }
    )


async def test_fields_can_lie_anywhere_as_in_icat(serve: Serve) -> None:
    async def reply(request: web.Request) -> web.Response:
        return web.json_response(ICAT)

    at = "Investigation."
    fields = {
        "id": at + "name",
        "title": at + "title",
        "abstract": at + "summary",
        "starts": at + "startDate",
        "members": at + "investigationUsers.user.name",
        "groups": [at + "missing", at + "investigationInstruments.instrument.name"],
    }

    loaded = await HttpProposals(url=await serve(reply), entries="data", fields=fields).load(ALICE)

    assert loaded.proposals == {
        "MX-2345": Proposal(
            id="MX-2345",
            title="Lysozyme",
            starts=date(2026, 5, 1),
            members=frozenset({"alice", "bob"}),
            groups=frozenset({"id23"}),
        )
    }


async def test_a_list_of_ones_own_is_asked_for_by_name(serve: Serve) -> None:
    """And whatever is in it is theirs."""
    asked = []

    async def reply(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.json_response([{"proposalId": 7}])

    source = HttpProposals(url=await serve(reply) + "/users/{username}/proposals")

    loaded = await source.load(Asker(name="al/ice?&é"))

    assert asked == ["/users/al%2Fice%3F%26%C3%A9/proposals"]
    assert loaded.proposals["7"].members == {"al/ice?&é"}


@pytest.mark.parametrize(
    "value", ["../../etc", "a/../../b", "/etc", "", ".", "a//b", "a\x00b", None, ["a"], {"a": 1}]
)
async def test_no_value_leads_out_of_the_folder_of_a_template(serve: Serve, value: Any) -> None:
    async def reply(request: web.Request) -> web.Response:
        return web.json_response([{"proposalId": "good", "at": "x"}, {"proposalId": "bad", "at": value}])

    source = HttpProposals(url=await serve(reply), data=[{"name": "raw", "path": "/data/{at}"}])

    loaded = await source.load(ALICE)

    assert list(loaded.proposals) == ["good"]
    assert loaded.problems == (
        "The proposal number 2 is not offered: its 'at' cannot be part of the path of a folder.",
    )


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


READ = "The list of proposals cannot be read from its source: "


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"", "its answer is no JSON"),
        (200, b"<html>Sign in</html>", "its answer is no JSON"),
        (200, b"\xff\xfe\x00", "its answer is no JSON"),
        (200, nested(1_000_000), "its answer is no JSON"),
        (200, b'{"error": "x"}', "its answer has no list of proposals"),
        (200, b"null", "its answer has no list of proposals"),
        (503, b"[]", "it answers with the HTTP status 503"),
        (302, b"[]", "it answers with the HTTP status 302"),
        (200, b" " * 9 * 1024 * 1024 + b"[]", "its answer has more than 8 MiB"),
        (200, b"[" + b"1," * 3_000_000 + b"1]", "its answer has more than 50000 of them"),
    ],
)
async def test_an_answer_that_is_none_is_said(serve: Serve, status: int, body: bytes, why: str) -> None:
    async def reply(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/elsewhere"})

    assert await refused(HttpProposals(url=await serve(reply))) == f"{READ}{why}."


async def test_entries_of_any_kind_are_named_and_hide_no_other(serve: Serve) -> None:
    async def reply(request: web.Request) -> web.Response:
        deep = json.loads(nested(200))
        return web.json_response([1, {}, {"proposalId": deep}, {"proposalId": "x" * 200}, *SCICAT, *SCICAT])

    loaded = await HttpProposals(url=await serve(reply)).load(ALICE)

    assert list(loaded.proposals) == ["20.500.12269/2026-01"]
    assert [problem.partition(" is not")[0] for problem in loaded.problems] == [
        "The proposal number 1",
        "The proposal number 1",
        "The proposal number 2",
        "The proposal number 3",
        "The proposal '20.500.12269/2026-01'",
    ]


async def test_a_compressed_answer_is_not_unpacked(serve: Serve) -> None:
    """A megabyte of it could be a gigabyte."""

    async def reply(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b" " * 100_000_000), headers={"Content-Encoding": "gzip"})

    assert await refused(HttpProposals(url=await serve(reply))) == (
        f"{READ}its answer is compressed, which was not asked for."
    )


async def test_an_answer_without_an_end_is_left_at_the_bound(serve: Serve) -> None:
    """100 MB that come piece by piece, without a length."""
    sent = 0

    async def reply(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(b" " * 1_000_000)
            sent += 1
        return response

    assert await refused(HttpProposals(url=await serve(reply))) == f"{READ}its answer has more than 8 MiB."
    assert sent < 50


async def test_a_source_that_is_slow_or_down_is_said(serve: Serve) -> None:
    async def reply(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    slow = HttpProposals(url=await serve(reply), timeout=1)
    down = HttpProposals(url="http://127.0.0.1:1")

    assert await refused(slow) == f"{READ}it does not answer within 1 s."
    assert await refused(down) == f"{READ}it cannot be reached."


async def test_a_token_that_cannot_be_read_is_said(serve: Serve, tmp_path: Path) -> None:
    source = HttpProposals(url="http://127.0.0.1:1", token_file=str(tmp_path / "missing"))

    assert await refused(source) == f"{READ}it cannot be reached."


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"url": "file:///etc/passwd"}, "it begins with 'https://'"),
        ({"fields": {"title": "title"}}, "fields has no 'id'"),
        ({"fields": {"id": "x", "colour": "y"}}, "fields has the key 'colour'"),
        ({"fields": {"id": 7}}, "it is a dotted path"),
        ({"data": [{"name": "raw", "path": "{id}"}]}, "'path' begins with a folder"),
        ({"data": [{"name": "raw", "path": "/data/{id!r}"}]}, "just a name"),
        ({"data": [{"name": "raw", "path": "/data/{id:9}"}]}, "just a name"),
        ({"data": [{"name": "raw", "path": "/data{id}"}]}, "'path' begins with a folder"),
        ({"data": [{"name": "/", "path": "/data/{id}"}]}, "without 'name'"),
        ({"cache": "soon"}, "cache is 'soon'"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_hub_starts(traits: dict[str, Any], said: str) -> None:
    with pytest.raises(TraitError, match=said):
        HttpProposals(**traits)


# Entries of any kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.dates() | st.datetimes()
        for name in ("id", "title", "abstract", "starts", "ends", "members", "groups", "data")
    },
)


@given(st.lists(ENTRY, max_size=4))
def test_every_entry_is_a_proposal_or_a_problem(entries: list[dict[str, Any]]) -> None:
    proposals, problems = make_all(entries)

    assert len(proposals) + len(problems) == len(entries)
    assert all(proposal.title.replace("\u200d", "").isprintable() for proposal in proposals.values())


def test_texts_are_cut_and_cannot_command_a_page() -> None:
    entry = {"id": "7", "title": "a\u202eb\x1b[2J\n" + "é" * 10_000, "abstract": "x" * 10_000_000}

    [proposal] = make_all([entry])[0].values()

    assert proposal.title == "a b [2J " + "é" * 291 + "…"
    assert len(proposal.abstract) == 4000


# What is known


class Scripted(ProposalSource):
    """A site's own source: each load does what is next in `plan`."""

    def __init__(self, *plan: Any, **traits: Any) -> None:
        super().__init__(**traits)
        self.plan = list(plan)
        self.asked = 0

    async def load(self, asker: Asker) -> Loaded:
        self.asked += 1
        step = self.plan.pop(0)
        if isinstance(step, asyncio.Event):
            await step.wait()
            return one("late")
        if isinstance(step, Exception):
            raise step
        return one(step)


def one(title: str) -> Loaded:
    return Loaded(proposals={"7": Proposal(id="7", title=title, members=frozenset({"alice"}))})


def titles(answer: Answer) -> list[str]:
    return [proposal.title for proposal in answer.loaded.proposals.values()] if answer.loaded else []


async def test_an_answer_is_believed_for_a_while() -> None:
    source = Scripted("first", "second")
    known = KnownProposals(source)

    answers = [await known.ask(ALICE, wait_s=1) for _ in range(3)]

    assert [titles(answer) for answer in answers] == [["first"]] * 3
    assert source.asked == 1


async def test_many_who_ask_are_one_question() -> None:
    event = asyncio.Event()
    source = Scripted(event)
    known = KnownProposals(source)

    asking = [asyncio.create_task(known.ask(ALICE, wait_s=60)) for _ in range(20)]
    await asyncio.sleep(0)
    event.set()

    assert [titles(await asked) for asked in asking] == [["late"]] * 20
    assert source.asked == 1


async def test_what_comes_too_late_is_there_the_next_time() -> None:
    event = asyncio.Event()
    known = KnownProposals(Scripted(event))

    slow = await known.ask(ALICE, wait_s=0.01)
    event.set()
    later = await known.ask(ALICE, wait_s=60)

    assert slow == Answer(loaded=None, note="The source of the proposals is slow, and has not answered yet.")
    assert (titles(later), later.note) == (["late"], "")


async def test_a_load_that_has_been_slow_is_not_waited_for_again() -> None:
    """A page may ask twice, and the next one need not wait as long as the first."""
    clock = [1000.0]
    known = KnownProposals(Scripted(asyncio.Event()), now=lambda: clock[0])
    await known.ask(ALICE, wait_s=0.01)

    clock[0] += 3600
    async with asyncio.timeout(60):
        answer = await known.ask(ALICE, wait_s=3600)

    assert answer.loaded is None


async def test_the_last_answer_is_used_while_the_source_fails() -> None:
    clock = [1000.0]
    source = Scripted(
        "first", SourceError("It is down."), RuntimeError("secret"), "new", cache=60, stale=3600
    )
    known = KnownProposals(source, now=lambda: clock[0])
    await known.ask(ALICE, wait_s=1)

    clock[0] += 120
    down = await known.ask(ALICE, wait_s=1)
    again = await known.ask(ALICE, wait_s=1)
    asked = source.asked
    clock[0] += 10
    broken = await known.ask(ALICE, wait_s=1)
    clock[0] += 10
    better = await known.ask(ALICE, wait_s=1)

    assert down == again
    assert (titles(down), down.note) == (
        ["first"],
        "It is down. What is shown is what it said 2 min ago.",
    )
    assert asked == 2, "a source that has just failed is left alone"
    assert titles(broken) == ["first"]
    assert "secret" not in broken.note
    assert (titles(better), better.note) == (["new"], "")


async def test_an_old_answer_is_not_used_for_ever() -> None:
    clock = [1000.0]
    known = KnownProposals(
        Scripted("first", SourceError("It is down."), cache=60, stale=3600), now=lambda: clock[0]
    )
    await known.ask(ALICE, wait_s=1)

    clock[0] += 3661

    assert await known.ask(ALICE, wait_s=1) == Answer(loaded=None, note="It is down.")


async def test_what_is_kept_apart_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qemuspawner.hub.proposals.known._MAX_KEYS", 2)

    class Own(Scripted):
        def key(self, asker: Asker) -> str:
            return asker.name

    source = Own(*"abcd")
    known = KnownProposals(source)

    for name in ("alice", "bob", "carol", "alice"):
        await known.ask(Asker(name=name), wait_s=1)

    assert source.asked == 4


async def test_a_file_that_was_changed_shows_at_once(tmp_path: Path) -> None:
    """Also one that was broken before."""
    path = tmp_path / "proposals.toml"
    known = KnownProposals(write(path, "[7]\ntitle = 'first'\n"))
    first = await known.ask(ALICE, wait_s=60)
    path.write_text("[")
    broken = await known.ask(ALICE, wait_s=60)
    path.write_text("[7]\ntitle = 'second'\n")
    os.utime(path, (0, 0))
    second = await known.ask(ALICE, wait_s=60)

    assert [titles(answer) for answer in (first, broken, second)] == [["first"], ["first"], ["second"]]
    assert broken.note.startswith("The list of proposals cannot be read at the moment. What is shown is")
