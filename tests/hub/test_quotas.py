"""Quotas: as an administrator writes them, and as a real hub keeps them."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hubs
import keeping
import pytest
from sqlalchemy import create_engine, text
from traitlets import TraitError

from qemuspawner.hub.admission.quotas import Quotas, parse_quotas
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Hours, Run, sum_hours
from qemuspawner.hub.spawner import QemuSpawner
from qemuspawner.paths import StatePaths

Start = Callable[..., Awaitable[hubs.Hub]]
MINI = {"machine": "mini", "cpus": 1, "memory": 128}
HOSTILE = "<img src=x onerror=document.title='ran'>\"'&"


async def start(hub: hubs.Hub, person: hubs.Person, server: str = "", **options: object) -> tuple[int, str]:
    """HTTP status and the hub's sentence."""
    answer = await hub.start(person, MINI | options, server_name=server)
    started = answer.status in (201, 202)
    return answer.status, "" if started else json.loads(answer.text)["message"]


async def rows_of(hub: hubs.Hub, person: hubs.Person, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    answer = await person.request("GET", hub.url / "api" / "users" / name / "quotas")
    assert answer.status == 200, answer.text
    return {(row["scope"], row["name"]): row for row in json.loads(answer.text)["quotas"]}


# What the administrator writes


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ([], "The quotas are '[]', which is not a table."),
        ({"usr": {}}, "There is no 'usr' in the quotas; there can be user, users, each_in_group, groups"),
        ({"user": {"cpu": 1}}, "There is no 'cpu' in the quotas in 'user'; there can be sessions, cpus"),
        ({"user": {"cpus": -1}}, "'cpus' in the quotas in 'user' is '-1': it is negative."),
        ({"user": {"cpus": 1.5}}, "'cpus' in the quotas in 'user' is '1.5': it is not a whole number."),
        ({"user": {"cpus": True}}, "'cpus' in the quotas in 'user' is 'True': it is not a number"),
        ({"user": {"cpu_hours": float("nan")}}, "'cpu_hours' in the quotas in 'user' is 'nan': it is not"),
        ({"user": {"gpus": 10**400}}, "it is more than 1000000000; None is for no limit."),
        ({"user": {"disk": 0}}, "'disk' in the quotas in 'user' is '0': it is at least 1 MiB"),
        ({"groups": {"lab": {"memory": "much"}}}, "'memory' in the quotas of 'lab' in 'groups' is 'much'"),
        ({"users": {1: {}}}, "The quotas in 'users' are '{1: {}}', which is not a table."),
        ({"window": "1 min"}, "'window' in the quotas is 1 min; it is from 1 h to 3660 d."),
        ({"window": "soon"}, "'window' in the quotas is 'soon': it is not of the form"),
    ],
)
def test_what_is_no_quota_is_refused_with_its_place(written: object, sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_quotas(written)

    assert sentence in str(refusal.value)


def test_a_spawner_is_not_made_with_such_quotas() -> None:
    with pytest.raises(TraitError, match="'cpus' in the quotas in 'user' is '-1': it is negative"):
        QemuSpawner(quotas={"user": {"cpus": -1}})


def limits_of(written: object, *groups: str, name: str = "alice") -> dict[str, float]:
    return parse_quotas(written).of_user(name, groups)


def test_the_most_generous_of_a_users_groups_counts_and_raises_the_default() -> None:
    written = {
        "user": {"cpus": 4, "sessions": 1},
        "each_in_group": {"staff": {"cpus": 8, "memory": "2 GiB"}, "lab": {"cpus": 16}, "small": {"cpus": 1}},
    }

    assert limits_of(written) == {"cpus": 4, "sessions": 1}
    assert limits_of(written, "small") == {"cpus": 4, "sessions": 1}
    assert limits_of(written, "small", "staff", "lab") == {"cpus": 16, "sessions": 1, "memory": 2048}


def test_what_is_said_of_a_user_by_name_counts_alone() -> None:
    written = {
        "user": {"cpus": 4, "sessions": 3},
        "users": {"alice": {"cpus": 2, "sessions": None}},
        "each_in_group": {"staff": {"cpus": 8}},
    }

    assert limits_of(written, "staff") == {"cpus": 2}
    assert limits_of(written, "staff", name="bob") == {"cpus": 8, "sessions": 3}


def test_a_group_without_a_limit_lifts_the_default() -> None:
    written = {"user": {"cpus": 4}, "each_in_group": {"staff": {"cpus": None}}}

    assert limits_of(written, "staff") == {}


def test_only_the_groups_of_a_user_count() -> None:
    quotas = parse_quotas({"groups": {"lab": {"gpus": 4, "cpus": None}, "other": {"gpus": 1}}})

    assert quotas.of_groups(["lab", "third"]) == {"lab": {"gpus": 4}}
    assert Quotas().of_groups(["lab"]) == {}


# Starts


async def test_the_refusal_names_the_quota_the_numbers_and_the_desktops(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"cpus": 3}})
    alice = await hub.log_in("alice")
    await start(hub, alice, cpus=2)

    status, sentence = await start(hub, alice, "desk", cpus=2)

    assert status == 409
    assert sentence == (
        "Quota 'CPUs' of 'alice': 2 of 3 are used; 2 more were asked for. "
        "It is used by your default desktop (2). "
        "Unless desktops are extended, enough is free in 1 h; choose less, or try again then."
    )
    assert (await start(hub, alice, "desk", cpus=1))[0] in (201, 202)


