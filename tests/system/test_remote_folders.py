"""Folders of real servers in the demo machine's guest, with an account that its user alone knows."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import file_servers
import hubs
import network_world
import pytest
import pytest_asyncio
import vms
from file_servers import ACCOUNT, PASSWORD, SILENT_PORT, FileServers
from msgspec.structs import replace
from network_world import PEERS, World

from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.network import Network
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.inside.remote_mounts import Login
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.spec import RemoteFolder, RemoteFolderStatus, SessionSpec, Step

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

_AS_USER = ("setpriv", "--reuid=1000", "--regid=1000", "--init-groups", "sh", "-c")
_LOGIN = Login(account=ACCOUNT, password=PASSWORD)
_SERVER = PEERS["site"]


class Desktop:
    """A session in this process, without its web side; on a host with servers in its network."""

    def __init__(self, spec: SessionSpec, around: World) -> None:
        self.spec = spec
        self.supervisor: Supervisor
        self._around = around
        self._run: asyncio.Task[None]

    async def start(self) -> None:
        self.supervisor = Supervisor(self.spec)
        with self._around.on_host():
            self.supervisor.prepare()
        self._run = asyncio.create_task(self.supervisor.run())
        await self.until(lambda: self.folder("nfs").state == "connected")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(300):
            while not condition():
                status = self.supervisor.status()
                assert status.state not in ("failed", "ended"), status
                changed = self.supervisor.changed
                await changed.wait()

    def folder(self, name: str) -> RemoteFolderStatus:
        return next(one for one in self.supervisor.status().remote_folders if one.name == name)

    async def connect(self, name: str, login: Login | None = _LOGIN) -> None:
        await self.supervisor.connect_folder(name, login, by="alice")

    async def sh(self, script: str, *, as_user: bool = True) -> str:
        agent = self.supervisor.running_guest().agent
        assert agent is not None
        _, words = await agent.run(*(_AS_USER if as_user else ("sh", "-c")), script)
        return words

    async def end(self, ending: Ending) -> None:
        self.supervisor.end(ending)
        await self._run


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with network_world.world(tmp_path_factory.mktemp("world")) as around:
        yield around


@pytest.fixture(scope="module")
def servers(around: World) -> Iterator[FileServers]:
    with hubs.state_folder() as folder, file_servers.file_servers(around, folder) as servers:
        yield servers


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["cold", "restored"])
async def desktop(
    request: pytest.FixtureRequest, warm_state: Path, around: World, servers: FileServers
) -> AsyncIterator[Desktop]:
    def folder(name: str, kind: str, path: str, **keys: object) -> RemoteFolder:
        return RemoteFolder(
            name=name, kind=kind, server=_SERVER, path=path, mount=f"/mnt/{name}", **keys  # type: ignore[arg-type]
        )  # fmt: skip

    key = servers.host_key
    other_key = key[:-8] + "A" * 8
    folders = (
        folder("sshfs", "sshfs", str(servers.shared), host_key=key, read_only=False),
        folder("cifs", "cifs", "/files/shared", read_only=False),
        folder("nfs", "nfs", "/files", read_only=False),
        folder("read-only", "sshfs", str(servers.shared), host_key=key),
        folder("impostor", "sshfs", str(servers.shared), host_key=other_key),
        folder("silent", "nfs", "/files", port=SILENT_PORT),
    )
    spec = vms.make_spec(
        warm_state, load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images"), memory_mib=1024,
        server_name=request.param, remote_folders=folders, templates=request.param == "restored",
        suspend_on=("stop",), network=Network(mode="allow", allow=(_SERVER,)),
    )  # fmt: skip
    desktop = Desktop(spec, around)
    await desktop.start()
    assert desktop.supervisor.status().way == request.param
    yield desktop
    with contextlib.suppress(VmError):
        await desktop.end(Ending(reason="Over.", graceful=False))


@pytest.mark.parametrize("name", ["sshfs", "cifs"])
async def test_files_of_a_server_are_there_with_the_users_own_account(
    desktop: Desktop, servers: FileServers, name: str
) -> None:
    """In the guest they are its user's, on the server the account's."""
    (servers.shared / "measured").write_text("by the beamline")

    await desktop.connect(name)
    words = await desktop.sh(f"cd /mnt/{name} && cat measured && echo here > {name} && stat -c ' %u' {name}")

    assert words == "by the beamline 1000\n"
    assert (servers.shared / name).read_text() == "here\n"
    assert (servers.shared / name).stat().st_uid == file_servers.UID


async def test_a_folder_that_needs_no_login_is_there_by_itself(desktop: Desktop) -> None:
    """Also after it was taken out: what was written is on the server."""
    await desktop.sh("echo kept > /mnt/nfs/kept")

    await desktop.supervisor.disconnect_folder("nfs", by="alice")
    without = await desktop.sh("cat /mnt/nfs/kept")
    await desktop.connect("nfs", None)

    assert "No such file" in without
    assert await desktop.sh("cat /mnt/nfs/kept") == "kept\n"


async def test_a_server_that_is_silent_is_told_and_keeps_nobody_waiting(desktop: Desktop) -> None:
    """Its folder was to be there from the start, which has long been over."""
    problem = "The folder 'silent' is not connected: its server does not answer."
    told = Step(at=0, text=problem, level="warning")

    await desktop.until(lambda: told in [replace(step, at=0) for step in desktop.supervisor.status().steps])

    assert desktop.folder("silent").state == "failed"
    assert desktop.folder("silent").problem == problem


async def test_a_read_only_folder_is_read_only(desktop: Desktop, servers: FileServers) -> None:
    (servers.shared / "raw").write_text("measured")
    await desktop.connect("read-only")

    words = await desktop.sh("cat /mnt/read-only/raw; echo x > /mnt/read-only/x")

    assert words.startswith("measured")
    assert "Read-only file system" in words


@pytest.mark.parametrize("name", ["sshfs", "cifs"])
async def test_a_wrong_password_is_told_and_another_can_be_tried(desktop: Desktop, name: str) -> None:
    with contextlib.suppress(VmError):
        await desktop.supervisor.disconnect_folder(name, by="alice")

    with pytest.raises(VmError, match=f"'{name}' is not connected: .*Permission denied"):
        await desktop.connect(name, Login(account=ACCOUNT, password="guessed"))
    assert (desktop.folder(name).state, desktop.folder(name).asks) == ("failed", True)
    await desktop.connect(name)

    assert (desktop.folder(name).state, desktop.folder(name).asks) == ("connected", False)


async def test_a_server_with_another_key_is_told_no_password(desktop: Desktop) -> None:
    with pytest.raises(VmError, match="'impostor' is not connected: Host key verification failed"):
        await desktop.connect("impostor")


async def test_the_password_is_on_no_command_line_in_no_file_and_in_no_log(
    desktop: Desktop, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the guest's and the host's."""
    caplog.set_level(logging.DEBUG)
    for name in ("sshfs", "cifs"):
        await desktop.connect(name)
    word = PASSWORD.split("'")[1]

    # A pattern that does not find itself.
    in_guest = await desktop.sh(
        f"grep -s -l '[{word[0]}]{word[1:]}' /proc/[0-9]*/cmdline /proc/[0-9]*/environ;"
        f" grep -r -s -l '[{word[0]}]{word[1:]}' /run /tmp /etc /home /root /var/log",
        as_user=False,
    )
    state = Path(desktop.spec.state_dir)
    on_host = [
        str(path)
        for folder in (Path("/proc"), state / "sessions")
        for path in folder.glob("[0-9]*/cmdline" if folder.name == "proc" else "**/*")
        # Of a desktop that sleeps the whole memory is kept, with what its programs have left there.
        if path.is_file() and path.name != "state" and word.encode() in _read(path)
    ]

    assert (in_guest, on_host) == ("", [])
    assert word not in caplog.text


