"""The routes of files, over HTTP: tuspy as an independent client, aiohttp for what no client would do."""

import asyncio
import base64
import io
import json
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from files_app import TUS, Served, serve_files
from local_agent import local_agent, names_in
from tusclient.client import TusClient
from yarl import URL

from qemuspawner.policy import Policy
from qemuspawner.qemu import agent as agent_module
from qemuspawner.qemu.guest_files import READ_BYTES, WRITE_BYTES
from qemuspawner.session.web import files as files_module
from qemuspawner.session.web.routes import files as routes_module


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    home = tmp_path / "home"
    home.mkdir()
    async with local_agent(tmp_path / "qga") as (local, agent), serve_files(tmp_path, agent, home) as served:
        served.local = local
        yield served


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def metadata(**values: bytes | str) -> str:
    return ",".join(
        f"{key} {base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()}"
        for key, value in values.items()
    )


async def begin(
    http: aiohttp.ClientSession, served: Served, *, size: int, **values: bytes | str
) -> tuple[int, str]:
    """Begin an upload: the status, and where it is or why not."""
    headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata(**values)}
    async with http.post(served.url / "uploads", headers=headers) as answer:
        if answer.status == 201:
            return 201, str(served.url.join(URL(answer.headers["Location"], encoded=True)))
        return answer.status, (await answer.json())["message"]


async def send(
    http: aiohttp.ClientSession, where: str, data: Any, *, offset: int, **headers: str
) -> tuple[int, str]:
    """The status, and the new offset or what is wrong."""
    given = {
        **TUS,
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
        **headers,
    }
    async with http.patch(where, headers=given, data=data) as answer:
        if answer.status == 204:
            return 204, answer.headers["Upload-Offset"]
        return answer.status, (await answer.json())["message"]


