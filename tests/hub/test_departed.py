"""What the hub has noted about a user goes with them, and nobody else's does."""

import hubs
import pytest
from sqlalchemy import select

from qemuspawner.hub.departed import find_noted_users
from qemuspawner.hub.form.favourites import list_favourites
from qemuspawner.hub.form.settings import list_settings, save_setting
from qemuspawner.hub.form.terms import accept, has_accepted
from qemuspawner.hub.notices.announcements import acknowledge, add_announcement, list_announcements
from qemuspawner.hub.notices.no_mail import set_wants_mail, wants_mail
from qemuspawner.hub.records import Records
from qemuspawner.hub.runs.runs import Run
from qemuspawner.hub.runs.upkeep import keep_up
from qemuspawner.paths import StatePaths


@pytest.fixture
async def records(hub: hubs.Hub) -> Records:
    """Both alice and bob have something in each table."""
    records = Records(StatePaths(root=hub.state_dir))
    announcement = add_announcement(
        records, "Read this.", level="info", begins=0, ends=None, must_acknowledge=True, by="admin"
    )
    for name in ("alice", "bob"):
        person = await hub.log_in(name)
        favourite = hub.url / "api/users" / name / "favourites/machine/mini"
        answer = await person.request("PUT", favourite, headers={"X-XSRFToken": person.xsrf(favourite)})
        assert answer.status == 204, answer.text
        save_setting(records, user=name, name="mine", options={"machine": "mini"})
        accept(records, user=name, version="1")
        acknowledge(records, announcement, name)
        set_wants_mail(records, name, wanted=False)
        await hub.start(person, {"machine": "mini"})
        await hub.wait_until_ready(name)
        await hub.stop(person)
        await hub.wait_until_stopped(name)
    return records


async def test_nothing_but_the_runs_of_a_deleted_user_is_left(hub: hubs.Hub, records: Records) -> None:
    admin = await hub.with_token("root", admin=True)
    upkeep = keep_up(hub.spawner("bob"))
    await upkeep.tend()
    assert find_noted_users(records) == {"alice", "bob"}

    assert (await hub.ask(admin, "DELETE", "users/alice")).status == 204
    await upkeep.tend()

    assert find_noted_users(records) == {"bob"}
    with records.session() as session:
        assert sorted(session.scalars(select(Run.user))) == ["alice", "bob"]


async def test_who_gets_the_name_next_finds_nothing(hub: hubs.Hub, records: Records) -> None:
    admin = await hub.with_token("root", admin=True)
    await hub.ask(admin, "DELETE", "users/alice")
    await keep_up(hub.spawner("bob")).tend()

    hub.user("alice")

    assert list_favourites(records, user="alice", kind="machine") == []
    assert list_settings(records, user="alice") == {}
    assert not has_accepted(records, user="alice", version="1")
    assert wants_mail(records, "alice")
    assert [count for _, count in list_announcements(records)] == [1]
    assert list_favourites(records, user="bob", kind="machine") == ["mini"]
    assert has_accepted(records, user="bob", version="1")