async def test_a_folder_in_use_keeps_the_desktop_awake(desktop: Desktop) -> None:
    await desktop.sh("cd /mnt/sshfs; sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > /tmp/pid")

    with pytest.raises(VmError, match="The folder 'sshfs' is in use in the desktop by: sleep"):
        await desktop.supervisor.suspend(by="alice")

    assert desktop.supervisor.state == "running"
    await desktop.sh("kill $(cat /tmp/pid)")
    await desktop.until(lambda: desktop.folder("sshfs").state == "connected")


async def test_after_a_checkpoint_the_folders_are_there_again(desktop: Desktop, servers: FileServers) -> None:
    """Without their user being asked."""
    (servers.shared / "new").write_text("new")

    await desktop.supervisor.save_checkpoint(title="one", by="alice")
    await desktop.until(lambda: {desktop.folder(name).state for name in ("sshfs", "cifs")} == {"connected"})

    assert await desktop.sh("cat /mnt/sshfs/new /mnt/cifs/new") == "newnew"


async def test_servers_that_fall_silent_do_not_keep_the_desktop_awake(
    desktop: Desktop, servers: FileServers
) -> None:
    """Programs wait for them at that moment; when it wakes up the user is asked who they are again."""
    await desktop.sh("echo kept > /run/kept", as_user=False)
    with servers.silent():
        for name in ("sshfs", "cifs", "nfs"):
            await desktop.sh(f"ls /mnt/{name}/elsewhere > /dev/null 2>&1 < /dev/null & true")
        async with asyncio.timeout(120):
            await desktop.supervisor.suspend(by="alice")
    await desktop.end(Ending(reason="Over."))

    await desktop.start()
    asked = {name: desktop.folder(name).asks for name in ("sshfs", "cifs", "nfs")}
    await desktop.connect("sshfs")

    assert desktop.supervisor.status().way == "woken"
    assert asked == {"sshfs": True, "cifs": True, "nfs": False}
    assert await desktop.sh("cat /run/kept /mnt/nfs/kept /mnt/sshfs/new") == "kept\nkept\nnew"


async def test_a_guest_that_boots_anew_has_its_folders(desktop: Desktop) -> None:
    await desktop.supervisor.power("reset", by="alice")

    await desktop.until(lambda: desktop.folder("sshfs").state != "connected")
    await desktop.until(lambda: desktop.folder("sshfs").state == "connected")

    assert await desktop.sh("cat /mnt/sshfs/new") == "new"


def _read(path: Path) -> bytes:
    """Nothing where it has gone meanwhile."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