def patch_head(where: str) -> bytes:
    """Of a request that brings 1000 bytes from the beginning."""
    lines = (
        f"PATCH {URL(where).raw_path} HTTP/1.1",
        "Host: x",
        "Tus-Resumable: 1.0.0",
        "Upload-Offset: 0",
        "Content-Length: 1000",
        "Content-Type: application/offset+octet-stream",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


async def offset_of(http: aiohttp.ClientSession, where: str) -> int | None:
    async with http.head(where, headers=TUS) as answer:
        return int(answer.headers["Upload-Offset"]) if answer.status == 200 else None


# tuspy


async def test_tuspy_uploads_a_file(served: Served) -> None:
    data = secrets.token_bytes(3 * WRITE_BYTES + 12_345)
    (served.home / "Desktop").mkdir()

    def upload() -> None:
        uploader = TusClient(str(served.url / "uploads")).uploader(
            file_stream=io.BytesIO(data), metadata={"filename": "Bericht ü.pdf"}
        )
        uploader.upload()

    await asyncio.to_thread(upload)

    assert (served.home / "Desktop" / "Bericht ü.pdf").read_bytes() == data
    assert names_in(served.home / "Desktop") == ["Bericht ü.pdf"]
    assert served.audited() == [
        {"event": "upload", "by": "alice", "path": "Desktop/Bericht ü.pdf", "size_bytes": len(data)}
    ]
    assert served.inputs > 0


async def test_tuspy_resumes_in_a_session_that_knows_nothing_of_the_upload(served: Served) -> None:
    """As after a sleep: what is known is in the URL and in the guest."""
    data = secrets.token_bytes(2_000_000)

    def begin_it() -> str:
        uploader = TusClient(str(served.url / "uploads")).uploader(
            file_stream=io.BytesIO(data), metadata={"filename": "a", "folder": ""}, chunk_size=700_000
        )
        uploader.upload_chunk()
        return str(uploader.url)

    url = await asyncio.to_thread(begin_it)
    served.files.__init__(served.supervisor)  # type: ignore[misc]

    def go_on() -> int:
        uploader = TusClient(str(served.url / "uploads")).uploader(file_stream=io.BytesIO(data), url=url)
        resumed_at = uploader.offset
        uploader.upload()
        return int(resumed_at)

    assert await asyncio.to_thread(go_on) == 700_000
    assert (served.home / "a").read_bytes() == data


# The protocol


async def test_what_is_offered_is_told(served: Served, http: aiohttp.ClientSession) -> None:
    async with http.options(served.url / "uploads") as answer:
        assert answer.status == 204
        assert answer.headers["Tus-Version"] == "1.0.0"
        assert answer.headers["Tus-Extension"] == "creation,termination"
        assert answer.headers["Tus-Max-Size"] == str(16 << 20)


async def test_an_upload_that_is_given_up_leaves_nothing(served: Served, http: aiohttp.ClientSession) -> None:
    _, where = await begin(http, served, size=10, filename="a", folder="")
    await send(http, where, b"12345", offset=0)

    async with http.delete(where, headers=TUS) as answer:
        assert answer.status == 204

    assert names_in(served.home) == []
    assert await offset_of(http, where) is None
    assert (await send(http, where, b"67890", offset=5))[0] == 404


async def test_a_file_without_content_is_there_at_once(served: Served, http: aiohttp.ClientSession) -> None:
    status, where = await begin(http, served, size=0, filename="empty", folder="")

    assert (status, names_in(served.home)) == (201, ["empty"])
    assert await offset_of(http, where) == 0


async def test_what_has_come_before_a_connection_broke_is_kept(
    served: Served, http: aiohttp.ClientSession
) -> None:
    """Much less than a chunk, too: on a bad line there would be no end else."""
    _, where = await begin(http, served, size=1000, filename="a", folder="")
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(patch_head(where) + b"x" * 400)
    await writer.drain()
    async with asyncio.timeout(10):
        while not served.files._transfers:
            await asyncio.sleep(0.01)
        writer.close()
        while await offset_of(http, where) != 400:
            await asyncio.sleep(0.01)

    assert await send(http, where, b"y" * 600, offset=400) == (204, "1000")
    assert (served.home / "a").read_bytes() == b"x" * 400 + b"y" * 600
    assert served.files._transfers == 0


async def test_the_last_answer_may_be_lost(served: Served, http: aiohttp.ClientSession) -> None:
    _, where = await begin(http, served, size=4, filename="a", folder="")
    await send(http, where, b"data", offset=0)

    assert await offset_of(http, where) == 4
    assert await send(http, where, b"", offset=4) == (204, "4")
    assert [line["event"] for line in served.audited()] == ["upload"]


async def test_a_whole_upload_that_could_not_be_finished_is_finished_when_somebody_looks(
    served: Served, http: aiohttp.ClientSession
) -> None:
    _, where = await begin(http, served, size=4, filename="a", folder="")
    (hidden,) = served.left_over()
    (served.home / hidden).write_bytes(b"data")

    assert await offset_of(http, where) == 4
    assert names_in(served.home) == ["a"]


@pytest.mark.parametrize(
    ("offset", "status"),
    [
        ("3", 409),
        ("0", 409),
        ("-1", 400),
        ("", 400),
        ("1e3", 400),
        ("5.0", 400),
        ("9" * 18, 409),
        ("9" * 40, 400),
    ],
)
async def test_a_wrong_offset_changes_nothing(
    offset: str, status: int, served: Served, http: aiohttp.ClientSession
) -> None:
    _, where = await begin(http, served, size=10, filename="a", folder="")
    await send(http, where, b"12345", offset=0)

    answered, words = await send(http, where, b"", offset=0, **{"Upload-Offset": offset})

    assert answered == status
    assert words.endswith(".")
    assert await offset_of(http, where) == 5


async def test_more_than_was_said_is_not_taken(served: Served, http: aiohttp.ClientSession) -> None:
    _, where = await begin(http, served, size=10, filename="a", folder="")

    assert await send(http, where, b"x" * 100_000, offset=0) == (413, "'a' is longer than was said.")

    assert await offset_of(http, where) == 0


@pytest.mark.parametrize(
    ("size", "status"),
    [
        ("", 400),
        ("-1", 400),
        ("abc", 400),
        (str(16 << 20), 201),
        (str((16 << 20) + 1), 413),
        ("4294967296", 413),
    ],
)
async def test_sizes_are_bounded(size: str, status: int, served: Served, http: aiohttp.ClientSession) -> None:
    headers = {**TUS, "Upload-Length": size, "Upload-Metadata": metadata(filename="a", folder="")}
    async with http.post(served.url / "uploads", headers=headers) as answer:
        assert answer.status == status
        if status == 413:
            assert "at most 16 MiB can be transferred" in (await answer.json())["message"]


BAD_NAMES = [
    b"",
    b"   ",
    b".",
    b"..",
    b"../a",
    b"/etc/passwd",
    b"a/b",
    b"a\0b",
    b"a\nb",
    b"a\x1b[2Jb",
    b"a\x7f",
    "photo\u202egpj.exe".encode(),
    "a\u2066b".encode(),
    "a\u2028b".encode(),
    b"\xff\xfe",
    b"n" * 256,
]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_that_deceive_are_refused_with_a_sentence(
    name: bytes, served: Served, http: aiohttp.ClientSession
) -> None:
    status, words = await begin(http, served, size=1, filename=name, folder="")
    body = json.dumps({"folder": "", "name": name.decode("utf-8", "surrogateescape")})
    async with http.post(served.url / "folders", data=body) as answer:
        folder_status, folder_words = answer.status, (await answer.json())["message"]

    assert (status, folder_status) == (400, 400)
    for said in (words, folder_words):
        assert said.endswith(".")
        assert said.isprintable()
    assert names_in(served.home) == []


@pytest.mark.parametrize("name", ["a\u202fm.png", "👩\u200d🔬.txt", "ภาษาไทย", "-rf", "a;b$(c)"])
async def test_names_that_people_use_pass(name: str, served: Served, http: aiohttp.ClientSession) -> None:
    """Such as those that macOS gives to screenshots."""
    status, where = await begin(http, served, size=1, filename=name, folder="")

    assert (status, await send(http, where, b"x", offset=0)) == (201, (204, "1"))
    assert names_in(served.home) == [name]


@pytest.mark.parametrize(
    "path", ["..", "a/../..", "/etc", "a//b", "./a", "a/", "%00", "n" * 256, "a/" * 1001 + "a"]
)
async def test_paths_stay_below_the_home(path: str, served: Served, http: aiohttp.ClientSession) -> None:
    quoted = path if path == "%00" else path.replace("/", "%2F")
    for route in ("", "/content"):
        async with http.get(URL(f"{served.url}{route}?path={quoted}", encoded=True)) as answer:
            assert answer.status == 400
            assert (await answer.json())["message"].endswith(".")
    assert (await begin(http, served, size=1, filename="a", folder=path.replace("%00", "\0")))[0] == 400
    async with http.post(served.url / "folders", json={"folder": quoted, "name": "new"}) as answer:
        assert answer.status == 400


@pytest.mark.parametrize(
    "token", ["x", "AAAA", "a" * 5000, base64.urlsafe_b64encode(b'["../x"]').decode().rstrip("=")]
)
async def test_made_up_uploads_are_not_there(token: str, served: Served, http: aiohttp.ClientSession) -> None:
    assert (await send(http, str(served.url / "uploads" / token), b"x", offset=0))[0] == 404


async def test_an_upload_url_that_was_tampered_with_leads_nowhere_else(
    served: Served, http: aiohttp.ClientSession
) -> None:
    made = files_module.Upload(id="0" * 32, folder=b"../..", name=b"a", size=1, taken="replace")
    (served.home / ".ssh").mkdir()

    for upload in (
        made,
        files_module.msgspec.structs.replace(made, folder=b"", name=b"../a"),
        files_module.msgspec.structs.replace(made, folder=b"", id="../../x"),
        files_module.msgspec.structs.replace(made, folder=b"", size=1 << 40),
    ):
        status, _ = await send(http, str(served.url / "uploads" / upload.token), b"x", offset=0)
        assert status in (400, 404, 413)
    assert names_in(served.home) == [".ssh"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 412),
        ({"Tus-Resumable": "0.2.2"}, 412),
        ({**TUS, "Upload-Length": "1", "Upload-Defer-Length": "1"}, 400),
        ({**TUS, "Upload-Length": "1", "Upload-Metadata": "filename %%%"}, 400),
        ({**TUS, "Upload-Length": "1", "Upload-Metadata": metadata(filename="a", taken="always")}, 400),
    ],
)
async def test_what_is_no_tus_is_refused(
    headers: dict[str, str], status: int, served: Served, http: aiohttp.ClientSession
) -> None:
    async with http.post(served.url / "uploads", headers=headers) as answer:
        assert answer.status == status
        assert (await answer.json())["message"]


