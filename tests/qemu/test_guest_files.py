"""The script in the guest, really run on this host; and what a hostile guest may answer instead."""

import asyncio
import base64
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_agent import LocalAgent, local_agent, names_in

from qemuspawner.errors import FilesError, VmError
from qemuspawner.qemu import agent as agent_module
from qemuspawner.qemu import guest_files
from qemuspawner.qemu.guest_files import READ_BYTES, WRITE_BYTES, GuestFiles

# Whatever is in a name, it is only a name.
STRANGE = [
    b"plain.txt",
    b"two words",
    b"-rf",
    b"$(touch owned)`touch owned`;'\"",
    b"%s%n\\0101\\n",
    b"new\nline",
    b"ends with newline\n",
    b"\n81a4 5 5 .forged",
    "Ünïcödé 😀".encode(),
    b"no \xff\xfe utf-8",
    b"*?[a]",
    b"\x01\x7f\x1b[31m",
    b"n" * 255,
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "the home"
    folder.mkdir()
    return folder


@pytest.fixture
async def guest(tmp_path: Path, home: Path) -> AsyncIterator[tuple[LocalAgent, GuestFiles]]:
    async with local_agent(tmp_path / "qga") as (local, agent):
        yield local, GuestFiles(agent, str(home))


Guest = tuple[LocalAgent, GuestFiles]


async def upload(
    files: GuestFiles, name: bytes, data: bytes, *, folder: bytes = b"", taken: str = "refuse"
) -> bytes:
    """All of it; the name that it got."""
    hidden = f".upload-{secrets.token_hex(16)}.part".encode()
    await files.start_upload(folder, name, partial=hidden, taken=taken)
    partial = folder + b"/" + hidden if folder else hidden
    for at in range(0, len(data), WRITE_BYTES):
        await files.append(partial, data[at : at + WRITE_BYTES], offset=at, about=name)
    return await files.finish_upload(partial, size=len(data), name=name, taken=taken)


@pytest.mark.parametrize("name", STRANGE)
async def test_a_file_of_any_name_comes_goes_and_is_listed(name: bytes, guest: Guest, home: Path) -> None:
    _, files = guest
    data = secrets.token_bytes(1000)

    assert await upload(files, name, data) == name

    assert (home / os.fsdecode(name)).read_bytes() == data
    (entry,) = (await files.list_folder(b"")).entries
    assert (entry.name, entry.kind, entry.size_bytes) == (name, "file", 1000)
    assert await files.read(name, offset=0, size=2000) == data


@pytest.mark.parametrize("name", STRANGE)
async def test_a_folder_of_any_name_is_made_and_gone_into(name: bytes, guest: Guest) -> None:
    _, files = guest

    await files.make_folder(name)
    await upload(files, b"inside", b"here", folder=name)

    assert [entry.name for entry in (await files.list_folder(name)).entries] == [b"inside"]


async def test_every_part_of_a_large_file_can_be_read(guest: Guest, home: Path) -> None:
    """From everywhere, also across the blocks that it is read in."""
    _, files = guest
    data = secrets.token_bytes(READ_BYTES + 100_001)
    (home / "large").write_bytes(data)

    for offset, size in (
        (0, 1),
        (0, READ_BYTES),
        (65_535, 2),
        (65_537, READ_BYTES),
        (READ_BYTES, READ_BYTES),
    ):
        assert await files.read(b"large", offset=offset, size=size) == data[offset : offset + size]
    assert await files.read(b"large", offset=len(data), size=100) == b""


async def test_a_file_is_only_seen_when_it_is_whole(guest: Guest, home: Path) -> None:
    _, files = guest
    await files.start_upload(b"", b"report", partial=b".upload-1.part", taken="refuse")
    await files.append(b".upload-1.part", b"first ", offset=0, about=b"report")

    with pytest.raises(FilesError, match="another size") as trouble:
        await files.finish_upload(b".upload-1.part", size=10, name=b"report", taken="refuse")

    assert trouble.value.trouble == "offset"
    assert not (home / "report").exists()
    await files.append(b".upload-1.part", b"half", offset=6, about=b"report")
    assert await files.finish_upload(b".upload-1.part", size=10, name=b"report", taken="refuse") == b"report"
    assert names_in(home) == ["report"]


async def test_what_comes_twice_is_added_once(guest: Guest, home: Path) -> None:
    """The answer to the first was lost."""
    _, files = guest
    await files.start_upload(b"", b"report", partial=b".upload-1.part", taken="refuse")
    await files.append(b".upload-1.part", b"once", offset=0, about=b"report")

    with pytest.raises(FilesError, match="another size"):
        await files.append(b".upload-1.part", b"once", offset=0, about=b"report")

    assert (home / ".upload-1.part").read_bytes() == b"once"


@pytest.mark.parametrize(
    ("name", "others", "expected"),
    [
        (b"a.txt", ["a.txt"], b"a (2).txt"),
        (b"a.tar.gz", ["a.tar.gz", "a.tar (2).gz"], b"a.tar (3).gz"),
        (b".hidden", [".hidden"], b".hidden (2)"),
        (b"plain", ["plain"], b"plain (2)"),
    ],
)
async def test_what_is_there_is_kept(
    name: bytes, others: list[str], expected: bytes, guest: Guest, home: Path
) -> None:
    _, files = guest
    for other in others:
        (home / other).write_text("older")
    with pytest.raises(FilesError, match="exists already"):
        await upload(files, name, b"newer")

    assert await upload(files, name, b"newer", taken="rename") == expected

    assert {(home / other).read_text() for other in others} == {"older"}
    assert (home / expected.decode()).read_text() == "newer"


async def test_a_name_that_is_taken_meanwhile_is_kept(guest: Guest, home: Path) -> None:
    _, files = guest
    await files.start_upload(b"", b"a.txt", partial=b".upload-1.part", taken="refuse")
    (home / "a.txt").write_text("older")

    assert await files.finish_upload(b".upload-1.part", size=0, name=b"a.txt", taken="refuse") == b"a (2).txt"


async def test_a_link_that_leads_nowhere_is_a_taken_name(guest: Guest, home: Path) -> None:
    _, files = guest
    (home / "a.txt").symlink_to(home / "nowhere")

    assert await upload(files, b"a.txt", b"newer", taken="rename") == b"a (2).txt"
    assert not (home / "nowhere").exists()


async def test_a_file_is_replaced_where_that_is_wanted_a_folder_never(guest: Guest, home: Path) -> None:
    _, files = guest
    (home / "a.txt").write_text("older")
    (home / "folder").mkdir()

    assert await upload(files, b"a.txt", b"newer", taken="replace") == b"a.txt"
    with pytest.raises(FilesError, match="not a plain file"):
        await upload(files, b"folder", b"newer", taken="replace")

    assert (home / "a.txt").read_text() == "newer"
    assert names_in(home / "folder") == []


async def test_an_upload_without_a_folder_goes_to_the_desktop_or_home(guest: Guest, home: Path) -> None:
    _, files = guest
    start = {"partial": b".upload-1.part", "taken": "refuse", "fallback": "Desktop"}
    assert await files.start_upload(b"", b"a", **start) == b""  # type: ignore[arg-type]
    (home / "Desktop").mkdir()

    assert await files.start_upload(b"", b"a", **start) == b"Desktop"  # type: ignore[arg-type]
    assert names_in(home / "Desktop") == [".upload-1.part"]


async def test_kinds_are_told_apart_through_links(guest: Guest, home: Path) -> None:
    _, files = guest
    (home / "folder").mkdir()
    (home / "file").write_bytes(b"12345")
    os.mkfifo(home / "pipe")
    for name, target in (
        ("to-folder", "folder"),
        ("to-file", "file"),
        ("to-nothing", "nowhere"),
        ("loop", "loop"),
    ):
        (home / name).symlink_to(target)

    listing = await files.list_folder(b"")

    assert {entry.name: (entry.kind, entry.is_link) for entry in listing.entries} == {
        b"folder": ("folder", False),
        b"file": ("file", False),
        b"pipe": ("other", False),
        b"to-folder": ("folder", True),
        b"to-file": ("file", True),
        b"to-nothing": ("other", True),
        b"loop": ("other", True),
    }
    with pytest.raises(FilesError, match="'pipe' is not a plain file"):
        await files.read(b"pipe", offset=0, size=1)


async def test_a_folder_of_very_many_is_cut_off(guest: Guest, home: Path) -> None:
    _, files = guest
    for number in range(3000):
        (home / (f"{number:04}" + "x" * 200)).touch()

    listing = await files.list_folder(b"")

    assert not listing.is_whole
    assert 1000 < len(listing.entries) < 3000
    assert {len(entry.name) for entry in listing.entries} == {204}


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda files: files.list_folder(b"gone"), "'gone' is not there any more"),
        (lambda files: files.list_folder(b"file"), "'file' is not a folder"),
        (lambda files: files.look_at(b"gone"), "'gone' is not there any more"),
        (lambda files: files.read(b"gone", offset=0, size=1), "'gone' is not there any more"),
        (lambda files: files.make_folder(b"file"), "'file' exists already"),
        (lambda files: files.make_folder(b"gone/new"), "'new': the machine says 'No such file or directory'"),
        (lambda files: upload(files, b"new", b"", folder=b"gone"), "'new' is not there any more"),
        (lambda files: files.append(b"gone", b"x", offset=0, about=b"new"), "'new' is not there any more"),
    ],
)
async def test_what_cannot_be_is_a_sentence(do: Any, words: str, guest: Guest, home: Path) -> None:
    (home / "file").touch()

    with pytest.raises(FilesError, match=words):
        await do(guest[1])


