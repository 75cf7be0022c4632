"""What is done once in a new desktop, by an agent whose guest is this host."""

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
from qemuspawner.session.first_start import FirstStart
from qemuspawner.spec import ScriptRun, SessionSpec

CLOUD_CONFIG = "#cloud-config\nruncmd: [id]\n"


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

    first = FirstStart(spec, report)
    async with local_agent(Path(spec.state_dir) / "qga") as (local, agent):
        await first.do(agent)
        return Done(first.script, steps, warnings, local.commands)


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
    monkeypatch.setattr(
        "qemuspawner.session.first_start.ENVIRONMENT", {"HOME": "/", "PATH": f"{bin_folder}:/usr/bin:/bin"}
    )
    spec = make_spec(home, machine={"sudo": True, "cloud_init": True}, script=CLOUD_CONFIG)
    first = FirstStart(spec, lambda _text, *, level="info": None)
    # The guest's root is a folder of the test.
    first._cloud_script = first._cloud_script.replace("/var/lib", f"{root}/var/lib").replace(
        "/etc/", f"{root}/etc/"
    )

    async with local_agent(home.parent / "qga") as (_, agent):
        await first.do(agent)

    assert first.script is not None
    assert (first.script.state, first.script.code) == ("failed", 1)
    stages = [line for line in first.script.output.splitlines() if line.startswith("stage")]
    assert stages == [
        "stage init --local",
        "stage init",
        "stage modules --mode=config",
        "stage modules --mode=final",
    ]
    assert f"instance-id: qemuspawner-{spec.session_id}" in first.script.output
    assert CLOUD_CONFIG in first.script.output
    assert "NoCloud" in (root / "etc/cloud/cloud.cfg.d/99-qemuspawner.cfg").read_text()


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
    monkeypatch.setattr("qemuspawner.session.gifts.ENVIRONMENT", {"PATH": f"{bin_folder}:/usr/bin:/bin"})
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