# What is there


async def test_a_taken_name_is_the_senders_to_decide(served: Served, http: aiohttp.ClientSession) -> None:
    (served.home / "a.txt").write_text("older")

    assert await begin(http, served, size=3, filename="a.txt", folder="") == (409, "'a.txt' exists already.")
    _, where = await begin(http, served, size=3, filename="a.txt", folder="", taken="rename")
    await send(http, where, b"new", offset=0)
    _, where = await begin(http, served, size=3, filename="a.txt", folder="", taken="replace")
    assert (served.home / "a.txt").read_text() == "older"
    await send(http, where, b"put", offset=0)

    assert {path.name: path.read_text() for path in served.home.iterdir()} == {
        "a.txt": "put",
        "a (2).txt": "new",
    }


async def test_a_folder_is_listed_with_folders_first(served: Served, http: aiohttp.ClientSession) -> None:
    (served.home / "a b").mkdir()
    (served.home / "a b" / "deep").mkdir()
    (served.home / "a b" / "Zoë.txt").write_text("12345")
    (served.home / "a b" / ".hidden").mkdir()
    (served.home / "a b" / "x\u202ey").touch()

    async with http.get((served.url).with_query(path="a b")) as answer:
        told = await answer.json()

    assert told["path"] == "a%20b"
    assert told["folders"] == [{"name": "a b", "path": "a%20b"}]
    assert [entry["name"] for entry in told["entries"]] == ["deep", "x\ufffdy", "Zoë.txt", ".hidden"]
    assert told["entries"][2]["path"] == "a%20b/Zo%C3%AB.txt"
    assert told["entries"][2]["size_bytes"] == 5
    assert told["is_whole"] is True


