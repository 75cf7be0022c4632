"""Administrators add, change, try and remove machines by the hub's REST API; nobody else learns of it."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import guests
import hubs
import pytest
from tusclient.client import TusClient
from yarl import URL

from qemuspawner.hub.catalogue import images_api, machines_api

StartHub = Callable[..., Awaitable[hubs.Hub]]
HOSTILE = "<img src=x onerror=alert(1)>\"'& 100% \U0001f5a5"
NEW = {"id": "alma", "name": "Alma", "format": "raw"}
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
async def admin(hub: hubs.Hub) -> hubs.Person:
    return await hub.with_token("admin", admin=True)


async def ask(hub: hubs.Hub, person: hubs.Person, method: str, path: str, body: Any = None) -> Any:
    """Status and answer; {} where that has no body."""
    answer = await hub._ask(person, method, hub.url / "api" / path, json=body)
    return answer.status, json.loads(answer.text) if answer.text else {}


async def digest_of(hub: hubs.Hub, person: hubs.Person, machine_id: str) -> str:
    _, told = await ask(hub, person, "GET", f"machines/{machine_id}")
    return str(told["digest"])


async def wait_for_job(hub: hubs.Hub, person: hubs.Person, machine_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            _, told = await ask(hub, person, "GET", f"machines/{machine_id}/image")
            if told["job"] and told["job"]["state"] not in ("waiting", "running"):
                return dict(told["job"])
            await asyncio.sleep(0.05)


# Who may


def routes() -> list[tuple[str, str]]:
    """Method and path of every route."""
    found = []
    for pattern, handler in (*machines_api.ROUTES, *images_api.ROUTES):
        path = pattern.removeprefix("/api/").replace("([^/]+)", "mini", 1).replace("([0-9]{1,6})", "1")
        path = path.replace("([^/]+)", f"{'0' * 32}-1")
        methods = [
            name for name in ("get", "head", "post", "put", "patch", "delete") if name in vars(handler)
        ]
        found += [(name.upper(), path) for name in methods]
    return found


@pytest.mark.parametrize(("method", "path"), routes())
async def test_nobody_but_administrators_gets_anything(hub: hubs.Hub, method: str, path: str) -> None:
    alice, nobody = await hub.with_token("alice"), await hub.person("bob", token="wrong")
    cookie = await hub.log_in("carol")
    # Who has one of the scopes, or both for one user only.
    admin = hub.user("admin", admin=True)
    some = [
        await hub.person("admin", token=admin.new_api_token(scopes=scopes), admin=True)
        for scopes in (["admin:servers"], ["access:servers"], ["admin:servers!user", "access:servers!user"])
    ]
    both = await hub.person("admin", token=admin.new_api_token(scopes=list(machines_api.SCOPES)), admin=True)

    async def status(person: hubs.Person) -> int:
        url = hub.url / "api" / path
        headers = {**TUS, **({} if person.token else {"X-XSRFToken": person.xsrf(url)})}
        return (await person.request(method, url, headers=headers)).status

    assert [await status(person) for person in (alice, nobody, cookie, *some)] == [403] * 6
    assert await status(both) != 403


# Adding and changing


async def test_a_machine_is_added_changed_and_undone(hub: hubs.Hub, admin: hubs.Person) -> None:
    status, added = await ask(hub, admin, "POST", "machines", {**NEW, "name": HOSTILE})
    assert status == 201
    assert (added["name"], added["state"], added["hidden"]) == (HOSTILE, "cannot start", True)

    changes = {"set": {"version": "2", "cpus.offered": [1, 2]}, "digest": added["digest"]}
    status, changed = await ask(hub, admin, "PATCH", "machines/alma", changes)
    assert (status, changed["version"], changed["values"]["cpus"]["offered"]) == (200, "2", [1, 2])
    assert [(one["by"], one["what"]) for one in changed["versions"]] == [("admin", "edit"), ("admin", "add")]

    _, version = await ask(hub, admin, "GET", "machines/alma/versions/1")
    assert version["text"] == added["text"]
    status, undone = await ask(hub, admin, "POST", "machines/alma/undo", {"digest": changed["digest"]})
    assert (status, undone["text"]) == (200, added["text"])


async def test_problems_come_with_their_lines_and_nothing_is_saved(hub: hubs.Hub, admin: hubs.Person) -> None:
    _, shown = await ask(hub, admin, "GET", "machines/mini")
    hostile = HOSTILE.replace("'", "")
    text = f"'{hostile}' = 1\n" + shown["text"].replace("default = 1\n", "default = 0\n")

    status, told = await ask(hub, admin, "PUT", "machines/mini", {"text": text, "digest": shown["digest"]})

    assert status == 400
    first, second = told["problems"]
    assert (first["key"], first["line"]) == (hostile, 1)
    assert second["key"] == "cpus.default"
    assert text.splitlines()[second["line"] - 1] == "default = 0"
    assert await digest_of(hub, admin, "mini") == shown["digest"]


async def test_who_did_not_see_a_change_is_refused(hub: hubs.Hub, admin: hubs.Person) -> None:
    digest = await digest_of(hub, admin, "mini")
    await ask(hub, admin, "PATCH", "machines/mini", {"set": {"hidden": True}, "digest": digest})

    status, told = await ask(hub, admin, "PATCH", "machines/mini", {"set": {"name": "X"}, "digest": digest})

    assert status == 409
    assert told["message"] == "'mini' was changed by admin since you opened it; nothing was saved."


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "machines", {"id": "Alma", "name": "x", "format": "raw"}, 400),
        ("POST", "machines", {"id": "mini", "name": "x", "format": "raw"}, 409),
        ("POST", "machines", {"id": "alma", "name": "x", "format": "zip"}, 400),
        ("POST", "machines", {"id": "alma", "name": "x", "format": "raw", "url": "http://x.org/a"}, 400),
        ("POST", "machines", {"id": "alma", "name": "x", "format": "raw", "url": "file:///etc/passwd"}, 400),
        ("POST", "machines", {"id": "alma", "copy_of": "none"}, 404),
        ("POST", "machines", {"id": 3}, 400),
        ("POST", "machines", {"nane": "x"}, 400),
        ("POST", "machines", [1], 400),
        ("PUT", "machines/none", {"text": "", "digest": ""}, 404),
        ("PATCH", "machines/mini", {"set": {"image.file": "/etc/passwd"}}, 400),
        ("GET", "machines/..%2f..%2fetc", None, 404),
        ("GET", "machines/mini/versions/1", None, 404),
        ("POST", "machines/mini/undo", {"digest": ""}, 404),
        ("POST", "removed-machines/none/restore", None, 404),
        ("POST", "machines/none/image", {}, 404),
        ("DELETE", "machines/mini/image", None, 404),
    ],
)
async def test_nonsense_is_refused_with_a_sentence(
    hub: hubs.Hub, admin: hubs.Person, method: str, path: str, body: Any, status: int
) -> None:
    url = URL(f"{hub.url}api/{path}", encoded=True)

    answer = await hub._ask(admin, method, url, json=body)

    assert answer.status == status, answer.text
    assert json.loads(answer.text)["message"]


async def test_on_the_hub_nobody_reaches_for_the_host(hub: hubs.Hub, admin: hubs.Person) -> None:
    body = {"set": {"image.file": "/etc/passwd"}, "digest": await digest_of(hub, admin, "mini")}

    status, told = await ask(hub, admin, "PATCH", "machines/mini", body)

    assert (status, told["problems"][0]["key"]) == (400, "image.file")


async def test_broken_machines_are_listed_with_what_is_wrong(hub: hubs.Hub, admin: hubs.Person) -> None:
    (hub.machines / "broken").mkdir()
    (hub.machines / "broken" / "machine.toml").write_text("name = 3\n")

    _, told = await ask(hub, admin, "GET", "machines")

    broken, mini = told["machines"]
    assert (broken["id"], broken["state"], broken["problems"][0]["line"]) == ("broken", "broken", 1)
    assert (mini["id"], mini["state"], mini["image"]["size_bytes"] > 0) == ("mini", "offered", True)


# Trying


async def test_what_is_hidden_only_administrators_can_start(hub: hubs.Hub, admin: hubs.Person) -> None:
    digest = await digest_of(hub, admin, "mini")
    _, hidden = await ask(hub, admin, "PATCH", "machines/mini", {"set": {"hidden": True}, "digest": digest})
    alice, boss = await hub.log_in("alice"), await hub.log_in("boss", admin=True)
    token = await hub.with_token("alice")

    refused = await hub.start(token, {"machine": "mini"})
    started = await hub.start(admin, {"machine": "mini"})

    assert hidden["state"] == "hidden"
    assert (refused.status, started.status) == (400, 201)
    assert "no machine that you may start" in refused.text
    assert 'value="mini"' not in (await hub.get_form(alice)).text
    form = (await hub.get_form(boss)).text
    assert 'value="mini"' in form
    assert ">hidden</span>" in form


# Removing


async def test_a_machine_is_removed_and_restored(hub: hubs.Hub, admin: hubs.Person) -> None:
    _, added = await ask(hub, admin, "POST", "machines", NEW)

    status, told = await ask(hub, admin, "DELETE", "machines/alma", {"digest": added["digest"]})
    _, listed = await ask(hub, admin, "GET", "machines")
    restored, _ = await ask(hub, admin, "POST", f"removed-machines/{told['removed']}/restore")

    assert (status, restored) == (200, 200)
    assert [(one["id"], one["by"]) for one in listed["removed"]] == [("alma", "admin")]
    assert await digest_of(hub, admin, "alma") == added["digest"]


async def test_what_runs_is_shown_and_not_removed(start_hub: StartHub) -> None:
    """With a real session, which holds its lock."""
    hub = await start_hub()
    admin, alice = await hub.with_token("admin", admin=True), await hub.with_token("alice")
    _, copied = await ask(hub, admin, "POST", "machines", {"id": "copy", "copy_of": "mini"})
    changes = {"set": {"hidden": False}, "digest": copied["digest"]}
    _, shown = await ask(hub, admin, "PATCH", "machines/copy", changes)
    assert (await hub.start(alice, {"machine": "copy"})).status in (201, 202)
    await hub.wait_until_ready("alice")

    status, told = await ask(hub, admin, "DELETE", "machines/copy", {"digest": shown["digest"]})
    _, listed = await ask(hub, admin, "GET", "machines/copy")

    assert (status, told["message"]) == (
        409,
        "'copy' has desktops, which would be lost with it: running: alice.",
    )
    assert listed["uses"]["running"] == ["alice"]
    assert hub.spawner("alice").ready


# Images


async def test_an_image_is_uploaded_in_parts_and_starts(
    start_hub: StartHub, tmp_path: Path, state_dir: Path
) -> None:
    """By an independent client, and with a real session on it."""
    hub = await start_hub()
    admin = await hub.with_token("admin", admin=True)
    await ask(hub, admin, "POST", "machines", NEW)
    body = {
        "set": {"memory.default": "64 MiB", "shutdown": "1 s"},
        "digest": await digest_of(hub, admin, "alma"),
    }
    await ask(hub, admin, "PATCH", "machines/alma", body)
    source = tmp_path / "disk.img"
    guests.make_disk(source)
    size = source.stat().st_size
    client = TusClient(
        str(hub.url / "api/machines/alma/uploads"), headers={"Authorization": f"token {admin.token}"}
    )
    uploader = client.uploader(str(source), chunk_size=size // 3 + 1)

    await asyncio.to_thread(uploader.upload_chunk)

    def go_on() -> None:
        client.uploader(str(source), chunk_size=size // 3 + 1, url=uploader.url).upload()

    await asyncio.to_thread(go_on)
    job = await wait_for_job(hub, admin, "alma")

    assert uploader.offset == size // 3 + 1
    assert (job["state"], job["what"], job["by"], job["total"]) == ("done", "upload", "admin", size), job
    image = state_dir / "images" / "alma" / "disk.img"
    assert image.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in image.parent.iterdir()) == [".uploads", "digests.json", "disk.img"]
    assert (await hub.start(admin, {"machine": "alma"})).status in (201, 202)
    await hub.wait_until_ready("admin")


async def begin(hub: hubs.Hub, person: hubs.Person, size: int, machine_id: str = "mini") -> hubs.Answer:
    url = hub.url / "api/machines" / machine_id / "uploads"
    return await person.request("POST", url, headers={**TUS, "Upload-Length": str(size)})


async def patch(
    hub: hubs.Hub, person: hubs.Person, location: str, data: bytes, offset: int, **headers: str
) -> hubs.Answer:
    usual = {**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
    return await person.request(
        "PATCH", hub.url.join(URL(location, encoded=True)), data=data, headers={**usual, **headers}
    )


async def test_what_is_no_image_is_refused_and_the_old_one_stays(
    hub: hubs.Hub, admin: hubs.Person, state_dir: Path
) -> None:
    image = state_dir / "images" / "mini" / "disk.raw"
    before = image.read_bytes()
    location = (await begin(hub, admin, 8)).headers["Location"]

    answer = await patch(hub, admin, location, b"QFI\xfb1234", 0)
    job = await wait_for_job(hub, admin, "mini")

    assert answer.status == 204
    assert job["state"] == "failed"
    assert job["message"].startswith("The disk image 'disk.raw' is refused")
    assert image.read_bytes() == before


async def test_parts_that_do_not_fit_are_refused(hub: hubs.Hub, admin: hubs.Person) -> None:
    location = (await begin(hub, admin, 8)).headers["Location"]

    statuses = [
        (await patch(hub, admin, location, b"1234", 2)).status,
        (await patch(hub, admin, location, b"123456789", 0)).status,
        (await patch(hub, admin, location, b"1234", 0)).status,
        (await patch(hub, admin, location, b"1234", 0)).status,
        (await patch(hub, admin, location, b"5", 4, **{"Content-Type": "text/plain"})).status,
        (await patch(hub, admin, location, b"5", 4, **{"Upload-Offset": "-4"})).status,
        (await patch(hub, admin, location, b"5", 4, **{"Tus-Resumable": "0.2"})).status,
        (await patch(hub, admin, location + "0", b"5", 4)).status,
        (await patch(hub, admin, location, bytes((16 << 20) + 1), 4)).status,
    ]
    where = hub.url.join(URL(location, encoded=True))
    head = await admin.request("HEAD", where, headers=TUS)
    gone = await admin.request("DELETE", where, headers=TUS)

    assert statuses == [409, 409, 204, 409, 415, 400, 412, 404, 413]
    assert (head.headers["Upload-Offset"], head.headers["Upload-Length"]) == ("4", "8")
    assert (gone.status, (await admin.request("HEAD", where, headers=TUS)).status) == (204, 404)


async def test_uploads_have_bounds(standin: StartHub) -> None:
    hub = await standin(max_image="1 MiB")
    admin = await hub.with_token("admin", admin=True)

    statuses = [(await begin(hub, admin, size)).status for size in (0, (1 << 20) + 1, 1, 1, 1, 1, 1)]

    assert statuses == [400, 413, 201, 201, 201, 201, 409]
    assert (await begin(hub, admin, 1, "none")).status == 404


async def test_an_upload_that_fills_the_disk_is_refused_at_once(standin: StartHub, state_dir: Path) -> None:
    hub = await standin(max_image="1000000 TiB")
    admin = await hub.with_token("admin", admin=True)

    answer = await begin(hub, admin, shutil.disk_usage(state_dir).total)

    assert answer.status == 507
    assert "are free on the host's disk" in answer.text


async def test_an_image_is_fetched_and_what_fails_says_why(
    hub: hubs.Hub, admin: hubs.Person, state_dir: Path
) -> None:
    """The command runs for itself; here from a file that the host's administrator has named."""
    source = state_dir / "source.img"
    guests.make_disk(source)
    text = (hub.machines / "mini" / "machine.toml").read_text()
    named = text.replace('format = "raw"', f'format = "raw"\nurl = "file://{source}"')
    (hub.machines / "mini" / "machine.toml").write_text(named)
    before = image_identity_of(state_dir)

    status, told = await ask(hub, admin, "POST", "machines/mini/image", {})
    twice, _ = await ask(hub, admin, "POST", "machines/mini/image", {})
    done = await wait_for_job(hub, admin, "mini")
    source.unlink()
    await ask(hub, admin, "POST", "machines/mini/image", {})
    failed = await wait_for_job(hub, admin, "mini")

    assert (status, twice, told["job"]["state"]) == (202, 409, "waiting")
    assert (done["state"], done["what"], done["by"]) == ("done", "fetch", "admin")
    assert image_identity_of(state_dir) != before
    assert failed["state"] == "failed"
    assert failed["message"] == f"The file {source} cannot be opened: No such file or directory."


