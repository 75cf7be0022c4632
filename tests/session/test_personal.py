"""What a guest is told, and what the script does with it: in a jail that looks like a small guest."""

import re
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.network import Network
from qemuspawner.paths import PERSONALISE_SCRIPT
from qemuspawner.session.inside.identity import full_name, host_name, make_environment
from qemuspawner.session.vm.personal import personalise
from qemuspawner.session.vm.prepare import Plan
from qemuspawner.spec import SessionSpec

HOSTILE = "a\"b'; reboot #\n$(id) `id` 😀 ñ:x,y=&\\\0"


def make_spec(
    user: str = "alice", server_name: str = "", machine: str = "debian", **more: Any
) -> SessionSpec:
    kind = vms.make_machine(id=machine, agent=True, image={"file": "disk", "format": "raw"})
    return vms.make_spec(Path("state"), kind, user=user, server_name=server_name, **more)


@dataclass
class FakeAgent:
    """Answers as it is told, and remembers what it was asked for."""

    code: int = 0
    output: str = ""
    system: str = "debian"
    refuses: bool = False
    ran: list[tuple[tuple[str, ...], bytes, dict[str, str]]] = field(default_factory=list)
    executed: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def run(self, *argv: str, stdin: bytes, env: dict[str, str], timeout_s: float) -> tuple[int, str]:
        if self.refuses:
            raise VmError("The guest agent refused 'guest-exec'.")
        self.ran.append((argv, stdin, env))
        return self.code, self.output

    async def execute(self, command: str, **arguments: object) -> object:
        self.executed.append((command, arguments))
        return {"id": self.system}


@dataclass
class FakeQemu:
    executed: list[dict[str, object]] = field(default_factory=list)

    async def execute(self, command: str, **arguments: object) -> object:
        self.executed.append({"execute": command, **arguments})
        return {}


class FakeGuest:
    def __init__(self, way: Any = "cold", **agent: Any) -> None:
        self.agent = FakeAgent(**agent)
        self.qemu = FakeQemu()
        self.plan = Plan(way=way, restores=way != "cold")


async def told(spec: SessionSpec, way: str = "cold") -> FakeGuest:
    guest = FakeGuest(way)
    await personalise(guest, spec)  # type: ignore[arg-type]
    return guest


# What the agent is asked for


async def test_names_are_never_part_of_the_script() -> None:
    """The command and the script are the same for everybody."""
    guest = await told(make_spec(HOSTILE, HOSTILE))

    ((argv, script, _),) = guest.agent.ran
    assert argv == ("/bin/sh", "-s")
    assert script == PERSONALISE_SCRIPT.read_bytes()


async def test_hostile_names_are_told_as_they_are() -> None:
    """But for a NUL, which no environment can carry."""
    guest = await told(make_spec(HOSTILE, HOSTILE))

    environment = guest.agent.ran[0][2]
    as_sent = "a\"b'; reboot #\n$(id) `id` 😀 ñ:x,y=&\\"
    assert (environment["QEMUSPAWNER_USER"], environment["QEMUSPAWNER_SERVER"]) == (as_sent, as_sent)


def test_every_start_has_another_identity() -> None:
    one, two = (make_environment(make_spec(), way="restored") for _ in range(2))

    for name in ("QEMUSPAWNER_MACHINE_ID", "QEMUSPAWNER_SEED", "QEMUSPAWNER_BOOT_SEED"):
        assert one[name] != two[name]
    assert re.fullmatch("[0-9a-f]{32}", one["QEMUSPAWNER_MACHINE_ID"])


@pytest.mark.parametrize(
    ("way", "mode", "branch", "bounces"),
    [
        ("cold", "internet", "", 0),
        ("restored", "none", "", 0),
        ("restored", "internet", "", 1),
        ("woken", "none", "id/name", 1),
        ("cold", "none", "id/name", 0),
    ],
)
async def test_who_comes_into_another_network_asks_for_its_address_anew(
    way: str, mode: Any, branch: str, bounces: int
) -> None:
    """A template was made without one."""
    guest = await told(make_spec(branch=branch, network=Network(mode=mode)), way)

    pull, plug = ({"execute": "set_link", "name": "net0", "up": up} for up in (False, True))
    assert guest.qemu.executed == [pull, plug] * bounces