async def test_only_so_many_are_listed(
    served: Served, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_MAX_SHOWN", 2)
    for name in (".a", "b", "c"):
        (served.home / name).touch()

    async with http.get(served.url) as answer:
        told = await answer.json()

    assert [entry["name"] for entry in told["entries"]] == ["b", "c"]
    assert told["is_whole"] is False


async def test_a_folder_is_made_once(served: Served, http: aiohttp.ClientSession) -> None:
    for status in (201, 409):
        async with http.post(served.url / "folders", json={"folder": "", "name": "new folder"}) as answer:
            assert answer.status == status
    assert names_in(served.home) == ["new folder"]


# Downloads


async def download(
    http: aiohttp.ClientSession, served: Served, path: bytes, **headers: str
) -> tuple[Any, bytes]:
    url = URL(f"{served.url}/content?path={files_module.quote(path).replace('/', '%2F')}", encoded=True)
    async with http.get(url, headers=headers) as answer:
        return answer, await answer.read()


@pytest.mark.parametrize("name", [b"plain", "Übung 😀.txt".encode(), b'a"b\\c;d', b"no \xff utf-8", b"a\nb"])
async def test_a_download_is_the_whole_file_and_nobodys_page(
    name: bytes, served: Served, http: aiohttp.ClientSession
) -> None:
    data = secrets.token_bytes(READ_BYTES + 1)
    (served.home / os.fsdecode(name)).write_bytes(data)

    answer, body = await download(http, served, name)

    assert (answer.status, body) == (200, data)
    assert answer.headers["Content-Length"] == str(len(data))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    disposition = answer.content_disposition
    assert disposition is not None
    assert disposition.type == "attachment"
    assert disposition.filename == files_module.show(name)
    assert served.audited() == [
        {
            "event": "download",
            "by": "alice",
            "path": files_module.show(name),
            "size_bytes": len(data),
            "of_bytes": len(data),
        }
    ]


@pytest.mark.parametrize(
    ("asked", "status", "first", "end"),
    [
        ("bytes=0-", 200, 0, 1000),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-", 206, 100, 1000),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=-10", 206, 990, 1000),
        ("bytes=-5000", 200, 0, 1000),
        ("bytes=999-5000", 206, 999, 1000),
        ("bytes=0-1,5-6", 200, 0, 1000),
        ("bytes=-", 200, 0, 1000),
        ("lines=1-2", 200, 0, 1000),
    ],
)
async def test_a_part_can_be_asked_for(
    asked: str, status: int, first: int, end: int, served: Served, http: aiohttp.ClientSession
) -> None:
    data = secrets.token_bytes(1000)
    (served.home / "a").write_bytes(data)

    answer, body = await download(http, served, b"a", Range=asked)

    assert (answer.status, body) == (status, data[first:end])
    assert answer.headers.get("Content-Range") == (f"bytes {first}-{end - 1}/1000" if status == 206 else None)


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=5-4", "bytes=-0", "bytes=9999999999999999999-"])
async def test_a_part_that_is_not_there_is_said(
    asked: str, served: Served, http: aiohttp.ClientSession
) -> None:
    (served.home / "a").write_bytes(bytes(1000))

    answer, _ = await download(http, served, b"a", Range=asked)

    assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */1000")


