"""What is done once in a new desktop, by an agent whose guest is this host."""

import asyncio
import os
import signal
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import vms
from local_agent import Argv, local_agent

from qemuspawner.network import Network
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.saved import FirstSteps
from qemuspawner.session.inside.first_start import FirstStart
from qemuspawner.spec import ScriptRun, SessionSpec

CLOUD_CONFIG = "#cloud-config\nruncmd: [id]\n"


@dataclass
class Vm:
    """What knows how far its first start is."""

    first_steps: FirstSteps | None = field(default_factory=FirstSteps)

    @property
    def script(self) -> ScriptRun | None:
        return self.first_steps.script if self.first_steps else None


@dataclass
class Done:
    """What has come of a first start."""

    script: ScriptRun | None
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    commands: list[Argv] = field(default_factory=list)

    @property
    def shells(self) -> list[Argv]:
        """As whom the shells ran that carried something out."""
        return [argv for argv in self.commands if "/bin/sh" in argv]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The guest's user's."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def make_spec(home: Path, *, machine: dict[str, Any] | None = None, **more: Any) -> SessionSpec:
    keys = {"agent": True, "home": str(home), "image": {"file": "disk", "format": "raw"}}
    return vms.make_spec(home.parent, vms.make_machine(**{**keys, **(machine or {})}), **more)


async def start(spec: SessionSpec) -> Done:
    steps: list[str] = []
    warnings: list[str] = []

    def report(text: str, *, level: str = "info") -> None:
        (warnings if level == "warning" else steps).append(str(text))

    vm = Vm()
    first = FirstStart(spec, vm, report, has_booted=False)
    async with local_agent(Path(spec.state_dir) / "qga") as (local, agent):
        await first.do(agent)
        return Done(vm.script, steps, warnings, local.commands)


# A script of one's own


async def test_a_script_runs_with_its_own_interpreter_and_all_that_it_wrote_is_kept(home: Path) -> None:
    script = '#!/usr/bin/awk -f\nBEGIN { for (i = 0; i < 999; i++) print i; print "\\033[1m<done>" }\n'

    done = await start(make_spec(home, script=script))

    assert done.script is not None
    assert (done.script.state, done.script.code) == ("done", 0)
    assert done.script.output.startswith("0\n1\n2\n")
    assert done.script.output.endswith("998\n [1m<done>\n")
    assert done.steps[-1].endswith("997 998 [1m<done>")
    assert len(done.steps[-1]) < 350


async def test_what_is_kept_of_a_script_is_bounded(home: Path) -> None:
    done = await start(make_spec(home, script="#!/bin/sh\nyes 0123456789 | head -c 1000000\n"))

    assert done.script is not None
    assert 65_000 < len(done.script.output) <= 65_536


async def test_a_script_that_fails_says_how(home: Path) -> None:
    done = await start(make_spec(home, script="#!/bin/sh\necho no such package >&2\nexit 3\n"))

    assert done.script == ScriptRun(state="failed", code=3, output="no such package\n")
    assert done.warnings == ["The start script failed: it ended with code 3: no such package"]


async def test_a_script_that_cannot_be_run_has_no_code(home: Path) -> None:
    gone = home / "gone"

    done = await start(make_spec(gone, script="#!/bin/sh\necho never\n"))

    assert done.script == ScriptRun(state="failed")
    assert done.warnings == [f"The start script failed: The machine has no folder '{gone}'."]


async def test_what_a_script_leaves_running_keeps_nobody_waiting(home: Path) -> None:
    pid = home / "pid"

    done = await start(make_spec(home, script=f"#!/bin/sh\nsleep 300 &\necho $! > {pid}\necho started\n"))

    assert done.steps[-1] == "The start script is done: started"
    # It still runs.
    os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_nothing_of_a_script_stays(home: Path) -> None:
    before = set(Path("/var/tmp").iterdir())

    done = await start(make_spec(home, script='#!/bin/sh\necho "$0"\n'))

    assert done.script is not None
    assert done.script.output.startswith("/var/tmp/start-script.")
    assert set(Path("/var/tmp").iterdir()) == before