@pytest.mark.parametrize(("mode", "bounces"), [("none", 0), ("internet", 1)])
async def test_who_wakes_in_another_network_asks_too(mode: Any, bounces: int) -> None:
    guest = FakeGuest("woken")
    saved = vms.make_saved(spec=make_spec())
    guest.plan = replace(guest.plan, saved=saved)

    await personalise(guest, make_spec(network=Network(mode=mode)))  # type: ignore[arg-type]

    assert len(guest.qemu.executed) == 2 * bounces


async def test_what_failed_is_named() -> None:
    """By the last line; what the guest says is bounded, and has no control characters."""
    guest = FakeGuest(
        code=1, output="noise\nmachine-id, 10-home\x1b[31m" + "x" * 9000 + "\nclock, 10-home\x1b\n"
    )

    with pytest.raises(VmError, match=r"^In the machine failed: clock, 10-home\.$"):
        await personalise(guest, make_spec())  # type: ignore[arg-type]


async def test_windows_gets_its_clock_set() -> None:
    guest = FakeGuest("restored", refuses=True, system="mswindows")

    await personalise(guest, make_spec())  # type: ignore[arg-type]

    command, arguments = guest.agent.executed[-1]
    assert command == "guest-set-time"
    assert abs(int(str(arguments["time"])) / 1e9 - time.time()) < 5


async def test_an_agent_that_may_run_nothing_is_a_problem() -> None:
    guest = FakeGuest(refuses=True)

    with pytest.raises(VmError, match="refused 'guest-exec'"):
        await personalise(guest, make_spec())  # type: ignore[arg-type]


# Names


@pytest.mark.parametrize(
    ("server_name", "machine", "expected"),
    [
        ("", "debian", "debian"),
        ("analysis", "debian", "analysis"),
        ("My Désk!! 2", "debian", "my-desk-2"),
        ("--", "debian", "debian"),
        ("数据", "debian", "debian"),
        ("x" * 200, "debian", "x" * 56),
        ("x" * 55 + "-y", "debian", "x" * 55),
        ("a.b\n", "debian", "a-b"),
        ("", "", "desktop"),
    ],
)
def test_a_host_name_is_a_label_of_dns(server_name: str, machine: str, expected: str) -> None:
    spec = make_spec(server_name=server_name, machine=machine, session_id="3f2a9c0123456789abcd")

    name = host_name(spec)

    assert name == f"{expected}-3f2a9c"
    assert len(name) <= 63
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("alice", "alice"),
        ("Zoë Müller 😀", "Zoë Müller 😀"),
        ("a:b,c=d&e\\f\ng", "abcdefg"),
        ("\n\t:", ""),
        ("x" * 500, "x" * 80),
    ],
)
def test_a_full_name_fits_into_passwd(user: str, expected: str) -> None:
    assert full_name(user) == expected


# The script, in a jail with an /etc and a /var of its own, and programs that only say what they were told