async def test_a_full_disk_is_said_in_the_machines_words(guest: Guest) -> None:
    local, files = guest
    await files.list_folder(b"")
    said = base64.b64encode(b"cat: write error: No space left on device\n").decode()
    full = {"exited": True, "exitcode": 1, "err-data": said}
    local.hostile = lambda request: full if request["execute"] == "guest-exec-status" else None

    with pytest.raises(FilesError, match="'new': the machine says 'No space left on device'"):
        await files.append(b".upload-1.part", b"x", offset=0, about=b"new")


async def test_programs_run_as_the_owner_of_the_home_with_all_groups(guest: Guest, home: Path) -> None:
    local, files = guest

    await files.list_folder(b"")

    status = home.stat()
    *_, become = local.commands
    assert list(become[:3]) == ["setpriv", f"--reuid={status.st_uid}", f"--regid={status.st_gid}"]
    assert become[3].startswith("--groups=")
    assert str(status.st_gid) in become[3].removeprefix("--groups=").split(",")


async def test_the_owner_is_looked_up_again_after_a_while(
    guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home may be mounted, and become somebody's, when the desktop is there."""
    local, files = guest
    now = 1000.0
    monkeypatch.setattr(guest_files, "time", SimpleNamespace(monotonic=lambda: now))
    await files.list_folder(b"")
    await files.list_folder(b"")
    assert [argv[0] for argv in local.commands] == ["stat", "id", "setpriv", "setpriv"]

    now += 11
    await files.list_folder(b"")

    assert [argv[0] for argv in local.commands[4:]] == ["stat", "id", "setpriv"]


async def test_a_home_that_is_not_there_is_said(tmp_path: Path) -> None:
    async with local_agent(tmp_path / "qga") as (_, agent):
        with pytest.raises(FilesError, match=r"has no folder '.*nobody'"):
            await GuestFiles(agent, str(tmp_path / "nobody")).list_folder(b"")


async def test_others_get_their_turn_during_a_transfer(guest: Guest, home: Path) -> None:
    """Between any two programs; each is one chunk."""
    local, files = guest
    (home / "large").write_bytes(bytes(8 * READ_BYTES))

    async def read_all() -> None:
        for at in range(8):
            await files.read(b"large", offset=at * READ_BYTES, size=READ_BYTES)

    async with asyncio.TaskGroup() as group:
        group.create_task(read_all())
        while len(local.commands) < 4:
            await asyncio.sleep(0.001)
        await files._agent.run("true")

    at = [argv[0] for argv in local.commands].index("true")
    assert at < len(local.commands) - 1


HOSTILE: list[object] = [
    {"pid": "no"},
    {"exited": True},
    {"exited": True, "exitcode": "zero", "out-data": 7},
    {"exited": True, "exitcode": 0, "out-data": "ñ"},
    {"exited": True, "exitcode": 0, "out-data": base64.b64encode(b"\xff" * 1000).decode()},
    {
        "exited": True,
        "exitcode": 0,
        "out-data": base64.b64encode(b"/81a4 " + b"9" * 5000 + b" 1 ./x").decode(),
    },
    {"exited": True, "exitcode": 1, "err-data": base64.b64encode(b"\x1b[2J" * 100_000).decode()},
    {"exited": True, "exitcode": 10**30},
    [],
    b"{" * 100_000,
    b"x" * (5 << 20),
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_answer_is_a_sentence_or_nothing(
    answer: object, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, files = guest
    await files.list_folder(b"")
    monkeypatch.setattr(agent_module, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(guest_files, "_PROGRAM_S", 0.5)

    def answer_status(request: dict[str, Any]) -> object:
        return answer if request["execute"] == "guest-exec-status" else None

    local.hostile = answer_status
    for do in (files.list_folder(b""), files.look_at(b"x"), files.read(b"x", offset=0, size=10)):
        try:
            found = await do
        except (VmError, FilesError) as exc:
            assert len(exc.message) < 500
            assert exc.message.isprintable()
        else:
            assert isinstance(found, bytes) or found.entries == ()  # type: ignore[union-attr]
            assert not isinstance(found, bytes) or len(found) <= 10


async def test_more_than_was_asked_for_is_left_out(guest: Guest) -> None:
    local, files = guest
    await files.list_folder(b"")
    flood = base64.b64encode(bytes(READ_BYTES)).decode()
    local.hostile = lambda request: (
        {"exited": True, "exitcode": 0, "out-data": flood}
        if request["execute"] == "guest-exec-status"
        else None
    )

    assert await files.read(b"x", offset=0, size=10) == bytes(10)


async def test_a_guest_that_is_gone_is_a_sentence(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """And works again when it is back: nothing was open."""
    local, files = guest
    await upload(files, b"a", b"kept")
    local.is_silent = True
    with monkeypatch.context() as patch, pytest.raises(VmError, match="did not answer"):
        patch.setattr(agent_module, "_TIMEOUT_S", 0.2)
        await files.read(b"a", offset=0, size=4)

    local.is_silent = False

    assert await files.read(b"a", offset=0, size=4) == b"kept"
