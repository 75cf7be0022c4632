"""What cloud-init is told without a guest agent, what comes of it in the guest, and how the host learns."""

import asyncio
import base64
import contextlib
import json
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guests
import pytest
import vms

from qemuspawner.account import Account, Group
from qemuspawner.errors import VmError
from qemuspawner.network import Network
from qemuspawner.qemu.seed import write_seed
from qemuspawner.saved import FirstSteps
from qemuspawner.session.inside.seed import make_seed
from qemuspawner.session.vm.first_boot import FirstBoot
from qemuspawner.session.vm.prepare import Plan
from qemuspawner.spec import ScriptRun, SessionSpec

ZOE = Account(
    name="zoe",
    uid=4711,
    gid=4712,
    groups=(Group(name="beamline", gid=5000),),
    full_name="Zoë O'Neill",
    language="fr_FR",
)
HOSTILE = "a\"b'; reboot #\n$(id) `id` 😀\\"
CLOUD_CONFIG = "#cloud-config\nruncmd: [id]\n"


def make_spec(**more: Any) -> SessionSpec:
    keys = {"cloud_init": True, "image": {"file": "disk", "format": "raw"}, **more.pop("machine", {})}
    return vms.make_spec(Path("state"), vms.make_machine(id="cloud", **keys), **more)


def seed_of(spec: SessionSpec) -> dict[str, bytes]:
    """Where nothing of it is told as a problem."""
    problems: list[str] = []
    seed = make_seed(spec, lambda problem: problems.append(str(problem)))
    assert problems == []
    return seed


def make_gift(folder: Path) -> str:
    (folder / "home/notes").mkdir(parents=True)
    (folder / "home/notes/a b").write_text("given\n")
    (folder / "packages").write_text("htop\ng++ # to compile\n")
    (folder / "run").write_text("#!/bin/sh\necho the site; exit 5\n")
    return str(folder)


# The volume


def test_each_session_is_an_instance_of_its_own_with_its_name() -> None:
    told = json.loads(seed_of(make_spec(server_name="analysis"))["meta-data"])

    spec = make_spec(server_name="analysis")
    assert told["instance-id"] == f"qemuspawner-{spec.session_id}"
    assert told["local-hostname"] == f"analysis-{spec.session_id[:6]}"


def test_cloud_init_gets_the_keyboard_and_nobody_a_password_or_a_key() -> None:
    vendor_data = seed_of(make_spec(account=ZOE, keyboard="fr"))["vendor-data"].decode()

    first, parts = vendor_data.split("\n", 1)
    config, script = json.loads(parts)
    assert first == "#cloud-config-archive"
    assert config["type"] == "text/cloud-config"
    assert json.loads(config["content"].removeprefix("#cloud-config\n")) == {
        "ssh_pwauth": False,
        "disable_root": True,
        "manage_etc_hosts": "localhost",
        "locale": "false",
        "keyboard": {"layout": "fr", "variant": ""},
    }
    assert script["type"] == "text/x-shellscript"
    assert script["content"].startswith("#!/bin/sh\n")


def test_a_users_cloud_config_is_their_user_data_as_it_is() -> None:
    assert seed_of(make_spec(script=CLOUD_CONFIG))["user-data"] == CLOUD_CONFIG.encode()


def test_a_users_script_is_none_of_cloud_inits() -> None:
    """Which would run it as root, and tell nobody of its end."""
    seed = seed_of(make_spec(script="#!/bin/sh\nid\n"))

    assert seed["script"] == b"#!/bin/sh\nid\n"
    assert seed["user-data"] == b"#cloud-config\n{}\n"


def test_hostile_names_are_told_as_they_are() -> None:
    seed = seed_of(make_spec(user=HOSTILE, server_name=HOSTILE))

    shell = subprocess.run(
        ["/bin/sh", "-c", 'eval "$(cat)"; printf "%s|%s" "$QEMUSPAWNER_USER" "$QEMUSPAWNER_SERVER"'],
        input=seed["environment"],
        capture_output=True,
        check=True,
    )
    assert shell.stdout.decode() == f"{HOSTILE}|{HOSTILE}"


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Network(), ["The packages of your site are not installed: the machine has no network"]),
        (Network(mode="internet"), []),
    ],
)
def test_packages_are_given_where_there_is_a_network(
    network: Network, told: list[str], tmp_path: Path
) -> None:
    problems: list[str] = []
    spec = make_spec(gifts=(make_gift(tmp_path / "gift"),), network=network)

    seed = make_seed(spec, lambda problem: problems.append(str(problem)))

    assert problems == told
    assert seed.get("gift-000-packages") == (None if told else b"htop\ng++\n")
    assert seed["gift-000-program"].startswith(b"#!/bin/sh\n")