class SmallGuest:
    """No systemd, and of all programs a few that write down their arguments."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec = make_spec("Alice: O'Neill", "two")
        self.afterwards = ":"  # what is waited for before the guest is switched off
        for name in ("etc", "var", "run", "fake"):
            (root / name).mkdir(parents=True)
        self.write("etc/machine-id", "0" * 32 + "\n")
        self.write("etc/passwd", "root:x:0:0::/:/bin/sh\nuser:x:1000:1000:Old,Room 5:/home:/bin/sh\n")
        self.add_program(
            "fake/date", '[ "$1" != +%s ] || exec /usr/bin/date +%s; echo "date $2" >> /run/calls'
        )
        self.add_program("fake/usermod", 'printf "usermod %s|%s|%s\\n" "$@" >> /run/calls')

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path).read_text() if (self.root / path).exists() else ""

    def add_program(self, path: str, script: str) -> None:
        self.write(path, f"#!/bin/sh\n{script}\n")
        (self.root / path).chmod(0o755)

    def run(
        self, way: str = "restored", *arguments: str, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        told = {**make_environment(self.spec, way=way), "PATH": "/fake:/usr/bin:/bin", **environment}
        command = ["bwrap", "--clearenv", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
        command += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
        for name in ("bin", "sbin", "lib", "lib64"):
            command += ["--symlink", f"usr/{name}", f"/{name}"]
        for name in ("etc", "var", "run", "fake"):
            command += ["--bind", str(self.root / name), f"/{name}"]
        for name, value in told.items():
            command += ["--setenv", name, value]
        return subprocess.run(
            [
                *command,
                "/bin/sh",
                "-c",
                f'/bin/sh -s "$@"; code=$?; {self.afterwards}; exit $code',
                "sh",
                *arguments,
            ],
            input=PERSONALISE_SCRIPT.read_text(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def small(tmp_path: Path) -> SmallGuest:
    return SmallGuest(tmp_path / "guest")


def test_a_guest_becomes_another_machine(small: SmallGuest) -> None:
    """Its id, its clock, its user's name; a guest without a name of its own keeps the one it has."""
    result = small.run(QEMUSPAWNER_NOW="1000.25")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert re.fullmatch("[0-9a-f]{32}\n", small.read("etc/machine-id"))
    assert small.read("etc/machine-id") != "0" * 32 + "\n"
    assert small.read("run/calls").splitlines() == [
        "date @1000.25",
        "usermod --comment|Alice O'Neill,Room 5|user",
    ]
    assert not small.read("etc/hostname")


def test_a_guest_that_wakes_up_only_gets_its_clock_set(small: SmallGuest) -> None:
    small.add_program("etc/qemuspawner/personalise.d/hook", "echo hook >> /run/calls")
    small.run()
    before = small.read("etc/machine-id"), small.read("run/calls")

    small.run("woken", QEMUSPAWNER_NOW="2000")

    assert (small.read("etc/machine-id"), small.read("run/calls")) == (before[0], before[1] + "date @2000\n")


def test_a_copy_of_a_copy_becomes_another_machine_again(small: SmallGuest) -> None:
    """The marker in its memory is another session's."""
    small.run()
    before = small.read("etc/machine-id")
    small.spec = make_spec("alice", "three")

    small.run("woken")

    assert small.read("etc/machine-id") != before


def test_the_same_disk_booted_again_is_the_same_machine(small: SmallGuest) -> None:
    """What is tied to a boot, such as mounts, is made again; what identifies the machine is kept."""
    small.add_program("etc/qemuspawner/personalise.d/hook", "echo hook >> /run/hooked")
    small.run()
    before = small.read("etc/machine-id")
    (small.root / "run/qemuspawner/personalised").unlink()

    small.run("cold")

    assert small.read("etc/machine-id") == before
    assert small.read("run/hooked") == "hook\nhook\n"


def test_a_marker_of_an_earlier_boot_does_not_count(small: SmallGuest) -> None:
    """Where /run lies on the disk."""
    small.add_program("etc/qemuspawner/personalise.d/hook", "echo hook >> /run/hooked")
    small.run()
    small.write("run/qemuspawner/personalised", f"{small.spec.session_id} another-boot\n")

    small.run("cold")

    assert small.read("run/hooked") == "hook\nhook\n"


def test_hooks_are_told_whose_machine_it_is(small: SmallGuest) -> None:
    """In the order of their names, with names as they are, without what is for the script alone."""
    small.spec = make_spec("al'ice 😀\n$(id)", 'two "words"')
    names = "USER SERVER SESSION WAY SEED"
    show = "; ".join(f'echo "${{QEMUSPAWNER_{name}-unset}}"' for name in names.split())
    small.add_program("etc/qemuspawner/personalise.d/20-second", "echo second >> /run/told")
    small.add_program("etc/qemuspawner/personalise.d/10-first", f"{{ {show}; }} >> /run/told")
    small.add_program("etc/qemuspawner/personalise.d/10-first~", "echo backup >> /run/told")
    small.write("etc/qemuspawner/personalise.d/README", "not a program")

    small.run()

    assert small.read("run/told") == (
        f'al\'ice 😀\n$(id)\ntwo "words"\n{small.spec.session_id}\nrestored\nunset\nsecond\n'
    )


