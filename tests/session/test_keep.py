"""What is kept of a session: suspended, woken, gone back to; and what no crash or full disk may take away."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import guests
import pytest
import vms
from msgspec import structs

from qemuspawner.errors import SessionError, VmError
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths
from qemuspawner.qemu.digests import check_digest
from qemuspawner.saved import FirstSteps, Saved, find_suspended, list_saved, load_saved, write_manifest
from qemuspawner.session.host.directory import sweep
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.spec import ScriptRun, SessionSpec


@pytest.fixture
def spec(tmp_path: Path) -> SessionSpec:
    """The painter on a disk of its own; short enough a path for its sockets."""
    disk = guests.make_disk(tmp_path / "disk", "qcow2")
    state = tmp_path / "s"
    state.mkdir()
    return vms.make_spec(state, vms.make_machine(image={"file": str(disk), "format": "qcow2"}))


def paths_of(spec: SessionSpec) -> SessionPaths:
    return StatePaths.of(spec.state_dir).session(spec.session_id)


async def colour(guest: Guest) -> tuple[int, ...]:
    picture = await vms.screen(guest)
    pixel = picture.getpixel((picture.width // 2, picture.height // 2))
    assert isinstance(pixel, tuple)
    return pixel


async def wait_for(guest: Guest, wanted: tuple[int, int, int]) -> None:
    async with asyncio.timeout(60):
        while await colour(guest) != wanted:
            await asyncio.sleep(0.05)


async def press_key(guest: Guest) -> None:
    await guest.qemu.execute("send-key", keys=[{"type": "qcode", "data": "a"}])


async def suspend_red(spec: SessionSpec) -> Saved:
    """Suspend a painter whose screen somebody has turned red."""
    async with vms.running_guest(spec) as (guest, prepared):
        await wait_for(guest, guests.GREEN)
        await press_key(guest)
        await wait_for(guest, guests.RED)
        return await vms.suspend(guest, prepared)


async def test_a_suspended_session_wakes_as_it_was(spec: SessionSpec) -> None:
    saved = await suspend_red(spec)

    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "woken"
        assert await colour(guest) == guests.RED
        # It runs: a key turns it green again.
        await press_key(guest)
        await wait_for(guest, guests.GREEN)
    assert saved.layers == 1


async def test_how_far_a_new_desktop_was_is_saved_with_it(spec: SessionSpec) -> None:
    """With a suspended one and with a checkpoint, each as it was at that moment."""
    running, done = FirstSteps(pid=7, script=ScriptRun(state="running")), FirstSteps(done=1)
    async with vms.running_guest(spec) as (guest, prepared):
        assert guest.first_steps == FirstSteps()
        guest.first_steps = running
        checkpoint = await Keeper.of(prepared).save_checkpoint(guest, title="", automatic=False)
        guest.first_steps = done
        await vms.suspend(guest, prepared)

    async with vms.running_guest(spec) as (guest, _):
        assert guest.first_steps == done
    async with vms.running_guest(structs.replace(spec, sleeping=checkpoint.name)) as (guest, _):
        assert guest.first_steps == running


async def test_a_woken_desktop_has_the_script_that_it_began_with(spec: SessionSpec) -> None:
    """Whatever is chosen at its wake: that was for a new one."""
    begun = structs.replace(spec, script="#!/bin/sh\n", gifts=("/one",))
    async with vms.running_guest(begun) as (guest, prepared):
        await vms.suspend(guest, prepared)

    async with vms.running_guest(structs.replace(spec, gifts=("/other", "/more"))) as (_, prepared):
        assert (prepared.spec.script, prepared.spec.gifts) == (begun.script, begun.gifts)


async def test_nothing_but_what_was_saved_stays_of_a_suspended_session(spec: SessionSpec) -> None:
    saved = await suspend_red(spec)

    paths = paths_of(spec)
    assert {path.name for path in paths.root.iterdir()} == {"lock", "saved"}
    assert [path.name for path in paths.saved.iterdir()] == [saved.name]
    # Nobody sweeps it away, and it is not new at each look.
    assert sweep(StatePaths.of(spec.state_dir), own_id="other") == 0
    assert find_suspended(paths) == saved


async def test_the_chain_of_disks_stays_short(spec: SessionSpec) -> None:
    """Each wake adds a layer, and a long chain is merged; the machine still boots from it."""
    layers = []
    for _ in range(8):
        async with vms.running_guest(spec) as (guest, prepared):
            layers.append((await vms.suspend(guest, prepared)).layers)
    suspended = find_suspended(paths_of(spec))
    assert suspended is not None

    async with vms.running_guest(structs.replace(spec, sleeping="boot")) as (guest, _):
        await wait_for(guest, guests.GREEN)
    assert suspended.layers <= 4
    assert max(layers) <= 5


async def test_a_checkpoint_is_gone_back_to_and_the_session_goes_on_meanwhile(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, prepared):
        await wait_for(guest, guests.GREEN)
        saved = await Keeper.of(prepared).save_checkpoint(guest, title="green", automatic=False)
        await press_key(guest)
        await wait_for(guest, guests.RED)

    async with vms.running_guest(structs.replace(spec, sleeping=saved.name)) as (guest, _):
        assert await colour(guest) == guests.GREEN


async def test_a_branch_starts_from_another_sessions_checkpoint(spec: SessionSpec, tmp_path: Path) -> None:
    """And lives on when that one is deleted."""
    async with vms.running_guest(spec) as (guest, prepared):
        keeper = Keeper.of(prepared)
        await wait_for(guest, guests.GREEN)
        await press_key(guest)
        await wait_for(guest, guests.RED)
        saved = await keeper.save_checkpoint(guest, title="red", automatic=False)
        branch = vms.make_spec(
            Path(spec.state_dir), spec.machine, server_name="b", branch=f"{spec.session_id}/{saved.name}"
        )
        async with vms.running_guest(branch) as (other, other_prepared):
            keeper.delete(saved.name)
            assert await colour(other) == guests.RED
            kept = await vms.suspend(other, other_prepared)
        assert await colour(guest) == guests.RED

    async with vms.running_guest(structs.replace(branch, branch="")) as (other, _):
        assert await colour(other) == guests.RED
    assert kept.spec is not None
    assert kept.spec.branch == ""


async def test_another_users_checkpoint_is_not_there(spec: SessionSpec) -> None:
    async with vms.running_guest(spec) as (guest, prepared):
        saved = await Keeper.of(prepared).save_checkpoint(guest, title="", automatic=False)
    mallory = structs.replace(
        spec, user="mallory", session_id="f" * 20, branch=f"{spec.session_id}/{saved.name}"
    )

    with pytest.raises(SessionError, match="not there any more"):
        async with vms.running_guest(mallory):
            pass


async def test_automatic_checkpoints_make_room_for_each_other_and_for_nothing_else(spec: SessionSpec) -> None:
    spec = structs.replace(spec, max_checkpoints=3)
    async with vms.running_guest(spec) as (guest, prepared):
        keeper = Keeper.of(prepared)
        by_hand = await keeper.save_checkpoint(guest, title="mine", automatic=False)
        for _ in range(4):
            newest = await keeper.save_checkpoint(guest, title="", automatic=True)
        kept = keeper.checkpoints()
        with pytest.raises(SessionError, match="3 are allowed"):
            await keeper.save_checkpoint(guest, title="one more", automatic=False)

    names = [saved.name for saved in kept]
    assert (names[0], names[-1], len(names)) == (newest.name, by_hand.name, 3)


# What cannot be woken


async def expect_refusal(spec: SessionSpec, match: str) -> None:
    """The wake says why, its disk can still be booted, and everything stays where it is."""
    before = list_saved(paths_of(spec).saved)
    with pytest.raises(SessionError, match=match) as refusal:
        async with vms.running_guest(spec):
            pass
    assert "disk" in refusal.value.hint
    assert list_saved(paths_of(spec).saved) == before
    async with vms.running_guest(structs.replace(spec, sleeping="boot")) as (guest, prepared):
        await wait_for(guest, guests.GREEN)
        assert "lost" in prepared.started.plan.why


async def test_a_truncated_state_is_refused(spec: SessionSpec) -> None:
    saved = await suspend_red(spec)
    state = SavedPaths(root=paths_of(spec).saved / saved.name).state
    os.truncate(state, state.stat().st_size - 1)

    await expect_refusal(spec, "bytes instead of")


async def test_a_state_of_the_same_size_but_another_content_is_refused(spec: SessionSpec) -> None:
    saved = await suspend_red(spec)
    state = SavedPaths(root=paths_of(spec).saved / saved.name).state
    with state.open("r+b") as file:
        file.seek(state.stat().st_size // 2)
        file.write(bytes(byte ^ 1 for byte in file.read(16)))

    await expect_refusal(spec, "was changed")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("qemu", "6.2.0", "QEMU was 6.2.0"),
        ("accelerator", "kvm", "it ran with kvm"),
        ("cpu", "another", "processor"),
        ("machine", "another", "the machine's definition has changed"),
        ("format", 0, "another version of qemuspawner"),
    ],
)
async def test_a_state_of_another_host_or_time_is_refused(
    spec: SessionSpec, key: str, value: object, words: str
) -> None:
    saved = await suspend_red(spec)
    foreign = structs.replace(saved, fingerprint=structs.replace(saved.fingerprint, **{key: value}))
    write_manifest(paths_of(spec).saved / saved.name, foreign)

    await expect_refusal(spec, words)


@pytest.mark.parametrize("sleeping", ["wake", "boot"])
async def test_a_disk_is_never_laid_over_another_image(spec: SessionSpec, sleeping: str) -> None:
    """The file system would be rubbish: refused, nothing deleted, and right again with the former image."""
    await suspend_red(spec)
    image = Path(spec.machine.image.file)
    image.rename(image.with_suffix(".former"))
    guests.make_disk(image, "qcow2")

    with pytest.raises(SessionError, match="has been replaced"):
        async with vms.running_guest(structs.replace(spec, sleeping=sleeping)):
            pass

    image.with_suffix(".former").replace(image)
    async with vms.running_guest(spec) as (guest, _):
        assert await colour(guest) == guests.RED


async def test_a_desktop_wakes_on_a_copy_of_its_image_that_was_read(spec: SessionSpec) -> None:
    """As on another host, where nothing of the file but its content is the same."""
    image = Path(spec.machine.image.file)
    check_digest(image)
    await suspend_red(spec)
    copy = image.with_suffix(".copy")
    shutil.copyfile(image, copy)
    copy.replace(image)

    with pytest.raises(SessionError, match="has been replaced"):
        async with vms.running_guest(spec):
            pass

    check_digest(image)
    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "woken"
        assert await colour(guest) == guests.RED


async def test_a_desktop_from_before_its_image_was_read_wakes(spec: SessionSpec) -> None:
    await suspend_red(spec)

    check_digest(Path(spec.machine.image.file))

    async with vms.running_guest(spec) as (guest, _):
        assert await colour(guest) == guests.RED


async def test_a_damaged_manifest_hides_only_itself(spec: SessionSpec) -> None:
    """A new desktop starts beside it; another version of ours may be able to read it, so it stays."""
    saved = await suspend_red(spec)
    folder = SavedPaths(root=paths_of(spec).saved / saved.name)
    folder.manifest.write_bytes(b'{"kind": 7}')

    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "cold"
        await wait_for(guest, guests.GREEN)
    assert sweep(StatePaths.of(spec.state_dir), own_id="other") == 0
    assert folder.layer(0).exists()


# A disk that is full


IN_SMALL_DISK = """
import asyncio, json, subprocess, sys
from pathlib import Path
import msgspec, vms
from qemuspawner.errors import QemuSpawnerError
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.spec import ScriptRun, SessionSpec
import test_keep as t

