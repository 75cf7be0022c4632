"""Templates: how they are made, when they fit, and what is refused."""

import hashlib
import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import guests
import hubs
import pytest
import vms
import warming
from msgspec import structs
from PIL import Image as Picture
from processes import find_processes, find_qemu

from qemuspawner.errors import HostError, MachineError
from qemuspawner.machine import Machine
from qemuspawner.machines import warm
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.machines.templates import (
    delete_misfits,
    drop_templates,
    find_template,
    find_template_obstacle,
    find_templates,
    template_name,
)
from qemuspawner.paths import EXAMPLE_MACHINES, SavedPaths, SessionPaths, StatePaths
from qemuspawner.qemu.host import find_qemu as find_qemu_program
from qemuspawner.qemu.memory import load_memory
from qemuspawner.qemu.saving import digest_file
from qemuspawner.saved import Fingerprint, Saved, load_saved, write_manifest
from qemuspawner.session.vm import prepare
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import Host, Plan, Prepared, choose_template
from qemuspawner.spec import SessionSpec

# Without QEMU: what fits, what is dropped, what is refused


@pytest.fixture
def state(tmp_path: Path) -> StatePaths:
    paths = StatePaths(root=tmp_path / "s")
    paths.templates.mkdir(parents=True)
    return paths


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(512))
    made = vms.make_machine(agent=True, image={"file": str(disk), "format": "raw"})
    return structs.replace(made, id="painter")


@pytest.fixture
def host() -> Host:
    return Host(qemu=find_qemu_program(), accelerator="tcg")


def fingerprint_of(host: Host, machine: Machine, **size: int) -> Fingerprint:
    return host.fingerprint(machine, **{"cpus": 1, "memory_mib": 64, **size})


def choose(state: StatePaths, machine: Machine, host: Host) -> Plan:
    return choose_template(vms.make_spec(state.root, machine), host)


def test_the_template_that_fits_is_taken(state: StatePaths, machine: Machine, host: Host) -> None:
    folder = warming.put_template(state, machine, fingerprint_of(host, machine))

    plan = choose(state, machine, host)

    assert (plan.way, plan.restores) == ("restored", True)
    assert plan.folder == folder