@pytest.mark.parametrize(
    ("by_hub", "by_machine", "is_root"),
    [("yes", False, True), ("", True, True), ("no", True, False), ("", False, False)],
)
async def test_a_script_is_roots_only_for_who_may_become_root(
    by_hub: str, by_machine: bool, is_root: bool, home: Path
) -> None:
    spec = make_spec(home, machine={"sudo": by_machine}, sudo=by_hub, script="#!/bin/sh\npwd\n")

    done = await start(spec)

    (shell,) = done.shells
    user = ["setpriv", f"--reuid={home.stat().st_uid}", f"--regid={home.stat().st_gid}"]
    assert shell[: 1 if is_root else 3] == (["/bin/sh"] if is_root else user)
    assert done.script is not None
    assert done.script.output.strip() == ("/root" if is_root else str(home))


async def test_a_cloud_config_is_carried_out_stage_by_stage_from_a_seed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the image's own cloud-init, here one that writes down what it is asked for."""
    bin_folder, root = home / "bin", home / "root"
    bin_folder.mkdir()
    fake = bin_folder / "cloud-init"
    fake.write_text(
        f'#!/bin/sh\necho "stage $*"\ncat {root}/var/lib/cloud/seed/nocloud/*-data\n[ "$1" != modules ]\n'
    )
    fake.chmod(0o755)
    environment = {"HOME": "/", "PATH": f"{bin_folder}:/usr/bin:/bin"}
    monkeypatch.setattr("qemuspawner.session.inside.first_start.ENVIRONMENT", environment)
    spec = make_spec(home, machine={"sudo": True, "cloud_init": True}, script=CLOUD_CONFIG)
    vm = Vm()
    first = FirstStart(spec, vm, lambda _text, *, level="info": None, has_booted=False)
    # The guest's root is a folder of the test.
    first._cloud_script = first._cloud_script.replace("/var/lib", f"{root}/var/lib").replace(
        "/etc/", f"{root}/etc/"
    )

    async with local_agent(home.parent / "qga") as (_, agent):
        await first.do(agent)

    assert vm.script is not None
    assert (vm.script.state, vm.script.code) == ("failed", 1)
    stages = [line for line in vm.script.output.splitlines() if line.startswith("stage")]
    assert stages == [
        "stage init --local",
        "stage init",
        "stage modules --mode=config",
        "stage modules --mode=final",
    ]
    assert f"instance-id: qemuspawner-{spec.session_id}" in vm.script.output
    assert CLOUD_CONFIG in vm.script.output
    assert "NoCloud" in (root / "etc/cloud/cloud.cfg.d/99-qemuspawner.cfg").read_text()


# While the desktop sleeps


async def sleep_during(spec: SessionSpec, agent: GuestAgent, vm: Vm, *, step: int) -> None:
    """Begin, and go away while a program of the step runs in the guest."""
    first = FirstStart(spec, vm, lambda _text, *, level="info": None, has_booted=False)
    doing = asyncio.create_task(first.do(agent))
    async with asyncio.timeout(30):
        while vm.first_steps is None or vm.first_steps.done < step or vm.first_steps.pid is None:
            await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.wait([doing])


async def wake(spec: SessionSpec, agent: GuestAgent, vm: Vm, *, has_booted: bool = False) -> list[str]:
    """Go on as another process of the host would; what was told."""
    told: list[str] = []
    first = FirstStart(
        spec, vm, lambda text, *, level="info": told.append(f"{level}: {text}"), has_booted=has_booted
    )
    await first.do(agent)
    return told


