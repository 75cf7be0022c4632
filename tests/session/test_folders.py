"""Folders of a VM with a QEMU and a guest of ours: what may go wrong on the way in and out."""

import asyncio
import contextlib
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vms
from sessions import Session, wait_for

from qemuspawner.errors import SessionError, VmError
from qemuspawner.paths import StatePaths
from qemuspawner.qemu.folders import Ids
from qemuspawner.session.inside.folders import FolderPlan, GuestFolders, check_required, plan_folders
from qemuspawner.spec import Folder, SessionSpec

STATE = Path("/var/lib/no-such-state")


def folder(name: str, path: Path | str = "/usr", **keys: Any) -> Folder:
    return Folder(name=name, path=str(path), mount=f"/mnt/{name}", **keys)


def spec_with(*folders: Folder, agent: bool = True, **keys: Any) -> SessionSpec:
    machine = vms.make_machine(image={"file": "/x", "format": "raw"}, agent=agent)
    return vms.make_spec(STATE, machine, folders=folders, **keys)


def plan_of(spec: SessionSpec, *, is_mapped: bool = False) -> FolderPlan:
    with contextlib.ExitStack() as opened:
        return plan_folders(spec, opened, state_root=STATE, is_mapped=is_mapped)[0]


# The plan


def test_a_restored_desktop_takes_9p_and_others_virtiofs() -> None:
    """And says why."""
    spec = spec_with(folder("data"))

    restored, booted = plan_of(spec, is_mapped=True), plan_of(spec)

    assert (restored.way, restored.why) == ("9p", "the desktop shares its template's memory")
    assert (booted.way, booted.why, booted.exports) == ("virtiofs", "", ())


def test_without_virtiofsd_it_is_9p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qemuspawner.qemu.virtiofs._PLACES", ())

    plan = plan_of(spec_with(folder("data")))

    assert (plan.way, plan.why) == ("9p", "this host has no virtiofsd")
    assert [export.path for export in plan.exports] == ["/folders/0"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"agent": False}, "'Painter' has no guest agent, which mounts folders."),
        ({"jail": False}, "Folders of the host need the jail around QEMU, which is switched off."),
    ],
)
def test_where_no_folder_can_be_had_that_is_said(keys: dict[str, Any], words: str) -> None:
    (missing,) = plan_of(spec_with(folder("data"), **keys)).missing

    assert (missing.way, missing.problem) == ("", words)


def test_there_is_room_for_eight() -> None:
    plan = plan_of(spec_with(*(folder(str(number)) for number in range(9))))

    assert len(plan.folders) == 8
    assert [one.problem for one in plan.missing] == ["The desktop has room for 8 folders."]


def test_only_a_required_folder_is_needed_for_a_start() -> None:
    optional = spec_with(folder("data", "/nowhere"))
    required = spec_with(folder("data", "/nowhere", required=True))

    check_required(optional, plan_of(optional))
    with pytest.raises(SessionError, match="The folder 'data' cannot be had: it is missing on this host"):
        check_required(required, plan_of(required))


def test_a_desktop_without_its_required_folder_does_not_start(
    start: Callable[..., Session], state: StatePaths
) -> None:
    """No QEMU is started, and nothing is left; the hub reads the sentence in the session's status."""
    session = start(folders=(folder("home", required=True),))

    # It answers, and has failed before that.
    wait_for(lambda: session.probe() != 0)
    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(10) == 1
    assert not session.paths.vm.exists()
    assert not list(state.sessions.glob("*/vm/disk*"))


# In and out