def image_identity_of(state_dir: Path) -> int:
    return (state_dir / "images" / "mini" / "disk.raw").stat().st_ino


async def test_a_fetch_is_cancelled(hub: hubs.Hub, admin: hubs.Person) -> None:
    """From a server that says nothing."""
    connected = asyncio.Event()

    async def be_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(be_silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    values = {"image.url": f"http://127.0.0.1:{port}/", "image.digest": f"sha256:{'0' * 64}"}
    body = {"set": values, "digest": await digest_of(hub, admin, "mini")}
    status, changed = await ask(hub, admin, "PATCH", "machines/mini", body)
    assert status == 200, changed
    await ask(hub, admin, "POST", "machines/mini/image", {})
    async with asyncio.timeout(30):
        await connected.wait()

    busy, _ = await ask(hub, admin, "DELETE", "machines/mini", {"digest": changed["digest"]})
    status, _ = await ask(hub, admin, "DELETE", "machines/mini/image")
    job = await wait_for_job(hub, admin, "mini")
    server.close()

    assert (busy, status, job["state"]) == (409, 204, "cancelled")


async def test_where_an_image_came_from_is_not_told_to_sessions(hub: hubs.Hub, admin: hubs.Person) -> None:
    values = {"image.url": "https://images.example.org/secret-path"}
    body = {"set": values, "digest": await digest_of(hub, admin, "mini")}
    await ask(hub, admin, "PATCH", "machines/mini", body)

    assert (await hub.start(admin, {"machine": "mini"})).status == 201

    assert "secret-path" not in hub.spawner("admin").make_spec().to_json()