def test_a_hook_that_fails_stops_no_other(small: SmallGuest) -> None:
    small.add_program("etc/qemuspawner/personalise.d/10-bad", "echo no such share >&2; exit 3")
    small.add_program("etc/qemuspawner/personalise.d/20-good", "echo done > /run/told")

    result = small.run()

    assert small.read("run/told") == "done\n"
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "10-bad"
    assert "no such share" in result.stdout


def test_a_hook_that_hangs_is_ended(small: SmallGuest) -> None:
    small.add_program("etc/qemuspawner/personalise.d/10-hangs", "sleep 100")
    small.add_program("fake/timeout", 'shift 3; exec /usr/bin/timeout -s KILL 0.2 "$@"')

    result = small.run()

    assert result.stdout.splitlines()[-1] == "10-hangs"


def add_sshd(small: SmallGuest) -> None:
    small.add_program("fake/sshd", "")
    small.add_program("fake/ssh-keygen", "sleep 0.3; echo own > /etc/ssh/ssh_host_rsa_key")
    small.add_program(
        "fake/systemctl", '[ "$1" != is-failed ] || exec test -e "/run/failed-$3"; echo $* >> /run/restarted'
    )


def test_host_keys_are_made_anew(small: SmallGuest) -> None:
    """Behind the script's back: that takes a slow guest seconds."""
    small.write("etc/ssh/ssh_host_rsa_key", "shared")
    small.write("etc/ssh/ssh_host_rsa_key.pub", "shared")
    add_sshd(small)
    gone = "[ ! -s /etc/ssh/ssh_host_rsa_key ] || exit 1"
    back = "until grep -qs sshd /run/restarted; do sleep 0.05; done"
    small.add_program("etc/qemuspawner/personalise.d/wait", f"{gone}; {back}")

    result = small.run()

    assert (result.returncode, result.stdout) == (0, "")
    assert small.read("etc/ssh/ssh_host_rsa_key") == "own\n"
    assert not small.read("etc/ssh/ssh_host_rsa_key.pub")
    assert small.read("run/restarted") == "try-restart ssh.service\ntry-restart sshd.service\n"


@pytest.mark.parametrize("way", ["woken", "cold"])
def test_host_keys_that_were_not_made_in_time_are_made_at_the_next_start(small: SmallGuest, way: str) -> None:
    """The machine was killed after the shared ones were deleted; then its sshd could not start."""
    small.run()
    add_sshd(small)
    small.write("run/failed-ssh.service", "")
    if way == "cold":
        (small.root / "run/qemuspawner/personalised").unlink()
    before = small.read("etc/machine-id")
    (small.root / "etc/ssh").mkdir()

    small.afterwards = "until grep -qs sshd /run/restarted; do sleep 0.05; done"

    small.run(way)

    assert small.read("etc/ssh/ssh_host_rsa_key") == "own\n"
    assert small.read("etc/machine-id") == before
    assert "start ssh.service" in small.read("run/restarted").splitlines()


def test_a_guest_without_an_sshd_gets_no_keys(small: SmallGuest) -> None:
    small.add_program("fake/ssh-keygen", "echo own > /run/made")

    small.run()

    assert not small.read("run/made")


def test_what_failed_is_tried_again(small: SmallGuest) -> None:
    """At the next wake, which would set the clock alone."""
    small.add_program("etc/qemuspawner/personalise.d/hook", "echo hook >> /run/hooked; [ -e /run/share ]")
    first = small.run().returncode
    before = small.read("etc/machine-id")
    small.write("run/share", "")

    codes = [first, small.run("woken").returncode, small.run("woken").returncode]

    assert codes == [1, 0, 0]
    assert small.read("run/hooked") == "hook\nhook\n"
    # That had not failed.
    assert small.read("etc/machine-id") == before