async def test_a_script_during_which_the_desktop_sleeps_is_followed_to_its_end(home: Path) -> None:
    """It has run once, and how it ended and what it wrote before and after is there."""
    script = "#!/bin/sh\necho before\nuntil [ -e go ]; do sleep 0.05; done\necho after\nexit 3\n"
    spec, vm = make_spec(home, script=script), Vm()
    async with local_agent(home.parent / "qga") as (local, agent):
        await sleep_during(spec, agent, vm, step=0)
        asleep = vm.script
        (home / "go").touch()
        told = await wake(spec, agent, vm)

    assert asleep == ScriptRun(state="running")
    assert vm.script == ScriptRun(state="failed", code=3, output="before\nafter\n")
    assert told == [
        "info: The start script goes on",
        "warning: The start script failed: it ended with code 3: before after",
    ]
    assert len([argv for argv in local.commands if "/bin/sh" in argv]) == 1


async def test_what_was_told_of_a_script_stays_and_it_runs_no_more(home: Path) -> None:
    spec, vm = make_spec(home, script="#!/bin/sh\necho once\n"), Vm()
    async with local_agent(home.parent / "qga") as (local, agent):
        await wake(spec, agent, vm)
        run, count = vm.script, len(local.commands)
        told = await wake(spec, agent, vm)

    assert run == vm.script == ScriptRun(state="done", code=0, output="once\n")
    assert (told, len(local.commands)) == ([], count)


async def test_what_comes_after_the_sites_program_is_not_lost_by_a_sleep(home: Path, tmp_path: Path) -> None:
    gift = make_gift(
        tmp_path / "gift",
        files={"first": ""},
        run=f"#!/bin/sh\necho gift >> {home}/ran\nuntil [ -e {home}/go ]; do sleep 0.05; done\n",
    )
    spec, vm = make_spec(home, gifts=(gift,), script="#!/bin/sh\necho mine >> ran\n"), Vm()
    async with local_agent(home.parent / "qga") as (_, agent):
        await sleep_during(spec, agent, vm, step=2)
        (home / "first").unlink()
        (home / "go").touch()
        told = await wake(spec, agent, vm)

    assert (home / "ran").read_text() == "gift\nmine\n"
    assert not (home / "first").exists()
    assert told == ["info: Running the start script", "info: The start script is done"]


@pytest.mark.parametrize("has_booted", [True, False])
async def test_a_script_that_a_boot_has_ended_is_told_as_that_and_does_not_run_again(
    has_booted: bool, home: Path
) -> None:
    """Whether the machine was booted from the disk that was kept, or has booted while nobody looked."""
    spec, vm = make_spec(home, script="#!/bin/sh\nuntil [ -e go ]; do sleep 0.05; done\n"), Vm()
    async with local_agent(home.parent / "qga") as (local, agent):
        await sleep_during(spec, agent, vm, step=0)
        await local.boot()
        count = len(local.commands)
        told = await wake(spec, agent, vm, has_booted=has_booted)

    assert vm.script == ScriptRun(state="interrupted")
    assert told[-1] == "warning: The start script was interrupted: the machine has booted anew meanwhile"
    assert len(local.commands) == count


async def test_of_a_desktop_that_was_kept_without_a_word_of_it_nothing_is_done_again(home: Path) -> None:
    spec, vm = make_spec(home, script="#!/bin/sh\ntouch again\n"), Vm(first_steps=None)
    async with local_agent(home.parent / "qga") as (local, agent):
        assert await wake(spec, agent, vm) == []

    assert local.commands == []


# What the site gives


def make_gift(folder: Path, *, files: dict[str, str] | None = None, packages: str = "", run: str = "") -> str:
    folder.mkdir()
    for name, content in (files or {}).items():
        path = folder / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name, text in (("packages", packages), ("run", textwrap.dedent(run))):
        if text:
            (folder / name).write_text(text)
    return str(folder)


