"""Start, follow and stop a session; a stand-in takes the session's place."""

import asyncio
import json
import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import hubs
import pytest
from jupyterhub import orm
from sqlalchemy import inspect

from qemuspawner.hub.sessions.process import KnownProcess
from qemuspawner.machine import Allow
from qemuspawner.paths import session_id
from qemuspawner.spec import SPEC_VARIABLE, SessionSpec

StartHub = Callable[..., Awaitable[hubs.Hub]]


def saved_state(hub: hubs.Hub, user: str, server_name: str = "") -> dict[str, Any]:
    """The state as another process would read it from the database."""
    with hub.app.session_factory() as database:
        orm_user = database.query(orm.User).filter_by(name=user).one()
        state: dict[str, Any] = orm_user.orm_spawners[server_name].state or {}
        return state


def server_tokens(hub: hubs.Hub) -> list[str]:
    with hub.app.session_factory() as database:
        notes = [token.note for token in database.query(orm.APIToken)]
    return [note for note in notes if note and note.startswith("Server at ")]


async def environment(hub: hubs.Hub, person: hubs.Person, server_name: str = "") -> Any:
    """What the stand-in says about its process."""
    url = await hub.wait_until_ready(person.name, server_name=server_name)
    return json.loads((await person.request("GET", url / "environment")).text)


async def test_start_by_api_gives_the_session_its_specification(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"cpus": 2, "memory": "256 MiB", "lifetime": "90 min"})
    process = await environment(hub, alice)

    assert answer.status in (201, 202)
    spec = SessionSpec.from_json(process["env"][SPEC_VARIABLE])
    assert (spec.user, spec.cpus, spec.memory_mib, spec.lifetime_s) == ("alice", 2, 256, 5400)
    assert (spec.machine.id, spec.max_lifetime_s) == ("mini", 7200)
    assert spec.session_id == session_id("alice", "")


async def test_a_start_without_options_takes_the_last_ones(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"cpus": 2})
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    await hub.start(alice)
    process = await environment(hub, alice)

    assert SessionSpec.from_json(process["env"][SPEC_VARIABLE]).cpus == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cpus": "2,a=b"}, "The option 'cpus' is '2,a=b' (it is not a whole number); 'Mini' offers 1 or 2."),
        ({"cpus": [1]}, "The option 'cpus' is '[1]' (it is not a whole number); 'Mini' offers 1 or 2."),
        ({"memory": -1}, "The option 'memory' is '-1' (it is negative); 'Mini' offers 128 MiB or 256 MiB."),
        ({"lifetime": "1 w"}, "The option 'lifetime' is '1 w'; 'Mini' lasts from 1 min to 2 h."),
        ({"machine": "../mini"}, "The option 'machine' is '../mini', which is not one of 'mini'."),
        ({"machine": None}, "The option 'machine' is 'None', which is not one of 'mini'."),
        (
            {"prologue": "rm -rf"},
            "There is no option 'prologue'; the options are machine, preset, cpus, memory, gpu, lifetime, "
            "where, partition, reservation, name, notes, keyboard, resolution, script, proposal, sleeping, "
            "branch, invite, terms and setting.",
        ),
    ],
)  # fmt: skip
async def test_a_bad_option_is_refused_and_leaves_nothing(
    hub: hubs.Hub, options: dict[str, object], sentence: str
) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, options)

    assert (answer.status, json.loads(answer.text)["message"]) == (400, sentence)
    assert (hub.spawner("alice").pid, hub.session_folders()) == (0, [])
    assert not hub.spawner("alice").active


async def test_a_megabyte_of_option_is_refused_in_a_short_sentence(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"machine": "x" * 1_000_000, "cpus": "9" * 1_000_000})

    assert answer.status == 400
    assert len(json.loads(answer.text)["message"]) < 400


async def test_refused_options_do_not_poison_the_next_start(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice, {"cpus": 99})

    answer = await hub.start(alice)

    assert answer.status in (201, 202)