async def test_parts_of_two_versions_are_not_mixed(served: Served, http: aiohttp.ClientSession) -> None:
    (served.home / "a").write_bytes(b"old content")
    answer, _ = await download(http, served, b"a", Range="bytes=0-3")
    tag = answer.headers["ETag"]
    answer, body = await download(http, served, b"a", Range="bytes=4-", **{"If-Range": tag})
    assert (answer.status, body) == (206, b"content")

    (served.home / "a").write_bytes(b"newer content")
    answer, body = await download(http, served, b"a", Range="bytes=4-", **{"If-Range": tag})

    assert (answer.status, body) == (200, b"newer content")


async def test_what_is_no_plain_file_is_not_sent(served: Served, http: aiohttp.ClientSession) -> None:
    os.mkfifo(served.home / "pipe")
    (served.home / "zero").symlink_to("/dev/zero")
    for name, status in ((b"pipe", 409), (b"zero", 409), (b"", 409), (b"gone", 404)):
        answer, _ = await download(http, served, name)
        assert answer.status == status


async def test_a_file_that_is_too_large_is_not_sent(served: Served, http: aiohttp.ClientSession) -> None:
    with (served.home / "large").open("wb") as file:
        file.truncate(5 << 30)

    answer, body = await download(http, served, b"large")

    assert answer.status == 413
    assert json.loads(body)["message"] == "'large' has 5 GiB; at most 16 MiB can be transferred."


async def test_a_file_that_shrinks_meanwhile_is_no_whole_download(
    served: Served, http: aiohttp.ClientSession
) -> None:
    """Never a short file that looks like a whole one."""
    (served.home / "a").write_bytes(bytes(3 * READ_BYTES))
    reads = 0

    def shrink(request: dict[str, Any]) -> None:
        nonlocal reads
        if "read" in request.get("arguments", {}).get("arg", []):
            reads += 1
            if reads == 2:
                os.truncate(served.home / "a", READ_BYTES)

    served.local.hostile = shrink

    with pytest.raises(aiohttp.ClientPayloadError):
        await download(http, served, b"a")