spec = SessionSpec.from_json(sys.stdin.read())

async def main():
    async with vms.running_guest(spec) as (guest, prepared):
        await t.wait_for(guest, t.guests.GREEN)
        keeper = Keeper.of(prepared)
        # What is tried here is a disk that becomes full although there was room.
        keeper._check_room = lambda: None
        prepared.paths.saved.mkdir(exist_ok=True)
        saved = str(prepared.paths.saved)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", saved], check=True)
        failures = []
        for save in (keeper.suspend(guest), keeper.save_checkpoint(guest, title="", automatic=False)):
            try:
                await save
            except (QemuSpawnerError, OSError) as exc:
                failures.append(str(exc))
        left = [path.name for path in prepared.paths.saved.iterdir()]
        await t.press_key(guest)
        await t.wait_for(guest, t.guests.RED)
        subprocess.run(["umount", "-l", saved], check=True)
        suspended = await keeper.suspend(guest)
        print(json.dumps({"failures": failures, "left": left, "saved": suspended.kind}))

asyncio.run(main())
"""


def test_a_full_disk_leaves_the_session_running(spec: SessionSpec) -> None:
    """In a mount namespace of its own, with room for 64 KiB."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", IN_SMALL_DISK],
        input=spec.to_json(),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)

    assert len(answer["failures"]) == 2
    assert answer["left"] == []
    assert answer["saved"] == "suspended"


