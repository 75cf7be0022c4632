"""What a guest mounts a server's folder with, and what becomes of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import vms

from qemuspawner.errors import SessionError, VmError
from qemuspawner.qemu.agent import Ended
from qemuspawner.qemu.folders import Ids
from qemuspawner.session.inside.remote_folders import RemoteFolders
from qemuspawner.session.inside.remote_mounts import Login, mount_command
from qemuspawner.spec import RemoteFolder, RemoteKind

IDS = Ids(uid=4321, gid=4322)
LOGIN = Login(account="alice", password="open sesame")


def folder(name: str, kind: RemoteKind = "cifs", **keys: Any) -> RemoteFolder:
    return RemoteFolder(
        **{"name": name, "kind": kind, "server": "10.1.2.3", "path": "/a b", "mount": f"/mnt/{name}", **keys}
    )


# The commands


def test_the_commands_that_mount_are_as_expected(
    compare_with_golden: Callable[[str, list[str]], None],
) -> None:
    """And have no password."""
    folders = (
        folder("n", "nfs"),
        folder("n", "nfs", server="2001:db8::1", port=2050, read_only=False),
        folder("c", "cifs"),
        folder("c", "cifs", domain="SITE", port=4450, read_only=False),
        folder("s", "sshfs", host_key="ssh-ed25519 AAAA"),
        folder("s", "sshfs", server="2001:db8::1", port=2200, read_only=False),
    )

    commands = [mount_command(one, 3, LOGIN if one.needs_login else None, IDS) for one in folders]

    compare_with_golden("remote-mounts", [word for command in commands for word in (*command, "")])


@pytest.mark.parametrize("account", ["", "-oProxyCommand=x", "a,uid=0", "a:b", "a/b", "a\nb", "a" * 129])
def test_an_account_is_no_option(account: str) -> None:
    with pytest.raises(ValueError, match="'account' is no account's name"):
        Login(account=account, password="x")


@pytest.mark.parametrize("password", ["", "a\nb", "a\0b", "x" * 513])
def test_a_password_is_one_line(password: str) -> None:
    with pytest.raises(ValueError, match="'password' is not a line") as refused:
        Login(account="alice", password=password)

    assert not password or password not in str(refused.value)


def test_a_login_is_in_no_log() -> None:
    assert LOGIN.password not in repr(LOGIN)
    assert LOGIN.password not in str(LOGIN)


# What becomes of them


class FakeAgent:
    """Ends every program with `ended`, as soon as `gate` is open."""

    def __init__(self) -> None:
        self.ended: Ended | VmError = Ended(code=0, stdout=b"", stderr=b"")
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[str, str]] = []  # verb and place
        self.read: list[bytes] = []

    async def run_program(self, *argv: str, stdin: bytes = b"", **_: object) -> Ended:
        self.asked.append((argv[4], argv[6]))
        self.read.append(stdin)
        if argv[4] == "mount":
            await self.gate.wait()
        if isinstance(self.ended, VmError):
            raise self.ended
        return self.ended

    def says(self, words: str) -> None:
        self.ended = Ended(code=1, stdout=words.encode(), stderr=b"")


class Parts:
    def __init__(self, *folders: RemoteFolder) -> None:
        self.agent = FakeAgent()
        self.told: list[str] = []
        self.remote = RemoteFolders(
            folders, ids=IDS, changed=lambda: None, tell=self.told.append, log=vms.LOG
        )

    async def connect(self, name: str, login: Login | None = LOGIN) -> None:
        await self.remote.connect(self.agent, name, login)  # type: ignore[arg-type]

    async def release(self, *, ends_programs: bool = False) -> None:
        await self.remote.release(self.agent, ends_programs=ends_programs)  # type: ignore[arg-type]

    def resume(self) -> None:
        self.remote.resume(self.agent)  # type: ignore[arg-type]

    async def until(self, *states: str) -> None:
        async with asyncio.timeout(5):
            while self.states != list(states):
                await asyncio.sleep(0)

    @property
    def states(self) -> list[str]:
        return [status.state for status in self.remote.statuses]


async def test_the_password_is_what_the_program_reads() -> None:
    parts = Parts(folder("c"), folder("s", "sshfs"))

    await parts.connect("c")
    await parts.connect("s")

    assert parts.agent.read == [b"password=open sesame\n", b"open sesame\n"]
    assert [(one.state, one.asks) for one in parts.remote.statuses] == [("connected", False)] * 2


async def test_only_what_needs_no_login_is_there_by_itself() -> None:
    parts = Parts(folder("c"), folder("n", "nfs"))

    parts.resume()
    await parts.until("off", "connected")

    assert parts.agent.asked == [("mount", "/mnt/n")]
    with pytest.raises(SessionError, match="'c' asks for an account and a password"):
        await parts.connect("c", None)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("@silent\n", "its server does not answer"),
        ("@link\n", "its place is behind a link"),
        ("mount error(13): Permission denied\nRefer to the mount.cifs(8) manual\n", "Permission denied"),
        ("alice@10.1.2.3: Permission denied (password).\nread: Connection reset by peer\n", "(password)"),
        ("<b>\x1b[31mno" + "x" * 500, "<b> [31mnox"),
        ("", "?"),
    ],
)
async def test_why_it_failed_is_told_as_text(says: str, words: str) -> None:
    """And it can be tried again, with a password that is asked for again."""
    parts = Parts(folder("c"))
    parts.agent.says(says)

    with pytest.raises(VmError, match="The folder 'c' is not connected: ") as failed:
        await parts.connect("c")

    assert words in failed.value.message
    assert len(failed.value.message) < 260
    assert (parts.states, parts.remote.statuses[0].asks) == (["failed"], True)
    assert parts.told == []


async def test_a_password_that_no_longer_holds_is_asked_for() -> None:
    """What the session knew is tried once more, and no more."""
    parts = Parts(folder("c"))
    await parts.connect("c")
    parts.agent.says("Permission denied")

    with pytest.raises(VmError):
        await parts.connect("c", None)

    assert parts.remote.statuses[0].asks
    parts.resume()
    assert parts.states == ["failed"]


async def test_who_waits_for_nothing_is_told_of_a_failure() -> None:
    parts = Parts(folder("n", "nfs"))
    parts.agent.says("@silent")

    parts.resume()
    async with asyncio.timeout(5):
        while not parts.told:
            await asyncio.sleep(0)

    assert parts.told == ["The folder 'n' is not connected: its server does not answer."]


async def test_a_second_attempt_waits_for_the_first() -> None:
    parts = Parts(folder("c"))
    parts.agent.gate.clear()
    first = asyncio.create_task(parts.connect("c"))
    await parts.until("connecting")

    with pytest.raises(SessionError, match="is being connected already"):
        await parts.connect("c")

    parts.agent.gate.set()
    await first


async def test_a_save_waits_for_no_server() -> None:
    """Who waits for the server is told."""
    parts = Parts(folder("c"))
    parts.agent.gate.clear()
    waiting = asyncio.create_task(parts.connect("c"))
    await parts.until("connecting")

    await parts.release()

    with pytest.raises(VmError, match="saved or stopped meanwhile"):
        await waiting
    assert parts.agent.asked == [("mount", "/mnt/c"), ("unmount", "/mnt/c")]
    assert parts.states == ["off"]


async def test_a_guest_that_boots_anew_meanwhile_is_asked_again() -> None:
    """Twice at once, as QEMU may tell of a reset twice."""
    parts = Parts(folder("n", "nfs"))
    parts.agent.gate.clear()
    parts.resume()
    await parts.until("connecting")

    parts.remote.forget()
    parts.resume()
    parts.agent.gate.set()
    await parts.until("connected")

    assert parts.agent.asked[-1] == ("mount", "/mnt/n")


async def test_a_guest_that_is_silent_is_told() -> None:
    parts = Parts(folder("c"))
    parts.agent.ended = VmError("The guest agent did not answer.")

    with pytest.raises(VmError, match=r"The folder 'c' is not connected: the machine does not answer\.$"):
        await parts.connect("c")


async def test_after_a_save_all_are_mounted_again_as_before() -> None:
    parts = Parts(folder("c"), folder("d"))
    await parts.connect("c")

    await parts.release(ends_programs=True)
    parts.resume()
    await parts.until("connected", "off")

    assert parts.agent.asked == [("mount", "/mnt/c"), ("end", "/mnt/c"), ("mount", "/mnt/c")]
    assert parts.agent.read[-1] == b"password=open sesame\n"


async def test_a_folder_in_use_is_told_with_the_programs() -> None:
    parts = Parts(folder("c"))
    await parts.connect("c")
    parts.agent.says("bash, editor\n")

    with pytest.raises(VmError, match="The folder 'c' is in use in the desktop by: bash, editor"):
        await parts.release()

    assert parts.states == ["connected"]


async def test_a_guest_that_does_not_answer_can_be_saved() -> None:
    parts = Parts(folder("c"))
    await parts.connect("c")
    parts.agent.ended = VmError("silent")

    await parts.release()

    assert parts.states == ["off"]


async def test_what_is_disconnected_is_forgotten() -> None:
    parts = Parts(folder("c"))
    await parts.connect("c")

    await parts.remote.disconnect(parts.agent, "c")  # type: ignore[arg-type]
    parts.resume()

    assert (parts.states, parts.remote.statuses[0].asks) == (["off"], True)
    with pytest.raises(SessionError, match="no folder of a server called 'x'"):
        await parts.connect("x")
