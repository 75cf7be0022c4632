"""When a session falls asleep by itself, as a process with a real QEMU."""

import os
import signal
import time
from collections.abc import Callable

from msgspec import structs
from processes import find_processes
from sessions import PROGRAM, Session, wait_for

from qemuspawner.machine import Image
from qemuspawner.saved import find_suspended, list_saved


def asleep(session: Session) -> bool:
    return find_suspended(session.paths) is not None and not find_processes(session.paths)


def test_a_stop_suspends_by_policy(start: Callable[..., Session]) -> None:
    session = start(suspend_on=("stop",))
    session.wait_until_ready()

    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert asleep(session)


def test_a_session_on_uvloop_suspends_and_wakes(start: Callable[..., Session]) -> None:
    """The extra `fast`: another event loop, whose sockets are not asyncio's."""
    program = (
        f"import sys; sys.path.append({os.environ['QEMUSPAWNER_TEST_FAST']!r}); import uvloop; {PROGRAM}"
    )
    session = start(suspend_on=("stop",), program=program)
    session.wait_until_ready()
    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert asleep(session)
    start(program=program).wait_until_ready()


def test_the_end_of_the_lifetime_suspends_by_policy(start: Callable[..., Session]) -> None:
    session = start(lifetime_s=4, max_lifetime_s=4, suspend_on=("lifetime",))

    assert session.process.wait(60) == 0
    assert asleep(session)


def test_an_idle_session_falls_asleep_by_policy(start: Callable[..., Session]) -> None:
    session = start(idle_s=2, suspend_on=("idle",))

    assert session.process.wait(60) == 0
    assert asleep(session)


def test_a_policy_for_another_end_keeps_nothing(start: Callable[..., Session]) -> None:
    session = start(suspend_on=("idle", "lifetime"))
    session.wait_until_ready()

    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert not session.paths.root.exists()


def test_of_two_wakes_at_once_one_has_the_desktop_and_nothing_is_lost(start: Callable[..., Session]) -> None:
    """The later start ends the earlier one, which falls asleep again first."""
    session = start(suspend_on=("stop",))
    session.wait_until_ready()
    session.process.send_signal(signal.SIGTERM)
    session.process.wait(30)

    first, second = start(suspend_on=("stop",)), start(suspend_on=("stop",))

    wait_for(lambda: first.process.poll() is not None or second.process.poll() is not None)
    winner = first if first.process.poll() is None else second
    winner.wait_until_ready()
    winner.process.send_signal(signal.SIGTERM)
    assert winner.process.wait(30) == 0
    assert asleep(winner)


def test_a_machine_that_cannot_be_saved_keeps_its_disk(start: Callable[..., Session]) -> None:
    """QEMU cannot save an NVMe disk's device: what is on the disk stays, and starts again."""
    session = start()
    machine = session.spec.machine
    nvme = structs.replace(machine, image=Image(file=machine.image.file, format="raw", bus="nvme"))
    session.process.kill()
    session = start("nvme", machine=nvme, suspend_on=("stop",))
    session.wait_until_ready()

    session.process.send_signal(signal.SIGTERM)
    assert session.process.wait(60) == 0

    saved = find_suspended(session.paths)
    assert saved is not None
    assert saved.memory == "lost"
    start("nvme", machine=nvme).wait_until_ready()


def test_checkpoints_are_made_by_the_clock_and_the_oldest_go(start: Callable[..., Session]) -> None:
    session = start(checkpoint_every_s=1, max_checkpoints=2)
    session.wait_until_ready()

    def names() -> list[str]:
        return [saved.name for saved in list_saved(session.paths.saved)]

    wait_for(lambda: len(names()) == 2)
    first = names()[-1]
    wait_for(lambda: len(names()) == 2 and first not in names())
    assert all(saved.automatic for saved in list_saved(session.paths.saved))


def test_a_stop_in_the_middle_of_falling_asleep_changes_nothing(start: Callable[..., Session]) -> None:
    """The save is finished first, and there is one of it, with its memory."""
    session = start(idle_s=1, suspend_on=("idle", "stop"))
    session.wait_until_ready()

    wait_for(lambda: session.paths.saved.exists() and any(session.paths.saved.iterdir()))
    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert [saved.memory for saved in list_saved(session.paths.saved)] == ["streamed"]


def test_stops_that_come_to_the_very_end_do_not_look_like_a_failure(start: Callable[..., Session]) -> None:
    """Not even between the event loop's end and the process's, where other threads still run."""
    session = start(suspend_on=("stop",))
    session.wait_until_ready()

    while session.process.poll() is None:
        session.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)

    assert session.process.returncode == 0
    assert asleep(session)


def test_a_host_that_shuts_down_takes_no_disk_away(start: Callable[..., Session]) -> None:
    """QEMU gets the signal as well, and may be gone before its supervisor hears of it."""
    session = start(suspend_on=("stop",))
    session.wait_until_ready()

    os.kill(session.qemu_pid, signal.SIGTERM)

    assert session.process.wait(30) == 0
    assert [saved.memory for saved in list_saved(session.paths.saved)] == ["lost"]


def test_what_was_woken_is_not_lost_with_a_crash(start: Callable[..., Session]) -> None:
    """The crash keeps the disk; the session has failed, and the next one boots from it."""
    session = start(suspend_on=("stop",))
    session.wait_until_ready()
    session.process.send_signal(signal.SIGTERM)
    session.process.wait(30)
    session = start(suspend_on=("stop",))
    session.wait_until_ready()

    os.kill(session.qemu_pid, signal.SIGKILL)
    wait_for(lambda: [saved.memory for saved in list_saved(session.paths.saved)] == ["lost"])
    session.process.send_signal(signal.SIGTERM)

    assert session.process.wait(10) == 1
    start(suspend_on=("stop",)).wait_until_ready()