async def test_options_stored_unchecked_by_the_api_are_checked_at_the_start(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    server = hub.url / "api/users/alice/servers/second"
    await alice.request("PUT", server, json={"user_options": {"cpus": 99}})

    refused = await hub.start(alice, server_name="second")
    started = await hub.start(alice, server_name="second")

    assert (refused.status, started.status) == (400, 201)


async def test_named_servers_are_sessions_of_their_own(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")

    await hub.start(alice)
    await hub.start(alice, server_name="second")
    await hub.wait_until_ready("alice")
    await hub.wait_until_ready("alice", server_name="second")

    assert hub.session_folders() == sorted([session_id("alice", ""), session_id("alice", "second")])


async def test_the_session_listens_where_the_hub_has_listened_before(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another account of the host could take the port first, and be told the server's token."""
    alice = await hub.with_token("alice")
    seen: dict[str, Any] = {}

    def popen(_cmd: object, *, pass_fds: tuple[int], env: dict[str, str], **_kwargs: object) -> None:
        inherited = socket.socket(fileno=os.dup(pass_fds[0]))
        seen["listens"] = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        seen["port"] = inherited.getsockname()[1]
        inherited.close()
        seen["env"] = env
        seen["pass_fds"] = pass_fds
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr("jupyterhub.spawner.Popen", popen)
        await hub.start(alice)

    assert seen["listens"] == 1
    assert seen["env"]["JUPYTERHUB_SERVICE_URL"].startswith(f"http://127.0.0.1:{seen['port']}/")
    assert seen["env"]["QEMUSPAWNER_LISTEN_FD"] == str(seen["pass_fds"][0])


async def test_nobody_listens_at_the_port_of_a_session_that_ended(hub: hubs.Hub) -> None:
    """The hub keeps no copy of the socket, and passes it to one process only."""
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")
    spawner = hub.spawner("alice")
    port = spawner.port

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    assert spawner.popen_kwargs == {"cwd": "/"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


async def test_an_address_that_cannot_be_listened_at_is_told_to_the_user(standin: StartHub) -> None:
    hub = await standin(ip="192.0.2.1")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice)

    assert answer.status == 500
    assert "cannot be started: Cannot assign requested address." in answer.text


async def test_who_may_start_a_machine_is_not_given_to_its_session(hub: hubs.Hub) -> None:
    """An environment variable is at most 128 KiB; such a list was longer."""
    users = ["alice", *(f"user-{number:026}" for number in range(6000))]
    hubs.add_machine(hub.machines, hub.state_dir, "course", more=f"[allow]\nusers = {json.dumps(users)}\n")
    alice = await hub.with_token("alice")

    await hub.start(alice, {"machine": "course"})
    process = await environment(hub, alice)

    assert SessionSpec.from_json(process["env"][SPEC_VARIABLE]).machine.allow == Allow()


async def test_a_machine_that_is_too_long_for_a_session_is_refused_in_a_sentence(hub: hubs.Hub) -> None:
    ports = "".join(f"{'x' * 190}-{number} = 80\n" for number in range(1000))
    hubs.add_machine(hub.machines, hub.state_dir, "novel", more=f"[ports]\n{ports}")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice, {"machine": "novel"})

    assert answer.status == 500
    assert json.loads(answer.text)["message"] == (
        "The text of the machine 'novel' is longer than the 120 KiB that can be given to a session. "
        "The administrator shortens its machine.toml."
    )


async def test_sessions_run_as_their_account(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice)

    process = await environment(hub, alice)

    account = hubs.sessions_account()
    uid = pwd.getpwnam(account).pw_uid if account else os.getuid()
    assert (process["uid"], process["cwd"]) == (uid, "/")
    assert 0 not in process["groups"] or uid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs sessions as each user's account")
async def test_with_an_account_for_each_user_nobody_keeps_another_out(standin: StartHub) -> None:
    hub = await standin(run_as="{username}")
    folder = hub.state_dir / "sessions" / session_id("nobody", "")
    folder.mkdir(parents=True)
    nobody = await hub.with_token("nobody")

    await hub.start(nobody)
    process = await environment(hub, nobody)

    uid = pwd.getpwnam("nobody").pw_uid
    assert (process["uid"], folder.stat().st_uid) == (uid, uid)


async def test_the_state_says_who_the_process_is(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")

    state = saved_state(hub, "alice")

    known = KnownProcess.from_state(state)
    assert known is not None
    assert known.alive
    assert (state["session_id"], state["machine"]) == (session_id("alice", ""), "mini")
    # Extending moves the deadline without the hub: what was promised has the one that is known.
    assert set(state) == {
        *("pid", "start_time", "boot_id"),
        *("session_id", "machine", "cpus", "memory_mib", "node", "run", "token", "proposal", "promise"),
        "where",
    }


async def test_after_the_stop_nothing_is_left(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    assert (saved_state(hub, "alice"), server_tokens(hub), hub.session_folders()) == ({}, [], [])


async def test_a_session_that_listens_to_nothing_polite_is_killed(standin: StartHub) -> None:
    hub = await standin("deaf", interrupt_timeout=1, term_timeout=1)
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")
    known = KnownProcess.from_state(saved_state(hub, "alice"))

    await hub.stop(alice)
    await hub.wait_until_stopped("alice")

    assert known is not None
    assert not known.alive


# A hub that is killed and started again has no more than the saved state.


def forget(hub: hubs.Hub, user: str) -> Any:
    """The spawner as a new hub makes it from the database."""
    hub_user = hub.user(user)
    del hub_user.spawners[""]
    inspect(hub_user.orm_user).session.expire_all()
    return hub_user.spawners[""]


async def test_the_state_is_saved_before_the_process_is_there(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = await hub.with_token("alice")
    seen = {}

    def popen(*_args: object, **_kwargs: object) -> None:
        seen.update(saved_state(hub, "alice"))
        with hub.app.session_factory() as database:
            [server] = database.query(orm.Spawner).filter(orm.Spawner.server != None)  # noqa: E711
            seen["port"] = server.server.port
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("jupyterhub.spawner.Popen", popen)
    answer = await hub.start(alice)

    assert (seen["session_id"], seen["starting"]) == (session_id("alice", ""), True)
    assert seen["port"] > 0
    assert "pid" not in seen
    assert answer.status == 500
    assert "cannot be started: No such file or directory." in answer.text


async def test_the_state_is_saved_while_the_start_goes_on(standin: StartHub) -> None:
    hub = await standin("hang")
    alice = await hub.log_in("alice")

    await hub.submit_form(alice, machine="mini")
    state = saved_state(hub, "alice")

    known = KnownProcess.from_state(state)
    assert known is not None
    assert known.alive
    assert state["starting"] is True


async def test_a_restarted_hub_knows_the_session_by_its_pid(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")
    known = KnownProcess.from_state(saved_state(hub, "alice"))
    assert known is not None

    spawner = forget(hub, "alice")

    assert await spawner.poll() is None
    await spawner.stop()
    assert not known.alive


async def test_a_restarted_hub_knows_the_session_by_its_lock(hub: hubs.Hub) -> None:
    """The hub was killed after the start of the process and before its pid was saved."""
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")
    orm_spawner = hub.spawner("alice").orm_spawner
    pid = hub.spawner("alice").pid
    orm_spawner.state = {"session_id": session_id("alice", ""), "starting": True}
    inspect(orm_spawner).session.commit()

    spawner = forget(hub, "alice")

    assert await spawner.poll() is None
    assert spawner.pid == pid
    assert saved_state(hub, "alice")["pid"] == pid


@pytest.mark.parametrize("kind", ["somebody else's process", "no process"])
async def test_only_a_process_of_the_account_is_taken_for_the_session(
    hub: hubs.Hub, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A stop would signal whoever it is, as root."""
    spawner = hub.spawner("alice")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        holder = bystander.pid if kind == "somebody else's process" else -1
        monkeypatch.setattr("qemuspawner.hub.spawner.find_owner", lambda _paths: holder)
        # Root's tests run sessions as another account already.
        stranger = pwd.struct_passwd(("stranger", "x", os.getuid() + 1, 0, "", "/", "/bin/sh"))
        monkeypatch.setattr(spawner, "_account", lambda: stranger)
        spawner.load_state({"session_id": spawner.session_id, "starting": True})

        status = await spawner.poll()
        await spawner.stop()

        assert (status, bystander.poll()) == (0, None)
        bystander.kill()


async def test_a_restarted_hub_waits_for_a_desktop_that_was_starting(standin: StartHub) -> None:
    hub = await standin("slow")
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")
    first = hub.spawner("alice")._spawn_future

    spawner = forget(hub, "alice")
    status = await spawner.poll()

    assert status is None
    answer = await alice.request("GET", spawner.server.url + "api")
    assert answer.status == 200
    # A killed hub takes its waiting start with it; in this one it must end before the clean-up.
    await asyncio.wait([first], timeout=30)


async def test_a_recycled_pid_is_not_killed(hub: hubs.Hub) -> None:
    """After a reboot the saved pid may be anybody's."""
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")
    await hub.stop(alice)
    await hub.wait_until_stopped("alice")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        spawner = hub.spawner("alice")
        known = KnownProcess.find(bystander.pid)
        assert known is not None
        spawner.load_state({**known.state(), "boot_id": "the one before", "session_id": spawner.session_id})

        status = await spawner.poll()
        await spawner.stop()

        assert (status, bystander.poll()) == (0, None)
        bystander.kill()


# Tokens


async def test_the_servers_token_may_only_be_used_with_the_server(hub: hubs.Hub) -> None:
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")

    token = orm.APIToken.find(hub.app.db, hub.spawner("alice").api_token)

    assert token is not None
    # What everybody may of an own server's shares; a hub that allows sharing gives more.
    assert sorted(token.scopes) == [
        "access:servers!server=alice/",
        "read:shares!server=alice/",
        "read:users:name!user=alice",
        "users:activity!user",
        "users:shares!server=alice/",
    ]


async def test_a_session_that_ended_by_itself_leaves_no_token(standin: StartHub) -> None:
    hub = await standin(poll_interval=1)
    alice = await hub.with_token("alice")
    await hub.start(alice)
    await hub.wait_until_ready("alice")

    os.kill(hub.spawner("alice").pid, signal.SIGTERM)
    await hub.wait_until_stopped("alice", timeout_s=20)

    assert server_tokens(hub) == []


async def test_a_token_that_a_killed_hub_forgot_is_deleted_at_the_next_start(hub: hubs.Hub) -> None:
    user = hub.user("alice")
    user.new_api_token(note=f"Server at {user.base_url}")
    user.new_api_token(note="my own")
    alice = await hub.with_token("alice")

    await hub.start(alice)
    await hub.wait_until_ready("alice")

    assert len(server_tokens(hub)) == 1
    with hub.app.session_factory() as database:
        assert "my own" in [token.note for token in database.query(orm.APIToken)]


# Failures


async def test_a_session_that_fails_says_why(standin: StartHub) -> None:
    hub = await standin("fail")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice)

    assert answer.status == 500
    assert json.loads(answer.text)["message"] == "The host's disk is <full>. Come back later."
    assert (hub.session_folders(), server_tokens(hub)) == ([], [])


async def test_the_waiting_page_shows_why_it_failed_escaped(standin: StartHub) -> None:
    hub = await standin("fail")
    alice = await hub.log_in("alice")
    await hub.start(alice)

    page = await alice.request("GET", hub.url / "spawn-pending/alice")

    assert "The host&#39;s disk is &lt;full&gt;. Come back later." in page.text
    assert "The desktop did not start" in page.text


async def test_a_session_that_dies_is_noticed_at_once(standin: StartHub) -> None:
    hub = await standin("exit")
    alice = await hub.with_token("alice")

    async with asyncio.timeout(10):
        answer = await hub.start(alice)

    assert answer.status == 500
    assert "The desktop's process ended without a word." in answer.text
    assert (hub.session_folders(), server_tokens(hub)) == ([], [])


async def test_a_session_that_hangs_is_given_up_and_stopped(standin: StartHub) -> None:
    hub = await standin("hang", start_timeout=4)
    alice = await hub.with_token("alice")

    answer = await hub.start(alice)

    assert answer.status == 500
    assert "The desktop did not appear within 4 s." in answer.text
    assert hub.session_folders() == []


async def test_the_hub_goes_on_after_a_failure(standin: StartHub) -> None:
    hub = await standin("fail")
    alice = await hub.with_token("alice")
    await hub.start(alice)
    hub.app.config.QemuSpawner.environment["QEMUSPAWNER_STANDIN"] = "ready"

    answer = await hub.start(alice)

    assert answer.status in (201, 202)


async def test_an_account_that_is_missing_is_told_to_the_user(standin: StartHub) -> None:
    hub = await standin(run_as="no-such-account")
    alice = await hub.with_token("alice")

    answer = await hub.start(alice)

    assert "This host has no account 'no-such-account' to run the desktop." in answer.text
    assert hub.session_folders() == []


# The waiting page


async def read_events(hub: hubs.Hub, person: hubs.Person) -> list[dict[str, Any]]:
    answer = await person.request("GET", hub.url / "api/users" / person.name / "server/progress")
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


async def test_progress_tells_the_sessions_steps_to_every_reader(standin: StartHub) -> None:
    hub = await standin("slow")
    alice = await hub.log_in("alice")
    await hub.submit_form(alice, machine="mini")

    first, second = await asyncio.gather(read_events(hub, alice), read_events(hub, alice))

    assert first == second
    assert [event["message"] for event in first][:2] == ["Server requested", "The <b>machine</b> boots"]
    assert {"progress": 50, "message": "The <b>machine</b> boots", "at": 0.1, "level": "info"} in first
    assert first[-1]["ready"] is True


async def test_stop_on_the_waiting_page_is_for_the_server_that_starts(standin: StartHub) -> None:
    """Also where an administrator looks at somebody else's."""
    hub = await standin("hang")
    alice, admin = await hub.log_in("alice"), await hub.log_in("admin", admin=True)
    await hub.submit_form(alice, server_name="second", machine="mini")

    page = await admin.request("GET", hub.url / "spawn-pending/alice/second")
    answer = await hub.stop(admin, owner="alice", server_name="second")
    await hub.wait_until_stopped("alice", server_name="second")

    assert f'data-server-url="{hub.url.raw_path}api/users/alice/servers/second"' in page.text
    assert answer.status in (202, 204)
    assert hub.session_folders() == []


# Internal TLS


async def test_with_internal_tls_the_session_has_a_certificate_until_its_end(
    standin: StartHub, tmp_path: Path
) -> None:
    tls = {"internal_ssl": True, "internal_certs_location": str(tmp_path / "certificates")}
    hub = await standin(jupyterhub=tls)
    user = hub.user("alice")

    await user.spawn()
    url, folders = user.spawner.server.url, list((hub.state_dir / "certs").iterdir())
    await user.stop()

    assert url.startswith("https://127.0.0.1:")
    assert [folder.name for folder in folders] == [session_id("alice", "")]
    assert list((hub.state_dir / "certs").iterdir()) == []