@pytest.mark.parametrize(
    ("limits", "options", "sentence"),
    [
        ({"sessions": 0}, {}, "Quota 'Desktops' of 'alice': 0 of 0 are used; 1 more was asked for."),
        (
            {"memory": "200 MiB"},
            {"memory": 256},
            "Quota 'Memory' of 'alice': 0 MiB of 200 MiB are used; 256 MiB",
        ),
        ({"cpu_hours": 0}, {}, "Quota 'CPU-hours' of 'alice': 0 h of 0 h are used within 30 d."),
    ],
)
async def test_a_desktop_beyond_a_quota_does_not_start(
    quick_hub: Start, limits: dict[str, object], options: dict[str, object], sentence: str
) -> None:
    hub = await quick_hub(quotas={"user": limits})
    alice = await hub.log_in("alice")

    status, said = await start(hub, alice, **options)

    assert status == 409
    assert said.startswith(sentence)
    assert hub.session_folders() == []


async def test_hours_of_gpus_are_for_desktops_with_one(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"gpu_hours": 0}})
    alice = await hub.log_in("alice")

    assert (await start(hub, alice))[0] in (201, 202)


async def test_a_group_counts_all_its_members_and_names_none_of_them(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"groups": {HOSTILE: {"cpus": 2}}})
    alice, bob, carol = [await hub.log_in(name) for name in ("alice", "bob", "carol")]
    for name in ("alice", "bob"):
        hub.user(name, groups=(HOSTILE,))
    await start(hub, alice, cpus=2)

    status, sentence = await start(hub, bob, cpus=1)
    outside = await start(hub, carol, cpus=2)

    assert status == 409
    assert sentence.startswith(
        f"Quota 'CPUs' of the group '{HOSTILE}': 2 of 2 are used; 1 more was asked for. "
        "It is used by other members (2)."
    )
    assert "alice" not in sentence
    assert outside[0] in (201, 202)


async def test_a_stop_frees_at_once(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"sessions": 1}})
    alice = await hub.log_in("alice")
    await start(hub, alice, "first")
    assert (await start(hub, alice, "second"))[0] == 409

    await hub.stop(alice, server_name="first")
    await hub.wait_until_stopped("alice", server_name="first")

    assert (await start(hub, alice, "second"))[0] in (201, 202)


async def test_a_start_that_fails_frees_at_once(standin: Start) -> None:
    hub = await standin("fail", quotas={"user": {"sessions": 1}})
    alice = await hub.log_in("alice")
    failed, _ = await start(hub, alice, "first")

    _, sentence = await start(hub, alice, "second")

    assert failed == 500
    # As far as the session, which fails again; the quota does not refuse it.
    assert "The host's disk is <full>." in sentence