def test_the_folders_name_says_the_machine_and_changes_with_anything(machine: Machine, host: Host) -> None:
    fits = fingerprint_of(host, machine)

    names = {
        template_name(machine, fits),
        template_name(machine, structs.replace(fits, qemu="8.2")),
        template_name(machine, structs.replace(fits, cpus=2)),
    }

    assert len(names) == 3
    assert all(re.fullmatch("painter-[0-9a-f]{16}", name) for name in names)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"format": 0}, "it was saved by another version of qemuspawner"),
        ({"qemu": "6.0"}, r"QEMU was 6\.0 and is 7\..*"),
        ({"accelerator": "kvm"}, "it ran with kvm and would with tcg"),
        ({"cpu": "another"}, "the host's processor is another one"),
        ({"image": "another"}, "the machine's image has changed"),
        ({"machine": "another"}, "the machine's definition has changed"),
    ],
)
def test_anything_different_is_refused_and_said(
    changed: dict[str, Any],
    why: str,
    state: StatePaths,
    machine: Machine,
    host: Host,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In one line of the log."""
    warming.put_template(state, machine, structs.replace(fingerprint_of(host, machine), **changed))
    caplog.set_level(logging.INFO)

    plan = choose(state, machine, host)

    assert plan.way == "cold"
    assert re.fullmatch(f"its template does not fit: {why}", plan.why)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [f"{plan.why}."]


@pytest.mark.parametrize("size", [{"cpus": 2}, {"memory_mib": 128}])
def test_a_template_of_another_size_is_none(
    size: dict[str, int], state: StatePaths, machine: Machine, host: Host
) -> None:
    warming.put_template(state, machine, fingerprint_of(host, machine, **size))

    assert choose(state, machine, host).why == "there is no template of this machine and size yet"


def truncate(folder: SavedPaths) -> None:
    os.truncate(folder.memory, 17)


def change(folder: SavedPaths) -> None:
    folder.state.write_bytes(b"Devices" * 100)


def change_disk(folder: SavedPaths) -> None:
    folder.layer(0).write_bytes(b"Disk" * 1000)


def lose(folder: SavedPaths) -> None:
    folder.memory.unlink()


def link_elsewhere(folder: SavedPaths) -> None:
    folder.state.rename(folder.root.parent / "elsewhere")
    folder.state.symlink_to(folder.root.parent / "elsewhere")


def swap(folder: SavedPaths) -> None:
    between = folder.root / "between"
    folder.state.rename(between)
    folder.memory.rename(folder.state)
    between.rename(folder.memory)


def forget_the_state(folder: SavedPaths) -> None:
    saved = load_saved(folder.root)
    assert saved is not None
    files = {name: file for name, file in saved.files.items() if name != folder.state.name}
    write_manifest(folder.root, structs.replace(saved, files=files))


def break_the_manifest(folder: SavedPaths) -> None:
    folder.manifest.write_bytes(folder.manifest.read_bytes()[:100])


def put_anothers_manifest(folder: SavedPaths) -> None:
    saved = load_saved(folder.root)
    assert saved is not None
    write_manifest(folder.root, structs.replace(saved, name="../another"))


DAMAGES = [
    truncate, change, change_disk, lose, link_elsewhere, swap, forget_the_state, break_the_manifest,
    put_anothers_manifest,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_template_is_refused(
    damage: Callable[[SavedPaths], None],
    state: StatePaths,
    machine: Machine,
    host: Host,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a cold boot, and one line of the log that says so."""
    damage(warming.put_template(state, machine, fingerprint_of(host, machine)))
    caplog.set_level(logging.INFO)

    plan = choose(state, machine, host)

    assert (plan.way, plan.saved) == ("cold", None)
    lines = [record.getMessage() for record in caplog.records if "boots cold" in record.getMessage()]
    assert len(lines) == 1


async def test_a_template_that_is_deleted_while_it_is_read_costs_a_cold_boot(
    state: StatePaths, machine: Machine, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No session fails for it."""
    guests.make_disk(Path(machine.image.file))
    folder = warming.put_template(state, machine, fingerprint_of(host, machine))
    monkeypatch.setattr(prepare, "check_files", lambda *_: shutil.rmtree(folder.root))

    async with vms.running_guest(vms.make_spec(state.root, machine)) as (_, prepared):
        plan = prepared.started.plan

    assert (plan.way, plan.why) == ("cold", "its template cannot be restored; the log has the reason")


def test_a_template_put_there_under_another_name_is_none(
    state: StatePaths, machine: Machine, host: Host
) -> None:
    folder = warming.put_template(state, machine, fingerprint_of(host, machine))
    folder.root.rename(state.templates / "painter-copied")

    assert find_template(state, machine, fingerprint_of(host, machine))[0] is None
    assert find_templates(state) == []


def test_a_draft_is_no_template(state: StatePaths, machine: Machine, host: Host) -> None:
    warming.put_template(state, machine, fingerprint_of(host, machine), name=".draft-1")

    assert find_templates(state) == []


def test_the_new_template_takes_the_place_of_those_that_do_not_fit(
    state: StatePaths, machine: Machine, host: Host
) -> None:
    """Of its machine, size and accelerator; nobody else's."""
    fits = fingerprint_of(host, machine)
    other = structs.replace(machine, id="other")
    stale = warming.put_template(state, machine, structs.replace(fits, image="old"))
    kept = [
        warming.put_template(state, machine, fits),
        warming.put_template(state, machine, structs.replace(fits, cpus=2, image="old")),
        warming.put_template(state, machine, structs.replace(fits, accelerator="kvm")),
        warming.put_template(state, other, structs.replace(fits, image="old")),
    ]

    assert delete_misfits(state, machine, fits) == [stale.root.name]
    assert sorted(path.name for path in state.templates.iterdir()) == sorted(one.root.name for one in kept)


@pytest.fixture
def three(state: StatePaths, machine: Machine, host: Host) -> list[str]:
    """Names of templates of 1 MiB each, the least recently used first."""
    names = []
    for age_s, cpus in ((300, 2), (200, 1), (100, 4)):
        folder = warming.put_template(state, machine, fingerprint_of(host, machine, cpus=cpus))
        folder.picture.write_bytes(bytes(1 << 20))
        os.utime(folder.root, (time.time() - age_s, time.time() - age_s))
        names.append(folder.root.name)
    return names


@pytest.mark.parametrize(("max_disk_mib", "dropped"), [(0, 0), (4, 0), (3, 1), (2, 2), (1, 3)])
def test_the_least_recently_used_are_dropped_until_all_take_less(
    max_disk_mib: int, dropped: int, state: StatePaths, three: list[str]
) -> None:
    assert drop_templates(state, max_disk_mib=max_disk_mib) == three[:dropped]
    assert {saved.name for saved in find_templates(state)} == set(three[dropped:])


def test_the_one_just_made_is_never_dropped(state: StatePaths, three: list[str]) -> None:
    assert drop_templates(state, max_disk_mib=1, keep=three[0]) == three[1:]


def test_machines_that_can_have_no_template_say_why(machine: Machine) -> None:
    nvme = structs.replace(machine, image=structs.replace(machine.image, bus="nvme"))
    gpu = structs.replace(machine, gpu=structs.replace(machine.gpu, need="required"))

    assert find_template_obstacle(machine) == ""
    assert "no guest agent" in find_template_obstacle(structs.replace(machine, agent=False))
    assert "NVMe disk" in find_template_obstacle(nvme)
    assert "GPU" in find_template_obstacle(gpu)


def test_no_template_is_tried_of_such_a_machine(machine: Machine, state: StatePaths) -> None:
    with pytest.raises(
        MachineError, match=r"No template can be made of .painter.\. 'Painter' has no guest agent"
    ):
        warm.warm_machine(
            structs.replace(machine, agent=False), cpus=1, memory_mib=64, state=state, progress=print
        )


def test_qemu_never_runs_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    with pytest.raises(HostError, match="QEMU never runs as root"):
        warm.find_account("root")


def test_an_unknown_account_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    with pytest.raises(HostError, match="no account 'nobody-of-this-name'"):
        warm.find_account("nobody-of-this-name")


def test_only_root_can_run_it_as_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert warm.find_account("") is None
    with pytest.raises(HostError, match="Without being root"):
        warm.find_account("nobody")


@pytest.fixture
def account() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("Only root could touch what is another's.")
    return pwd.getpwnam(hubs.sessions_account())


@pytest.mark.parametrize(
    ("uid", "mode", "words"), [(1, 0o755, "belongs neither to root"), (0, 0o777, "Others")]
)
def test_root_does_not_work_where_others_may_write(
    uid: int, mode: int, words: str, state: StatePaths, account: pwd.struct_passwd
) -> None:
    os.chown(state.templates, account.pw_uid if uid else 0, 0)
    state.templates.chmod(mode)

    with pytest.raises(HostError, match=words):
        warm._make_folder(state)


def test_root_works_where_the_state_folders_owner_may_write(
    state: StatePaths, account: pwd.struct_passwd
) -> None:
    """Who could replace the whole of `templates/` anyway."""
    for folder in (state.root, state.templates):
        os.chown(folder, account.pw_uid, account.pw_gid)

    warm._make_folder(state)


LISTEN = """
import os, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
if uid := int(sys.argv[2]):
    os.setuid(uid)
listener.listen()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("own", [True, False])
def test_root_kills_nobody_but_the_account_of_qemu(own: bool, account: pwd.struct_passwd) -> None:
    """Who listens on the socket in QEMU's folder is what that account wants."""
    with hubs.state_folder() as folder:
        paths = SessionPaths(root=folder)
        paths.vm.mkdir()
        arguments = [str(paths.vm / "qmp"), str(account.pw_uid if own else 0)]
        with subprocess.Popen([sys.executable, "-c", LISTEN, *arguments], stdout=subprocess.PIPE) as listener:
            assert listener.stdout is not None
            listener.stdout.readline()

            warm._kill_orphans(paths, account)
            killed = own and listener.wait(timeout=5) == -signal.SIGKILL
            alive = listener.poll() is None
            listener.kill()

    assert (killed, alive) == (own, not own)


# With QEMU: a painter that is warmed in a second or two


@pytest.fixture
def painter(state_dir: Path, tmp_path: Path) -> warming.PainterWarming:
    return warming.PainterWarming(state_dir, tmp_path / "machines")


def content_of(state: Path) -> list[str]:
    """What lies in `templates/`, less the lock and the notes about KVM."""
    names = (path.name for path in (state / "templates").iterdir())
    return sorted(name for name in names if name != ".lock" and not name.startswith(".probes"))


def qemu_is_gone(state: Path, timeout_s: float = 5) -> bool:
    """Nothing that works in a draft is left, or soon will be."""
    end = time.monotonic() + timeout_s
    folder = SessionPaths(root=state / "templates")
    while find_processes(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_template_is_made_once(painter: warming.PainterWarming) -> None:
    code, out, err = painter.run()

    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "Booting 'painter' with 1 CPU and 64 MiB, by emulation, which is slow"
    assert "'painter' with 1 CPU and 64 MiB is warm: " in out.splitlines()[-1]
    assert len(content_of(painter.state)) == 1

    code, out, _ = painter.run()

    assert (code, out) == (0, "The template of 'painter' with 1 CPU and 64 MiB is up to date.\n")


def test_a_template_belongs_to_who_made_it_and_nobody_writes_to_it(painter: warming.PainterWarming) -> None:
    """QEMU ran as another account, which must not keep anything of it."""
    painter.run()

    (folder,) = (path for path in (painter.state / "templates").iterdir() if path.is_dir())
    entries = {path.name: path.lstat() for path in folder.iterdir()}
    assert set(entries) == {"disk-0.qcow2", "memory", "saved.json", "screen.png", "state"}
    assert {(status.st_uid, status.st_mode & 0o7777) for status in entries.values()} == {
        (os.geteuid(), 0o444)
    }
    assert folder.stat().st_mode & 0o7777 == 0o755


def test_a_damaged_template_is_made_again(painter: warming.PainterWarming) -> None:
    painter.run()
    (name,) = content_of(painter.state)
    (painter.state / "templates" / name / "state").unlink()

    assert painter.run()[0] == 0
    assert painter.run()[1].endswith("is up to date.\n")
    assert content_of(painter.state) == [name]


def test_a_changed_image_makes_a_new_template_and_the_old_one_goes(painter: warming.PainterWarming) -> None:
    painter.run()
    (before,) = content_of(painter.state)
    os.utime(painter.state / "images/painter/disk.raw")

    painter.run()

    (after,) = content_of(painter.state)
    assert after != before


def test_a_guest_whose_agent_never_answers_leaves_nothing(painter: warming.PainterWarming) -> None:
    code, _, err = painter.run(answers=False)

    assert code == 1
    assert "its guest agent did not answer within 1 s." in err
    assert content_of(painter.state) == []
    assert qemu_is_gone(painter.state)


def test_a_guests_words_do_not_command_the_terminal(painter: warming.PainterWarming) -> None:
    code, _, err = painter.run(hook_code=3, says="all is well\n\x1b]0;owned\x07 no space\n")

    assert code == 1
    assert "ended with code 3:  ]0;owned  no space" in err
    assert "\x1b" not in err


def test_an_image_that_cannot_prepare_itself_is_not_copied(painter: warming.PainterWarming) -> None:
    code, _, err = painter.run(hook_code=3)

    assert code == 1
    assert "its /etc/qemuspawner/before-save ended with code 3" in err
    assert content_of(painter.state) == []


def test_a_second_one_at_the_same_time_is_one_too_many(painter: warming.PainterWarming) -> None:
    with painter.start() as first:
        warming.wait_for_line(first, "Booting")
        code, _, err = painter.run()
        first.communicate(timeout=60)

    assert code == 1
    assert f"A template is being made here already, by process {first.pid}." in err
    assert first.returncode == 0


MOMENTS = ["Booting", "The desktop is there", "Saving"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_it_leaves_no_qemu_and_the_next_one_works(
    moment: str, painter: warming.PainterWarming
) -> None:
    with painter.start() as process:
        warming.wait_for_line(process, moment)
        process.kill()
    assert qemu_is_gone(painter.state)

    code, _, err = painter.run()

    assert (code, err) == (0, "")
    assert len(content_of(painter.state)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_at_any_moment_it_leaves_nothing(
    moment: str, number: signal.Signals, painter: warming.PainterWarming
) -> None:
    with painter.start() as process:
        warming.wait_for_line(process, moment)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (130, "interrupted\n")
    assert content_of(painter.state) == []
    assert qemu_is_gone(painter.state)


def test_qemu_runs_as_the_sessions_account(painter: warming.PainterWarming) -> None:
    """With none of root's rights, whoever calls the command."""
    with painter.start() as process:
        warming.wait_for_line(process, "The desktop is there")
        pid = find_qemu(SessionPaths(root=painter.state / "templates"))
        status = Path(f"/proc/{pid}/status").read_text()
        process.kill()

    name = hubs.sessions_account()
    uid = pwd.getpwnam(name).pw_uid if name else os.geteuid()
    assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


def test_more_than_all_may_take_drops_the_least_recently_used(painter: warming.PainterWarming) -> None:
    painter.run()
    (first,) = content_of(painter.state)

    _, out, _ = painter.run("--memory", "128 MiB", "--max-disk", "1 MiB")

    assert f"The template {first} was deleted: all may take 1 MiB." in out
    assert len(content_of(painter.state)) == 1


# The demo machine, really


@pytest.fixture
def demo(warm_state: Path) -> Machine:
    return load_machine(EXAMPLE_MACHINES / warming.DEMO, warm_state / "images")


@pytest.fixture
def make_clone(warm_state: Path, demo: Machine) -> Callable[..., SessionSpec]:
    def make(server_name: str = "", **keys: Any) -> SessionSpec:
        size = {"cpus": warming.DEMO_CPUS, "memory_mib": warming.DEMO_MEMORY_MIB}
        return vms.make_spec(warm_state, demo, server_name=server_name, **size, **keys)

    return make


@pytest.fixture
def template(warm_state: Path) -> tuple[SavedPaths, Saved]:
    state = StatePaths(root=warm_state)
    (saved,) = find_templates(state)
    return SavedPaths(root=state.templates / saved.name), saved


async def say(guest: Guest, command: str) -> str:
    """What a shell command prints in the guest."""
    assert guest.agent is not None
    code, output = await guest.agent.run("/bin/sh", "-c", command, timeout_s=60)
    assert code == 0, output
    return output.strip()


async def test_copies_start_as_the_template_was_and_go_their_own_ways(
    make_clone: Callable[..., SessionSpec], template: tuple[SavedPaths, Saved]
) -> None:
    folder, saved = template
    before = digests(folder)
    memory = load_memory(folder.memory, digest=saved.files["memory"].digest)
    try:
        async with AsyncExitStack() as stack:
            copies: list[tuple[Guest, Prepared]] = []
            for name in ("first", "second"):
                running = vms.running_guest(make_clone(name), memories={saved.files["memory"].digest: memory})
                copies.append(await stack.enter_async_context(running))
                guest, prepared = copies[-1]
                assert prepared.started.plan.way == "restored"
                # To the pixel: nothing has happened since.
                assert (await vms.screen(guest)).tobytes() == picture_of(folder)
                assert guest.agent is not None
                assert await guest.agent.wait_until_ready(timeout_s=60)
            random = []
            for name, (guest, _) in zip(("first", "second"), copies, strict=True):
                await say(guest, f"echo {name} > /root/mine && sync")
                random.append(await say(guest, "head -c 16 /dev/urandom | od -An -tx1"))
            mine = [await say(guest, "cat /root/mine") for guest, _ in copies]
            disks = [digest_file(prepared.paths.overlay(0)) for _, prepared in copies]
            memories = [copied_mib(guest.qemu.pid) for guest, _ in copies]
    finally:
        os.close(memory)

    assert mine == ["first", "second"]
    assert len(set(random)) == 2
    assert disks[0] != disks[1]
    assert digests(folder) == before
    # What they use is one memory, but for what they have written since.
    for copied, mapped in memories:
        assert 0 < copied < mapped / 2, memories


def digests(folder: SavedPaths) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.root.iterdir()
        if path != folder.memory
    } | {"memory": str(folder.memory.stat().st_mtime_ns)}


def picture_of(folder: SavedPaths) -> bytes:
    return Picture.open(folder.picture).convert("RGB").tobytes()


def copied_mib(pid: int) -> tuple[int, int]:
    """What of the guest's memory a QEMU has copied for itself, and all that it has mapped of it."""
    found = {"Anonymous": 0, "Rss": 0}
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = "memfd:qemuspawner-memory" in line
        elif ours and line.partition(":")[0] in found:
            found[line.partition(":")[0]] += int(line.split()[1])
    return found["Anonymous"] >> 10, found["Rss"] >> 10


async def test_a_copy_wakes_again_with_its_file_and_its_program(
    make_clone: Callable[..., SessionSpec],
) -> None:
    spec = make_clone("sleeper")
    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "restored"
        await say(guest, "echo mine > /root/mine")
        await say(guest, "systemd-run --unit=mine sleep 12345")
        pid = await say(guest, "pidof sleep")
        await vms.suspend(guest, prepared)

    async with vms.running_guest(spec) as (guest, prepared):
        found = (await say(guest, "cat /root/mine"), await say(guest, "pidof sleep"))
        way = prepared.started.plan.way

    shutil.rmtree(prepared.paths.root)
    assert way == "woken"
    assert found == ("mine", pid)


async def test_a_template_whose_memory_was_changed_is_not_run(
    make_clone: Callable[..., SessionSpec],
    template: tuple[SavedPaths, Saved],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its size is right; that its content is not shows when it is loaded."""
    folder, saved = template
    state = tmp_path / "s"
    copy = SavedPaths(root=state / "templates" / saved.name)
    shutil.copytree(folder.root, copy.root, copy_function=os.link)
    copy.memory.unlink()
    with copy.memory.open("wb") as file:
        file.truncate(saved.files["memory"].size_bytes)
    spec = structs.replace(make_clone("cold"), state_dir=str(state))

    async with vms.running_guest(spec) as (_, prepared):
        plan = prepared.started.plan

    assert (plan.way, plan.why) == ("cold", "its template cannot be restored; the log has the reason")
    assert len([record for record in caplog.records if "boots cold" in record.getMessage()]) == 1
