"""Folders of the host in the demo machine: by virtiofs where it boots, by 9p where it is restored."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import hubs
import pytest
import pytest_asyncio
import vms

from qemuspawner.errors import VmError
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.supervisor import Supervisor
from qemuspawner.spec import Folder, FolderStatus, SessionSpec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

_AS_USER = ("setpriv", "--reuid=1000", "--regid=1000", "--init-groups", "sh", "-c")


class Desktop:
    """A session in this process, without its web side; it can be woken again."""

    def __init__(self, spec: SessionSpec, host: Path) -> None:
        self.spec = spec
        self.home = host / "home"
        self.data = host / "data"
        self.secret = host / "secret"
        self.supervisor: Supervisor
        self._run: asyncio.Task[None]

    async def start(self) -> None:
        self.supervisor = Supervisor(self.spec)
        self.supervisor.prepare()
        self._run = asyncio.create_task(self.supervisor.run())
        await self.until(lambda: all(one.way for one in self.folders) and bool(self.folders))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(300):
            while not condition():
                status = self.supervisor.status()
                assert status.state not in ("failed", "ended"), status
                await asyncio.sleep(0.1)

    @property
    def folders(self) -> tuple[FolderStatus, ...]:
        return self.supervisor.status().folders

    def told_of_folders(self) -> list[str]:
        return [step.text for step in self.supervisor.status().steps if step.text.startswith("The folder ")]

    async def sh(self, script: str, *, as_user: bool = True) -> str:
        agent = self.supervisor.running_guest().agent
        assert agent is not None
        _, words = await agent.run(*(_AS_USER if as_user else ("sh", "-c")), script)
        return words

    async def end(self) -> None:
        self.supervisor.end(Ending(reason="Over.", graceful=False))
        await self._run

    async def wait_for_end(self) -> None:
        await self._run


@pytest.fixture(scope="module")
def host() -> Iterator[Path]:
    with hubs.state_folder() as place:
        (place / "home").mkdir(mode=0o755)
        (place / "data").mkdir(mode=0o755)
        (place / "home/notebook.ipynb").write_text("from the hub")
        (place / "data/raw").write_text("measured")
        (place / "secret").write_text("secret")
        (place / "home/absolute").symlink_to(place / "secret")
        (place / "home/relative").symlink_to("../secret")
        os.mkfifo(place / "home/pipe")
        if os.geteuid() == 0:
            os.mknod(place / "home/null", 0o666 | 0o020000, os.makedev(1, 3))
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["virtiofs", "9p"])
async def desktop(request: pytest.FixtureRequest, warm_state: Path, host: Path) -> AsyncIterator[Desktop]:
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", warm_state / "images")
    folders = (
        Folder(name="home", path=str(host / "home"), mount="/home/user/my files", read_only=False),
        Folder(name="data", path=str(host / "data"), mount="/data/data"),
    )
    spec = vms.make_spec(
        warm_state, machine, memory_mib=1024, server_name=request.param, folders=folders,
        templates=request.param == "9p", suspend_on=("stop",),
    )  # fmt: skip
    desktop = Desktop(spec, host)
    await desktop.start()
    assert {one.way for one in desktop.folders} == {request.param}
    yield desktop
    with contextlib.suppress(VmError):
        await desktop.end()


async def test_files_are_the_same_on_both_sides(desktop: Desktop) -> None:
    """What the user writes is the account's on the host, and what the host writes is the user's."""
    words = await desktop.sh(
        "cd '/home/user/my files' && cat notebook.ipynb && stat -c ' %u %g' notebook.ipynb; echo here > desk"
    )

    assert words == "from the hub 1000 1000\n"
    assert (desktop.home / "desk").read_text() == "here\n"
    assert (desktop.home / "desk").stat().st_uid == os.geteuid()
    (desktop.home / "desk").write_text("there\n")
    assert await desktop.sh("sleep 1; cat '/home/user/my files/desk'") == "there\n"


async def test_many_files_come_and_go(desktop: Desktop) -> None:
    """QEMU's virtiofsd was killed by its own walls when its threads became many."""
    words = await desktop.sh(
        "mkdir '/home/user/my files/many' && cd '/home/user/my files/many' &&"
        " for number in $(seq 500); do echo > $number; done && ls -l | wc -l && rm * && ls"
    )

    assert words == "501\n"
    (desktop.home / "many").rmdir()