# Killed in the middle

KILLED = """
import asyncio, sys, os
import vms
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.spec import ScriptRun, SessionSpec
import test_keep as t

spec = SessionSpec.from_json(sys.stdin.read())

async def main():
    async with vms.running_guest(spec) as (guest, prepared):
        if prepared.started.plan.way == "cold":
            await t.wait_for(guest, t.guests.GREEN)
        print("running", flush=True)
        sys.stdin = open(0)
        while True:
            {action}

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "action",
    [
        "await vms.suspend(guest, prepared); print('suspended', flush=True); await asyncio.sleep(60)",
        "await Keeper.of(prepared).save_checkpoint(guest, title='', automatic=True)",
    ],
    ids=["suspend", "checkpoint"],
)
@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05, 0.1, 0.2])
async def test_a_session_killed_while_it_saves_keeps_the_last_good_one(
    spec: SessionSpec, action: str, after_s: float
) -> None:
    """It was suspended before, and woken; then kill -9. It wakes red whatever moment it was."""
    await suspend_red(spec)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(action=action)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(spec.to_json().encode())
    process.stdin.close()
    assert process.stdout.readline() == b"running\n"
    await asyncio.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    async with vms.running_guest(spec) as (guest, prepared):
        assert prepared.started.plan.way == "woken"
        assert await colour(guest) == guests.RED
        drafts = [path for path in prepared.paths.saved.iterdir() if load_saved(path) is None]
    assert drafts == []


async def test_a_wake_that_is_killed_can_be_tried_again(spec: SessionSpec) -> None:
    await suspend_red(spec)
    for _ in range(3):
        script = textwrap.dedent("""
            import contextlib, os, sys, time
            from qemuspawner.session.vm.prepare import prepare
            from qemuspawner.spec import ScriptRun, SessionSpec
            with contextlib.ExitStack() as stack:
                prepare(SessionSpec.from_json(sys.stdin.read()), stack, lambda *_: None)
                os.kill(os.getpid(), 9)
        """)
        subprocess.run([sys.executable, "-c", script], input=spec.to_json(), text=True)

    async with vms.running_guest(spec) as (guest, _):
        assert await colour(guest) == guests.RED


async def test_a_disk_that_may_become_full_refuses_to_save(
    spec: SessionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is paused: a full disk would pause everybody's machines."""
    async with vms.running_guest(spec) as (guest, prepared):
        monkeypatch.setattr("qemuspawner.session.vm.keep.DISK_RESERVE_MIB", 1 << 40)
        with pytest.raises(VmError, match="may need"):
            await Keeper.of(prepared).suspend(guest)
        assert await guest.qemu.run_state() == "running"


async def test_an_expired_one_is_deleted(spec: SessionSpec) -> None:
    saved = await suspend_red(spec)
    folder = paths_of(spec).saved / saved.name
    write_manifest(folder, structs.replace(saved, expires=time.time() - 1))

    assert sweep(StatePaths.of(spec.state_dir), own_id="other") == 1
    assert not paths_of(spec).root.exists()