def test_an_identity_that_could_not_be_replaced_is_tried_again(small: SmallGuest) -> None:
    """At the next boot of the same disk."""
    small.write("var/lib/systemd/random-seed", "shared")
    (small.root / "var/lib/systemd/random-seed").chmod(0o400)
    first = small.run()
    (small.root / "var/lib/systemd/random-seed").chmod(0o600)

    second = small.run("cold", QEMUSPAWNER_BOOT_SEED="own")

    assert (first.returncode, second.returncode) == (1, 0)
    assert small.read("var/lib/systemd/random-seed") == "own"


def test_the_next_boot_begins_with_another_seed(small: SmallGuest) -> None:
    small.write("var/lib/systemd/random-seed", "shared")
    (small.root / "var/lib/systemd/random-seed").chmod(0o600)

    small.run(QEMUSPAWNER_BOOT_SEED="own")

    assert small.read("var/lib/systemd/random-seed") == "own"
    assert (small.root / "var/lib/systemd/random-seed").stat().st_mode & 0o777 == 0o600


def test_a_clock_that_is_right_is_left_alone(small: SmallGuest) -> None:
    """A guest that was booted has read the hardware's."""
    small.run("cold")

    assert "date" not in small.read("run/calls")


def test_a_guest_with_next_to_nothing_in_it_is_no_failure(small: SmallGuest) -> None:
    """No machine-id, no accounts, no hooks."""
    for path in ("etc/machine-id", "etc/passwd"):
        (small.root / path).unlink()

    result = small.run()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_rehearsal_changes_nothing(small: SmallGuest) -> None:
    before = small.read("etc/machine-id")

    result = small.run("", "rehearse")

    assert (result.returncode, result.stdout, small.read("etc/machine-id")) == (0, "", before)
    assert not small.read("run/qemuspawner/personalised")


# Whose account it is


ZOE = {
    "QEMUSPAWNER_LOGIN": "user",
    "QEMUSPAWNER_HOME": "/var/home",
    "QEMUSPAWNER_ACCOUNT": "zoe",
    "QEMUSPAWNER_UID": "4711",
    "QEMUSPAWNER_GID": "4712",
    "QEMUSPAWNER_GROUPS": "beamline:5000 audio:5001 cryo:5002",
}


@pytest.fixture
def desktop(small: SmallGuest) -> SmallGuest:
    """An image whose one person can be another one."""
    small.write(
        "etc/passwd", "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/var/home:/bin/sh\ndaemon:x:1:1::/:/\n"
    )
    small.write("etc/group", "root:x:0:\nuser:x:1000:\nsudo:x:27:other,user\naudio:x:29:\nold-cryo:x:5002:\n")
    small.write("var/home/file", "")
    note = 'echo "${0##*/} $*${QEMUSPAWNER_FORMER:+ of $QEMUSPAWNER_FORMER}" >> /run/calls'
    for name in ("usermod", "groupmod", "groupadd", "gpasswd"):
        small.add_program(f"fake/{name}", note)
    # Nobody in the jail may give a file away.
    small.add_program("fake/chown", 'echo "chown $2 $3" >> /run/calls')
    small.add_program("etc/qemuspawner/login", note)
    return small


def test_the_user_is_logged_in_between_the_end_of_who_was_there_and_their_own_desktop(
    desktop: SmallGuest,
) -> None:
    """A group whose number the image has keeps its name there; a name that it has otherwise is not taken."""
    result = desktop.run(**ZOE)

    assert result.returncode == 0, result.stdout
    calls = [
        line for line in desktop.read("run/calls").splitlines() if not line.startswith(("date", "chown"))
    ]
    assert calls == [
        "login stop of 1000",
        "groupmod --gid 4712 --new-name zoe user of 1000",
        "groupadd --gid 5000 beamline of 1000",
        "groupadd --gid 5001 g5001 of 1000",
        "usermod --login zoe --uid 4711 --comment Alice O'Neill --append --groups "
        "beamline,g5001,old-cryo user of 1000",
        "login start of 1000",
    ]


def test_who_is_logged_in_already_stays_so(desktop: SmallGuest) -> None:
    desktop.write("etc/passwd", "zoe:x:4711:4712:Alice O'Neill:/var/home:/bin/sh\n")

    assert desktop.run(**ZOE).returncode == 0
    assert "login" not in desktop.read("run/calls")