async def test_files_come_into_the_home_as_its_owners_and_replace_nothing(home: Path, tmp_path: Path) -> None:
    gift = make_gift(
        tmp_path / "gift", files={"notes/read me": "new", ".config/site": "x" * 3_000_000, "mine": "theirs"}
    )
    (tmp_path / "gift/home/link").symlink_to("notes")
    (home / "mine").write_text("mine")

    done = await start(make_spec(home, gifts=(gift,)))

    assert done.warnings == []
    assert (home / "notes/read me").read_text() == "new"
    assert (home / ".config/site").stat().st_size == 3_000_000
    assert (home / "mine").read_text() == "mine"
    assert (home / "link").readlink() == Path("notes")
    assert sorted(path.name for path in home.iterdir()) == [".config", "link", "mine", "notes"]
    assert {argv[0] for argv in done.shells} == {"setpriv"}


async def test_the_program_of_a_gift_is_roots_and_comes_before_the_users_script(
    home: Path, tmp_path: Path
) -> None:
    one = make_gift(tmp_path / "one", run=f"#!/bin/sh\necho one >> {home}/ran\n")
    two = make_gift(tmp_path / "two", run=f"#!/bin/sh\necho two >> {home}/ran\nexit 7\n")

    done = await start(make_spec(home, gifts=(one, two), script=f"#!/bin/sh\necho mine >> {home}/ran\n"))

    assert (home / "ran").read_text() == "one\ntwo\nmine\n"
    assert [argv[0] for argv in done.shells] == ["/bin/sh", "/bin/sh", "setpriv"]
    assert done.warnings == ["The program of your site failed: it ended with code 7 and said nothing"]


async def test_packages_need_a_network(home: Path, tmp_path: Path) -> None:
    gift = make_gift(tmp_path / "gift", packages="# tools\nhtop\n")

    done = await start(make_spec(home, gifts=(gift,)))

    assert done.warnings == ["The packages of your site are not installed: the machine has no network"]


async def test_packages_are_installed_by_their_names(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    apt = bin_folder / "apt-get"
    apt.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/apt\n')
    apt.chmod(0o755)
    monkeypatch.setattr(
        "qemuspawner.session.inside.gifts.ENVIRONMENT", {"PATH": f"{bin_folder}:/usr/bin:/bin"}
    )
    gift = make_gift(tmp_path / "gift", packages="htop # a monitor\n\ng++\n")

    done = await start(make_spec(home, network=Network(mode="internet"), gifts=(gift,)))

    assert done.warnings == []
    asked = (tmp_path / "apt").read_text().splitlines()
    assert asked == ["--quiet update", "--quiet --yes --no-install-recommends install -- htop g++"]


@pytest.mark.parametrize(
    ("packages", "why"),
    [
        ("--allow-unauthenticated\n", "'--allow-unauthenticated' is not the name of a package"),
        ("a; reboot\n", "'a; reboot' is not the name of a package"),
        ("$(id)\n", "'$(id)' is not the name of a package"),
        ("x" * (2 << 20), "'packages' has more than 1 MiB"),
    ],
)
async def test_a_gift_with_something_else_in_it_is_not_given(
    packages: str, why: str, home: Path, tmp_path: Path
) -> None:
    gift = make_gift(tmp_path / "gift", packages=packages)

    done = await start(make_spec(home, gifts=(gift,)))

    assert done.warnings == [f"What your site gives to new desktops cannot be read: {why}"]
    assert done.shells == []


async def test_a_gift_that_is_not_there_is_told_and_the_next_one_is_given(home: Path, tmp_path: Path) -> None:
    gift = make_gift(tmp_path / "gift", files={"here": ""})

    done = await start(make_spec(home, gifts=(str(tmp_path / "missing"), gift)))

    assert done.warnings == [
        "What your site gives to new desktops cannot be read: this host has no folder for it"
    ]
    assert (home / "here").exists()


async def test_devices_and_sockets_are_left_out(home: Path, tmp_path: Path) -> None:
    gift = make_gift(tmp_path / "gift", files={"plain": ""})
    os.mkfifo(tmp_path / "gift/home/pipe")

    await start(make_spec(home, gifts=(gift,)))

    assert [path.name for path in home.iterdir()] == ["plain"]