async def test_a_desktop_that_wakes_counts(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"sessions": 1}})
    keeping.keep(hub, "alice", "asleep")
    alice = await hub.log_in("alice")
    await start(hub, alice)

    answer = await hub.start(alice, {"sleeping": "wake"}, server_name="asleep")

    assert answer.status == 409
    assert "Quota 'Desktops' of 'alice': 1 of 1 are used" in answer.text


async def test_administrators_have_quotas_too_and_what_they_start_is_its_owners(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"sessions": 1}})
    admin = await hub.log_in("admin", admin=True)
    hub.user("alice")
    assert (await start(hub, admin))[0] in (201, 202)

    own = await start(hub, admin, "second")
    for_alice = await hub.start(admin, MINI, owner="alice")

    assert own[0] == 409
    assert for_alice.status in (201, 202)


async def test_quotas_can_be_a_function_of_the_spawner(quick_hub: Start) -> None:
    hub = await quick_hub(
        quotas=lambda spawner: {"user": {"sessions": 0 if spawner.user.name == "bob" else 1}}
    )
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]

    assert (await start(hub, alice))[0] in (201, 202)
    assert (await start(hub, bob))[0] == 409


async def test_a_function_that_fails_refuses_starts_and_spares_the_pages(quick_hub: Start) -> None:
    hub = await quick_hub(quotas=lambda _spawner: {"user": "none"})
    alice = await hub.log_in("alice")

    status, sentence = await start(hub, alice)
    home = await alice.request("GET", hub.url / "home")

    assert status == 500
    assert sentence.startswith("The quotas of this hub cannot be read. Tell the administrator")
    assert home.status == 200


# The disk


async def test_the_disk_of_a_group_and_of_single_users_can_be_limited(quick_hub: Start) -> None:
    hub = await quick_hub(
        saved_quota="1 MiB",
        quotas={"users": {"alice": {"disk": "9 MiB"}}, "groups": {"lab": {"disk": "4 MiB"}}},
    )
    keeping.keep(hub, "alice", "kept", size=3)
    keeping.keep(hub, "bob", "kept", size=2)
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]
    first = await start(hub, alice)
    second = await start(hub, bob)
    hub.user("alice", groups=("lab",))
    hub.user("bob", groups=("lab",))

    third = await start(hub, alice, "other")
    rows = await rows_of(hub, alice, "alice")

    assert first[0] in (201, 202)
    assert second[1].startswith("Quota 'Saved desktops' of 'bob': 2 MiB of 1 MiB are used. Delete some")
    assert third[1].startswith("Quota 'Saved desktops' of the group 'lab': 5 MiB of 4 MiB are used.")
    assert rows["user", "disk"]["available"] == 6


# Hours


def write_run(records: Records, user: str, *, ago_s: float, lasted_s: float | None, **more: Any) -> None:
    begin = time.time() - ago_s
    values = {"session_id": "x", "server": "", "machine": "mini", "machine_name": "Mini", "node": "host"}
    run = Run(
        **values,
        user=user,
        started=begin,
        ready=begin,
        ended=None if lasted_s is None else begin + lasted_s,
        **({"cpus": 2, "memory_mib": 128, "seen": begin} | more),
    )
    with records.session() as session:
        session.add(run)


def test_hours_count_within_their_window_and_up_to_now(state_dir: Any) -> None:
    records = Records(StatePaths(root=state_dir))
    write_run(records, "alice", ago_s=7200, lasted_s=3600, gpus=1)
    # Half of it before the window; before it; another's; one that runs; one that was lost long ago.
    write_run(records, "alice", ago_s=10 * 3600 + 1800, lasted_s=3600)
    write_run(records, "alice", ago_s=30 * 3600, lasted_s=3600)
    write_run(records, "bob", ago_s=7200, lasted_s=3600)
    write_run(records, "alice", ago_s=3600, lasted_s=None, seen=time.time() - 30)
    write_run(records, "alice", ago_s=3600, lasted_s=None, seen=time.time() - 1800)

    alice = sum_hours(records, users=["alice"], window_s=10 * 3600)

    assert alice.cpu == pytest.approx(2 + 1 + 2 + 1, abs=0.01)
    assert alice.gpu == pytest.approx(1, abs=0.01)
    assert sum_hours(records, users=["carol"], window_s=3600) == Hours()
    assert sum_hours(records, users=None, window_s=10 * 3600).cpu == pytest.approx(8, abs=0.01)