def test_a_gift_that_cannot_be_read_is_told_and_the_next_one_is_given(tmp_path: Path) -> None:
    problems: list[str] = []
    spec = make_spec(
        gifts=(str(tmp_path / "missing"), make_gift(tmp_path / "gift")), network=Network(mode="internet")
    )

    seed = make_seed(spec, lambda problem: problems.append(str(problem)))

    assert problems == ["What your site gives to new desktops cannot be read: this host has no folder for it"]
    assert "gift-001-files" in seed


def test_the_volume_has_the_label_and_the_files_and_is_its_owners_alone(tmp_path: Path) -> None:
    """As another program reads it."""
    files = {"user-data": b"#cloud-config\n", "meta-data": b"x" * 5000, "gift-000-files": b"\0\xff" * 300_000}
    path = tmp_path / "seed.iso"

    write_seed(path, files)

    about = subprocess.run(["isoinfo", "-d", "-i", path], capture_output=True, text=True, check=True).stdout
    assert "Volume id: cidata\n" in about
    for name, content in files.items():
        command = ["isoinfo", "-R", "-x", f"/{name}", "-i", str(path)]
        assert subprocess.run(command, capture_output=True, check=True).stdout == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# In the guest: a jail with an /etc, a /var and a port of its own, and programs that say what they were told