async def test_a_reader_that_stands_still_is_waited_for(served: Served) -> None:
    """Not more is read from the guest than the browser takes; when it leaves, nothing is left."""
    size = 12 << 20
    (served.home / "a").write_bytes(bytes(size))
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1024)
    writer.write(f"GET {served.url.path}/content?path=a HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readline()
    async with asyncio.timeout(20):
        while not served.local.commands or "read" not in served.local.commands[-1]:
            await asyncio.sleep(0.01)
    before = -1
    while before != (before := len(served.local.commands)):
        await asyncio.sleep(0.5)

    assert sum("read" in argv for argv in served.local.commands) < size // READ_BYTES
    writer.close()
    async with asyncio.timeout(10):
        while served.files._transfers:
            await asyncio.sleep(0.01)


# Who may, how many, and when the guest is away


@pytest.mark.parametrize("role", ["waiting", "view", "control", "owner"])
@pytest.mark.parametrize("least", ["view", "control", "owner", "nobody"])
@pytest.mark.parametrize("direction", ["in", "out"])
async def test_the_policy_decides(
    direction: str, least: str, role: str, served: Served, http: aiohttp.ClientSession
) -> None:
    other = "nobody" if least != "nobody" else "view"
    policy = (
        {"files_in": least, "files_out": other}
        if direction == "in"
        else {"files_in": other, "files_out": least}
    )
    served.supervisor.spec = files_module.msgspec.structs.replace(
        served.supervisor.spec,
        policy=Policy(**policy),  # type: ignore[arg-type]
    )
    (served.home / "a").touch()
    http.headers["X-Role"] = role
    into = [
        (await http.post(served.url / "folders", json={"folder": "", "name": "new"})).status,
        (await begin(http, served, size=1, filename="b", folder=""))[0],
        (await http.options(served.url / "uploads")).status,
        (await http.head(served.url / "uploads" / "abc", headers=TUS)).status,
    ]
    out = [
        (await http.get(served.url)).status,
        (await http.get((served.url / "content").with_query(path="a"))).status,
    ]
    order = ["waiting", "view", "control", "owner", "nobody"]
    may = order.index(role) >= order.index(least)
    tried, forbidden = (into, out) if direction == "in" else (out, into)
    if other == "view" and role != "waiting":
        assert 403 not in forbidden
    else:
        assert set(forbidden) == {403}
    assert set(tried) == {403} if not may else 403 not in tried


async def test_only_so_many_transfers_at_once(
    served: Served, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_MAX_AT_ONCE", 0)
    (served.home / "a").touch()
    _, where = await begin(http, served, size=1, filename="b", folder="")

    answer, body = await download(http, served, b"a")
    assert answer.status == 429
    assert "are being transferred already" in json.loads(body)["message"]
    assert (await send(http, where, b"x", offset=0))[0] == 429


async def test_who_may_no_longer_is_broken_off(served: Served, http: aiohttp.ClientSession) -> None:
    _, where = await begin(http, served, size=1000, filename="a", folder="")
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(patch_head(where) + b"abc")
    async with asyncio.timeout(10):
        while not served.dismiss:
            await asyncio.sleep(0.01)

        served.dismiss[0](4403, "Your access was withdrawn.")

        assert await reader.read() == b""
    assert served.dismiss == []
    writer.close()


async def test_who_sends_nothing_is_sent_away(
    served: Served, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes_module, "_SILENCE_S", 0.3)
    _, where = await begin(http, served, size=1000, filename="a", folder="")
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(patch_head(where) + b"abc")

    async with asyncio.timeout(10):
        assert await reader.read() == b""
        while await offset_of(http, where) != 3:
            await asyncio.sleep(0.01)
    assert served.files._transfers == 0
    writer.close()


async def test_a_guest_that_sleeps_meanwhile_is_a_sentence_and_the_upload_goes_on_after(
    served: Served, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, where = await begin(http, served, size=10, filename="a", folder="")
    await send(http, where, b"12345", offset=0)
    served.local.is_silent = True

    with monkeypatch.context() as patch:
        patch.setattr(agent_module, "_TIMEOUT_S", 0.2)
        status, words = await send(http, where, b"67890", offset=5)

    assert (status, "did not answer" in words) == (503, True)
    served.local.is_silent = False
    assert await offset_of(http, where) == 5
    assert await send(http, where, b"67890", offset=5) == (204, "10")


@pytest.mark.parametrize("state", ["booting", "suspending", "suspended"])
async def test_a_desktop_that_is_not_up_is_a_sentence(
    state: str, served: Served, http: aiohttp.ClientSession
) -> None:
    served.supervisor.state = state
    async with http.get(served.url) as answer:
        assert (answer.status, (await answer.json())["message"]) == (503, "The desktop is not ready yet.")


async def test_a_machine_without_home_or_agent_has_no_files(
    served: Served, http: aiohttp.ClientSession
) -> None:
    served.guest.agent = None
    async with http.get(served.url) as answer:
        assert answer.status == 404
        assert (await answer.json())["message"] == "Files cannot be exchanged with this machine."