class FakeQemu:
    """Answers everything, and gives every device back, unless told not to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.fails: str = ""
        self.goes_when_it_fails = False
        self.there: set[object] = set()

    async def execute(self, command: str, **arguments: object) -> object:
        if command == "qom-list":
            return [{"name": name} for name in self.there]
        self.asked.append((command, arguments.get("id")))
        if command == self.fails:
            if self.goes_when_it_fails:
                self.there.discard(arguments["id"])
            raise VmError(f"QEMU did not answer '{command}' within 5 s.")
        if command == "device_add":
            self.there.add(arguments["id"])
        return {}

    @contextlib.contextmanager
    def events(self, *_names: str) -> Any:
        async def all_events() -> Any:
            for command, device in self.asked:
                if command == "device_del":
                    yield {"event": "DEVICE_DELETED", "data": {"path": "/machine/x"}}
                    yield {"event": "DEVICE_DELETED", "data": {"device": device}}

        yield all_events()


class FakeAgent:
    def __init__(self) -> None:
        self.answer: tuple[int, str] | VmError = (0, "")
        self.asked: list[tuple[str, ...]] = []
        self.is_free = asyncio.Event()  # to go on
        self.is_free.set()

    async def run(self, *argv: str, **_: object) -> tuple[int, str]:
        self.asked.append(argv[3:])
        await self.is_free.wait()
        if isinstance(self.answer, VmError):
            raise self.answer
        return self.answer


class Parts:
    def __init__(self, *names: str) -> None:
        self.qemu, self.agent = FakeQemu(), FakeAgent()
        plan = FolderPlan(
            folders=tuple(folder(name) for name in names), ids=Ids(uid=1, gid=1), state_root=STATE
        )
        vm = type("Vm", (), {"spare_ports": 8})
        self.folders = GuestFolders(plan, vm, self.qemu, None, log=vms.LOG)  # type: ignore[arg-type]

    async def attach(self) -> None:
        await self.folders.attach(self.agent)  # type: ignore[arg-type]

    async def detach(self) -> None:
        await self.folders.detach(self.agent, ends_programs=False)  # type: ignore[arg-type]


async def test_folders_are_plugged_and_mounted_once() -> None:
    """A second call finds them there, and only has them mounted where the guest has lost them."""
    parts = Parts("a", "b")

    await parts.attach()
    await parts.attach()

    assert parts.qemu.asked == [("device_add", "qemuspawner0"), ("device_add", "qemuspawner1")]
    assert parts.agent.asked[0][0] == "mount"
    assert parts.agent.asked[0][1::4] == ("qemuspawner0", "qemuspawner1")
    assert [one.way for one in parts.folders.statuses] == ["9p", "9p"]


async def test_one_folder_that_fails_takes_no_other_along() -> None:
    """What the guest says of it is bounded, and is text."""
    parts = Parts("a", "b")
    parts.agent.answer = (1, "noise\nqemuspawner1 no\x1b[31m such" + "x" * 1000 + "\nqemuspawner7 x\n")

    await parts.attach()
    a, b = parts.folders.statuses

    assert (a.way, a.problem) == ("9p", "")
    assert b.way == ""
    assert re.fullmatch(r"The folder 'b' cannot be mounted: no \[31m suchx{1,200}", b.problem)


async def test_a_device_that_qemu_refuses_is_not_mounted() -> None:
    parts = Parts("a")
    parts.qemu.fails = "device_add"

    await parts.attach()

    assert parts.agent.asked == []
    assert "did not answer 'device_add'" in parts.folders.statuses[0].problem


async def test_folders_in_use_stay_plugged() -> None:
    parts = Parts("a", "b")
    await parts.attach()
    parts.agent.answer = (1, "qemuspawner1 bash, editor\n")

    with pytest.raises(VmError, match="The folder 'b' is in use in the desktop by: bash, editor"):
        await parts.detach()

    assert not [one for one in parts.qemu.asked if one[0] == "device_del"]


async def test_a_guest_that_does_not_answer_keeps_its_folders() -> None:
    parts = Parts("a")
    await parts.attach()
    parts.agent.answer = VmError("silent")

    with pytest.raises(VmError, match="silent"):
        await parts.detach()

    assert not [one for one in parts.qemu.asked if one[0] == "device_del"]


async def test_before_a_save_every_device_is_gone() -> None:
    parts = Parts("a", "b")
    await parts.attach()

    await parts.detach()

    assert [one for one in parts.qemu.asked if one[0] == "device_del"] == [
        ("device_del", "qemuspawner0"),
        ("device_del", "qemuspawner1"),
    ]
    assert [one.way for one in parts.folders.statuses] == ["", ""]


async def test_a_device_that_went_when_nobody_waited_is_plugged_anew() -> None:
    """A guest that boots gives back late what it was asked for; it is neither taken out twice nor missed."""
    parts = Parts("a")
    await parts.attach()
    parts.qemu.there.clear()

    await parts.detach()
    await parts.attach()

    assert parts.qemu.asked == [("device_add", "qemuspawner0")] * 2
    assert [one.way for one in parts.folders.statuses] == ["9p"]


async def test_what_is_being_mounted_is_mounted_before_it_is_taken_out() -> None:
    """Who asked for it has gone, the guest goes on with it: it would keep a device that is taken out."""
    parts = Parts("a")
    parts.agent.is_free.clear()
    attaching = asyncio.create_task(parts.attach())
    await asyncio.sleep(0.05)
    attaching.cancel()

    detaching = asyncio.create_task(parts.detach())
    await asyncio.sleep(0.05)
    asked_beside_it = [words[0] for words in parts.agent.asked]
    parts.agent.is_free.set()
    await detaching

    assert asked_beside_it == ["mount"]
    assert [words[0] for words in parts.agent.asked] == ["mount", "unmount"]
    assert parts.qemu.asked == [("device_add", "qemuspawner0"), ("device_del", "qemuspawner0")]


async def test_a_guest_that_hangs_in_mounting_does_not_hold_the_end_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qemuspawner.session.inside.folders._PATIENCE_S", 0.1)
    parts = Parts("a")
    parts.agent.is_free.clear()
    attaching = asyncio.create_task(parts.attach())
    await asyncio.sleep(0.05)
    attaching.cancel()

    detaching = asyncio.create_task(parts.detach())
    async with asyncio.timeout(10):
        while len(parts.agent.asked) < 2:
            await asyncio.sleep(0.01)
    parts.agent.is_free.set()
    await detaching

    assert [words[0] for words in parts.agent.asked] == ["mount", "unmount"]


async def test_a_device_that_goes_just_before_it_is_taken_out_is_out() -> None:
    parts = Parts("a")
    await parts.attach()
    parts.qemu.fails, parts.qemu.goes_when_it_fails = "device_del", True

    await parts.detach()

    assert [one.way for one in parts.folders.statuses] == [""]