class CloudGuest:
    """At the end of cloud-init's first boot, which has made the image's own user."""

    def __init__(self, root: Path, spec: SessionSpec) -> None:
        self.root = root
        for name in (
            "etc/sudoers.d",
            "var/lib/qemuspawner",
            "var/tmp",
            "run",
            "fake",
            "home/debian",
            "ports",
        ):
            (root / name).mkdir(parents=True)
        (root / "etc/passwd").write_text(
            "root:x:0:0::/root:/bin/sh\ndebian:x:1000:1000:Debian:/home/debian:/bin/bash\n"
        )
        (root / "etc/group").write_text("root:x:0:\ndebian:x:1000:\n")
        (root / "ports/org.qemuspawner.report.0").touch()
        self.folder = root / "var/lib/qemuspawner/first-boot"
        self.folder.mkdir(mode=0o700)
        for name, content in seed_of(spec).items():
            (self.folder / name).write_bytes(content)
        for name in ("groupmod", "groupadd", "gpasswd", "chown", "apt-get"):
            self.add_program(name, f'echo "{name} $*" >> /run/calls')
        self.add_program(
            "systemctl", 'echo "systemctl $*" >> /run/calls; case $* in *display-manager*) exit 1 ;; esac'
        )
        self.add_program("setpriv", 'echo "setpriv $1 $2" >> /run/calls; shift 3; exec "$@"')
        # It renames as it would, so that who comes after finds the account.
        self.add_program(
            "usermod",
            'echo "usermod $*" >> /run/calls\n'
            'case $* in *--login*) sed -i "s/^debian:x:1000:1000/zoe:x:4711:4712/" /etc/passwd ;; esac',
        )

    def add_program(self, name: str, script: str) -> None:
        path = self.root / "fake" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self) -> "subprocess.CompletedProcess[str]":
        command = ["bwrap", "--clearenv", "--unshare-all", "--die-with-parent"]
        command += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for name in ("bin", "sbin", "lib", "lib64"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        for name in ("etc", "var", "run", "fake", "home"):
            command += ["--bind", str(self.root / name), f"/{name}"]
        command += ["--bind", str(self.root / "ports"), "/dev/virtio-ports"]
        path = "/fake:/usr/sbin:/usr/bin:/bin"
        # The environment that was told has a PATH of its own.
        environment = self.folder / "environment"
        environment.write_text(f"{environment.read_text()}export PATH={path}\n")
        folder = "/var/lib/qemuspawner/first-boot"
        return subprocess.run(
            [
                *command,
                "--setenv",
                "PATH",
                path,
                "/bin/sh",
                "-c",
                f"sh {folder}/first-boot {folder}; while [ -e {folder} ]; do sleep 0.1; done",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def told(self) -> list[tuple[str, int, str]]:
        lines = (self.root / "ports/org.qemuspawner.report.0").read_text().splitlines()
        words = [line.split(" ") for line in lines]
        return [(step, int(code), base64.b64decode(output).decode()) for step, code, output in words]

    @property
    def calls(self) -> str:
        return (self.root / "run/calls").read_text()


def test_the_images_user_becomes_the_hubs_and_the_console_is_theirs(tmp_path: Path) -> None:
    guest = CloudGuest(tmp_path / "guest", make_spec(account=ZOE, machine={"login": "user"}, sudo="no"))

    result = guest.run()

    assert (result.stderr, guest.told) == ("", [("copied", 0, ""), ("personal", 0, ""), ("over", 0, "")])
    assert "groupadd --gid 5000 beamline" in guest.calls
    assert "usermod --login zoe --uid 4711 --comment Zoë O'Neill" in guest.calls
    assert (guest.root / "etc/sudoers.d/zz-qemuspawner").read_text().startswith("#4711 ALL=(ALL:ALL) !ALL,")
    getty = guest.root / "etc/systemd/system/getty@tty1.service.d/qemuspawner.conf"
    assert "--autologin zoe " in getty.read_text()
    assert "systemctl try-restart --no-block getty@tty1.service" in guest.calls
    assert (guest.root / "var/lib/cloud/seed/nocloud/vendor-data").exists()
    assert not guest.folder.exists()


def test_what_the_site_gives_comes_before_the_users_script(tmp_path: Path) -> None:
    spec = make_spec(
        gifts=(make_gift(tmp_path / "gift"),),
        network=Network(mode="internet"),
        script="#!/bin/sh\npwd; cat 'notes/a b'; exit 3\n",
    )
    guest = CloudGuest(tmp_path / "guest", spec)

    guest.run()

    steps = [(step, code) for step, code, _ in guest.told]
    assert steps == [
        *(("copied", 0), ("personal", 0), ("files", 0), ("packages", 0), ("program", 5)),
        *(("begin", 0), ("script", 3), ("over", 0)),
    ]
    assert guest.told[4][2] == "the site\n"
    assert guest.told[6][2] == "/home/debian\ngiven\n"
    assert "install -- htop g++" in guest.calls
    assert guest.calls.count("setpriv --reuid=1000 --regid=1000") == 2


def test_a_script_is_roots_for_who_may_become_root(tmp_path: Path) -> None:
    guest = CloudGuest(tmp_path / "guest", make_spec(sudo="yes", script="#!/bin/sh\necho mine\n"))

    guest.run()

    assert ("script", 0, "mine\n") in guest.told
    assert "setpriv" not in guest.calls


def test_nobody_is_logged_in_where_they_could_become_root_against_the_hosts_word(tmp_path: Path) -> None:
    guest = CloudGuest(tmp_path / "guest", make_spec(sudo="no"))
    (guest.root / "etc/group").write_text("root:x:0:\nsudo:x:27:debian\n")
    guest.add_program("gpasswd", "exit 1")

    guest.run()

    step, code, words = guest.told[1]
    assert (step, code) == ("personal", 1)
    assert words.endswith("sudo\n")
    assert not (guest.root / "etc/systemd").exists()


def test_how_cloud_init_carries_out_a_users_wishes_is_told_when_it_is_done(tmp_path: Path) -> None:
    """After the script of ours, which is one of its own steps."""
    guest = CloudGuest(tmp_path / "guest", make_spec(sudo="yes", script=CLOUD_CONFIG))
    (guest.root / "var/log").mkdir()
    (guest.root / "var/log/cloud-init-output.log").write_text("uid=0(root)\n")
    guest.add_program("cloud-init", 'echo "cloud-init $*" >> /run/calls; echo "status: error"; exit 1')

    guest.run()

    assert guest.told[-3:] == [
        ("begin", 0, ""),
        ("script", 1, "uid=0(root)\nstatus: error\n"),
        ("over", 0, ""),
    ]
    assert "cloud-init status --wait --long" in guest.calls


# What the host makes of what it is told


@dataclass
class FakeQemu:
    pieces: list[bytes] = field(default_factory=list)
    boots: "asyncio.Queue[None]" = field(default_factory=asyncio.Queue)

    async def read_report(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    @contextlib.contextmanager
    def events(self, *_names: str) -> Iterator["asyncio.Queue[None]"]:
        yield self.boots


@dataclass
class FakeGuest:
    plan: Plan = field(default_factory=lambda: Plan(way="cold"))
    qemu: FakeQemu = field(default_factory=FakeQemu)
    first_steps: FirstSteps | None = field(default_factory=FirstSteps)
    has_seed: bool = True
    look_once_more: Callable[[], Awaitable[None]] | None = None

    async def take_seed(self) -> None:
        self.has_seed = False


def line(step: str, code: int = 0, output: bytes = b"") -> bytes:
    return f"{step} {code} {base64.b64encode(output).decode()}\n".encode()


async def follow(guest: FakeGuest) -> list[str]:
    """What is told until it is over."""
    told: list[str] = []
    first_boot = FirstBoot(
        guest,  # type: ignore[arg-type]
        lambda text, *, level="info": told.append(f"{level}: {text}"),
    )
    await first_boot.follow()
    return told


async def test_a_script_is_told_as_it_runs_and_when_it_has_ended() -> None:
    whole = line("copied") + line("begin") + line("script", 3, b"one\n\x1b[1mtwo\n") + line("over")
    guest = FakeGuest(qemu=FakeQemu([whole[:7], whole[7:40], whole[40:]]))

    told = await follow(guest)

    assert told == [
        "info: Running the start script",
        "warning: The start script failed: it ended with code 3: one [1mtwo",
    ]
    assert guest.first_steps == FirstSteps(
        done=1, script=ScriptRun(state="failed", code=3, output="one\n [1mtwo\n")
    )
    assert not guest.has_seed


async def test_what_failed_of_the_rest_is_told() -> None:
    lines = line("personal", 1, b"sudo\n") + line("packages", 100, b"no such package\n") + line("files", 0)
    guest = FakeGuest(qemu=FakeQemu([lines + line("over")]))

    assert await follow(guest) == [
        "warning: The desktop could not be told whose it is: it ended with code 1: sudo",
        "warning: The packages of your site are not installed: it ended with code 100: no such package",
    ]
    assert guest.first_steps == FirstSteps(done=1)


async def test_nonsense_is_left_out_and_bounded() -> None:
    nonsense = b"\xff\n\n x\nscript x x\nscript 1 !\nreboot 0 \nbegin 0\n" + b"A" * 3_000_000
    guest = FakeGuest(qemu=FakeQemu([nonsense, b"\n" + line("files", 1) * 2000, line("over")]))
    first_boot = FirstBoot(guest, lambda _text, *, level="info": told.append(level))  # type: ignore[arg-type]
    told: list[str] = []

    for _ in range(3):
        await first_boot.look()

    assert guest.first_steps == FirstSteps()
    assert len(told) < 1000


@pytest.mark.parametrize("boots_again", [True, False])
async def test_a_boot_ends_a_script_that_runs(boots_again: bool) -> None:
    """One that the user asked for, or of the disk that was kept."""
    running = FirstSteps(script=ScriptRun(state="running"))
    guest = FakeGuest(first_steps=running, has_seed=False)
    if boots_again:
        guest.qemu.boots.put_nowait(None)
    else:
        guest.plan = Plan(way="cold", saved=vms.make_saved())

    told = await follow(guest)

    assert told == ["warning: The start script was interrupted: the machine has booted anew meanwhile"]
    assert guest.first_steps == FirstSteps(done=1, script=ScriptRun(state="interrupted"))


async def test_a_boot_before_anything_was_copied_is_followed_by_the_first_one() -> None:
    guest = FakeGuest(
        qemu=FakeQemu([b"", b"", line("copied") + line("begin") + line("script") + line("over")])
    )
    guest.qemu.boots.put_nowait(None)

    assert await follow(guest) == ["info: Running the start script", "info: The start script is done"]


def test_an_image_without_a_user_says_so(tmp_path: Path) -> None:
    guest = CloudGuest(tmp_path / "guest", make_spec(script="#!/bin/sh\nid\n"))
    (guest.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")

    guest.run()

    assert guest.told[1:] == [("personal", 1, "The image has no user of its own.\n"), ("over", 0, "")]
    assert not guest.folder.exists()


async def test_a_machine_in_its_first_boot_is_not_saved_and_one_after_it_has_no_seed(tmp_path: Path) -> None:
    """Whatever else it is: here one that never takes anything in."""
    disk = guests.make_disk(tmp_path / "disk", "raw")
    machine = vms.make_machine(cloud_init=True, image={"file": str(disk), "format": "raw"})
    (tmp_path / "s").mkdir()
    async with vms.running_guest(vms.make_spec(tmp_path / "s", machine)) as (guest, prepared):
        seed = prepared.paths.seed
        assert seed.exists()
        assert await guest.qemu.read_report() == b""
        with pytest.raises(VmError, match="first boot"):
            await vms.suspend(guest, prepared)
        assert await guest.qemu.run_state() == "running"