async def test_a_file_by_9p_is_no_larger_than_the_desktop_may_write_to_its_disk(desktop: Desktop) -> None:
    """As QEMU itself writes it, whose files are bounded; virtiofsd is a program of its own."""
    words = await desktop.sh("truncate -s 20G '/home/user/my files/large' && echo made")

    is_bounded = desktop.folders[0].way == "9p"
    assert ("File too large" in words, "made" in words) == (is_bounded, not is_bounded)
    (desktop.home / "large").unlink(missing_ok=True)


async def test_a_read_only_folder_is_read_only(desktop: Desktop) -> None:
    """Also for the guest's root, who may mount it anew."""
    await desktop.sh("mount -o remount,rw /data/data", as_user=False)

    words = await desktop.sh("cat /data/data/raw; echo x > /data/data/x")

    assert words.startswith("measured")
    assert "Read-only file system" in words
    assert [path.name for path in desktop.data.iterdir()] == ["raw"]


async def test_links_and_devices_lead_nowhere(desktop: Desktop) -> None:
    """Links are looked up in the guest; a device of the host is none there; and none can be made."""
    words = await desktop.sh(
        "cd '/home/user/my files'; cat absolute relative; timeout 5 cat null < /dev/null; mknod disk b 8 0",
        as_user=False,
    )

    assert "secret" not in words.replace("/secret", "").replace("relative", "")
    assert words.count("No such file") == 2
    assert not (desktop.home / "disk").exists()


async def test_a_folder_in_use_keeps_the_desktop_awake(desktop: Desktop) -> None:
    """It is said by what; the desktop goes on, with its folders."""
    await desktop.sh("cd '/home/user/my files'; sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > /tmp/pid")

    with pytest.raises(VmError, match="The folder 'home' is in use in the desktop by: sleep"):
        await desktop.supervisor.suspend(by="alice")

    assert desktop.supervisor.state == "running"
    assert (
        await desktop.sh("cat '/home/user/my files/notebook.ipynb' /data/data/raw") == "from the hubmeasured"
    )
    await desktop.sh("kill $(cat /tmp/pid)")


async def test_a_checkpoint_is_saved_and_the_folders_stay(desktop: Desktop) -> None:
    await desktop.supervisor.save_checkpoint(title="one", by="alice")

    assert await desktop.sh("cat /data/data/raw") == "measured"


async def test_a_guest_that_boots_anew_has_its_folders(desktop: Desktop) -> None:
    await desktop.sh("touch /run/before", as_user=False)
    told = len(desktop.told_of_folders())

    await desktop.supervisor.power("reset", by="alice")

    async with asyncio.timeout(200):
        words = ""
        while words != "measured":
            await asyncio.sleep(1)
            with contextlib.suppress(VmError):
                words = await desktop.sh("[ -e /run/before ] || cat /data/data/raw")
        # A PC's firmware resets it several times more, and each was another mount below the user's programs.
        await asyncio.sleep(5)
    assert len(desktop.told_of_folders()) == told + 2


async def test_a_desktop_that_must_sleep_ends_what_uses_its_folders_and_wakes_with_them(
    desktop: Desktop,
) -> None:
    """At a stop the alternative is the end of all programs. The folders are those of the next start."""
    await desktop.sh("cd '/home/user/my files'; sleep 1000 > /dev/null 2>&1 < /dev/null & echo $! > /tmp/pid")
    await desktop.sh("echo kept > /run/kept", as_user=False)

    desktop.supervisor.end(Ending(reason="Stopped.", cause="stop", for_good=False))
    await desktop.wait_for_end()
    (desktop.home / "meanwhile").write_text("new")
    await desktop.start()

    assert desktop.supervisor.status().way == "woken"
    assert await desktop.sh("cat /run/kept; cat '/home/user/my files/meanwhile'") == "kept\nnew"


async def test_a_server_that_hangs_does_not_hold_the_end_up(desktop: Desktop) -> None:
    """virtiofsd is stopped, and a program in the guest waits for it; 9p has no server but QEMU."""
    for pid in _servers(desktop):
        os.kill(pid, signal.SIGSTOP)
    await desktop.sh("cat '/home/user/my files/notebook.ipynb' > /dev/null 2>&1 < /dev/null &")

    async with asyncio.timeout(60):
        await desktop.end()

    assert desktop.supervisor.state == "ended"


def _servers(desktop: Desktop) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else [b""]
            if words[0].endswith(b"/virtiofsd"):
                found.append(int(entry.name))
    return found