@pytest.mark.parametrize(
    "differs", [{"QEMUSPAWNER_ACCOUNT": "daemon"}, {"QEMUSPAWNER_UID": "1"}], ids=["name", "number"]
)
def test_nobodys_place_is_taken(desktop: SmallGuest, differs: dict[str, str]) -> None:
    """Before anything of who is there has ended."""
    result = desktop.run(**{**ZOE, **differs})

    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "login"
    assert "login" not in desktop.read("run/calls")


def test_an_image_that_cannot_log_anybody_in_says_so(desktop: SmallGuest) -> None:
    (desktop.root / "etc/qemuspawner/login").unlink()

    result = desktop.run(**ZOE)

    assert result.returncode == 1
    assert "no /etc/qemuspawner/login" in result.stdout


def test_a_change_that_fails_half_way_still_ends_with_a_desktop(desktop: SmallGuest) -> None:
    desktop.add_program("fake/usermod", "exit 8")

    result = desktop.run(**ZOE)

    assert (result.returncode, result.stdout.splitlines()[-1]) == (1, "login")
    assert desktop.read("run/calls").splitlines()[-1] == "login start of 1000"


def test_root_is_given_to_whom_the_host_says(desktop: SmallGuest) -> None:
    (desktop.root / "etc/sudoers.d").mkdir()

    assert desktop.run(QEMUSPAWNER_SUDO="yes").returncode == 0
    rule = desktop.root / "etc/sudoers.d/zz-qemuspawner"
    assert rule.read_text() == "#1000 ALL=(ALL:ALL) NOPASSWD: ALL\n"
    assert rule.stat().st_mode & 0o777 == 0o440


def test_root_is_taken_from_whom_the_host_says(desktop: SmallGuest) -> None:
    """Also by way of the groups that other programs ask for."""
    (desktop.root / "etc/sudoers.d").mkdir()

    assert desktop.run(QEMUSPAWNER_SUDO="no").returncode == 0
    rule = desktop.read("etc/sudoers.d/zz-qemuspawner")
    assert rule == "#1000 ALL=(ALL:ALL) !ALL, NOPASSWD: /usr/bin/systemctl poweroff\n"
    assert "gpasswd --delete user sudo" in desktop.read("run/calls").splitlines()


def test_root_that_cannot_be_taken_is_told(desktop: SmallGuest) -> None:
    desktop.add_program("fake/gpasswd", "exit 1")

    result = desktop.run(QEMUSPAWNER_SUDO="no")

    assert (result.returncode, result.stdout.splitlines()[-1]) == (1, "sudo")


def test_root_is_taken_from_who_wakes_up_too(desktop: SmallGuest) -> None:
    (desktop.root / "etc/sudoers.d").mkdir()
    stays = {"QEMUSPAWNER_SESSION": "one"}
    assert desktop.run(QEMUSPAWNER_SUDO="yes", **stays).returncode == 0

    assert desktop.run("woken", QEMUSPAWNER_SUDO="no", **stays).returncode == 0
    assert "!ALL" in desktop.read("etc/sudoers.d/zz-qemuspawner")


def test_without_a_word_of_the_host_the_image_decides(desktop: SmallGuest) -> None:
    (desktop.root / "etc/sudoers.d").mkdir()

    assert desktop.run().returncode == 0
    assert not (desktop.root / "etc/sudoers.d/zz-qemuspawner").exists()


@pytest.mark.parametrize(
    ("language", "chosen"),
    [("fr_FR", "fr_FR.utf8"), ("de_DE", "de_CH.UTF-8"), ("ja_JP", ""), ("", ""), ("fr", "fr_CA.utf8")],
)
def test_the_language_is_set_where_the_image_has_it(small: SmallGuest, language: str, chosen: str) -> None:
    """As another country speaks it, too; in one encoding."""
    small.add_program("fake/locale", "echo C POSIX fr_FR fr_CA.utf8 fr_FR.utf8 de_CH.UTF-8 de_DE@euro")
    (small.root / "etc/default").mkdir()

    assert small.run(QEMUSPAWNER_LANGUAGE=language).returncode == 0
    assert small.read("etc/default/locale") == (f"LANG={chosen}\n" if chosen else "")