async def test_who_has_used_up_their_hours_starts_nothing_until_they_are_over(quick_hub: Start) -> None:
    hub = await quick_hub(
        quotas={"user": {"cpu_hours": 2}, "groups": {"lab": {"cpu_hours": 5}}, "window": "1 d"}
    )
    records = Records(StatePaths(root=hub.state_dir))
    write_run(records, "alice", ago_s=7200, lasted_s=3600)
    write_run(records, "bob", ago_s=7200, lasted_s=3600 * 0.9)
    write_run(records, "bob", ago_s=3 * 86400, lasted_s=3600)
    alice, bob = [await hub.log_in(name) for name in ("alice", "bob")]

    refused = await start(hub, alice)
    started = await start(hub, bob)
    rows = await rows_of(hub, bob, "bob")

    assert refused[1].startswith("Quota 'CPU-hours' of 'alice': 2 h of 2 h are used within 1 d.")
    assert started[0] in (201, 202)
    assert rows["user", "cpu_hours"]["used"] == pytest.approx(1.8, abs=0.02)
    assert (rows["user", "cpu_hours"]["unit"], rows["user", "cpu_hours"]["window"]) == ("h", 86400)


def test_records_of_an_older_version_get_their_new_columns(state_dir: Any) -> None:
    paths = StatePaths(root=state_dir)
    with Records(paths).session():
        pass
    engine = create_engine(f"sqlite:///{paths.records}")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE runs DROP COLUMN gpus"))
    engine.dispose()

    records = Records(paths)
    write_run(records, "alice", ago_s=7200, lasted_s=3600)

    assert sum_hours(records, users=["alice"], window_s=86400).cpu == pytest.approx(2, abs=0.01)


# The route and the pages


async def test_quotas_are_told_to_their_user_and_to_administrators(quick_hub: Start) -> None:
    hub = await quick_hub(
        quotas={"user": {"sessions": 3, "memory": "1 GiB"}, "groups": {"lab": {"cpus": 4}}}, saved_quota=0
    )
    hub.user("alice", groups=("lab",))
    alice, bob = [await hub.with_token(name) for name in ("alice", "bob")]
    admin = await hub.with_token("admin", admin=True)
    await start(hub, alice, cpus=2)

    mine, same = await rows_of(hub, alice, "alice"), await rows_of(hub, admin, "alice")
    foreign = await bob.request("GET", hub.url / "api/users/alice/quotas")

    assert mine == same
    assert mine["user", "memory"] == {
        "name": "memory",
        "scope": "user",
        "limit": 1024,
        "used": 128,
        "available": 896,
        "unit": "MiB",
        "window": 0,
    }
    assert list(mine) == [("user", "sessions"), ("user", "memory"), ("group:lab", "cpus")]
    assert mine["group:lab", "cpus"]["available"] == 2
    assert foreign.status in (403, 404)


async def test_the_pages_show_the_quotas_and_no_name_becomes_a_tag(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"cpus": 4}, "groups": {HOSTILE: {"sessions": 1}}})
    alice = await hub.log_in("alice")
    hub.user("alice", groups=(HOSTILE,))
    await start(hub, alice, cpus=1)

    home = await alice.request("GET", hub.url / "home")
    form = await hub.get_form(alice, server_name="desk")

    for page in (home.text, form.text):
        table = page.partition('id="qs-quotas-title"')[2].partition("</section>")[0]
        assert "CPUs" in table
        assert "Used by your default desktop (1)" in table.replace("&#39;", "'")
        assert "of the group “&lt;img" in table
        assert "<img" not in table


async def test_the_form_shows_a_shortage_at_its_field_and_keeps_what_was_typed(quick_hub: Start) -> None:
    hub = await quick_hub(quotas={"user": {"cpus": 1}})
    alice = await hub.log_in("alice")
    await hub.get_form(alice)

    answer = await hub.submit_form(alice, machine="mini", cpus="2", memory="256", lifetime="1800")

    problem = answer.text.partition('id="qs-cpus-problem">')[2].partition("</div>")[0]
    assert "of 1 are used; 2 more were asked for." in problem
    assert '<option value="256" selected>' in answer.text
