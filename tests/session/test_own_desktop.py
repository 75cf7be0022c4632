"""When a desktop is shown and becomes its user's own: a real session, whose guest's agent is a stand-in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import guests
import pytest
import vms
from processes import find_qemu
from sessions import Session, wait_for

from qemuspawner.account import Account
from qemuspawner.paths import StatePaths

ZOE = Account(name="zoe", uid=4711, gid=4711)

# It becomes its user's when the file `gate` is there, or never.
PROGRAM = """
import asyncio
from pathlib import Path
from qemuspawner.errors import VmError
from qemuspawner.session.vm import guest
from qemuspawner.session import main
from qemuspawner.session.life import supervisor

class Agent(guest.GuestAgent):
    async def wait_until_ready(self, *, timeout_s):
        return True
    async def refuse(self, *arguments, **options):
        raise VmError("Nothing can be run.")
    run = run_program = start_program = execute = send = refuse

async def personalise(guest, spec):
    Path({state!r}, "sessions", "asked").touch()
    if {fails}:
        raise VmError("It cannot be told.")
    while not Path({gate!r}).exists():
        await asyncio.sleep(0.02)

guest.GuestAgent = Agent
supervisor.personalise = personalise
main()
"""

Begin = Callable[..., Session]


@pytest.fixture
def gate(state: StatePaths) -> Path:
    return state.root / "gate"


@pytest.fixture
def begin(state: StatePaths, gate: Path) -> Iterator[Begin]:
    """Starts a session that somebody has asked to be its user's; `fails` where that cannot be."""
    sessions: list[Session] = []

    def begin(*, fails: bool = False, login: str = "machine", **spec: object) -> Session:
        image = {"file": str(guests.make_disk(state.root / "painter")), "format": "raw"}
        machine = vms.make_machine(agent=True, home="/home/user", login=login, shutdown=1, image=image)
        program = PROGRAM.format(state=str(state.root), gate=str(gate), fails=fails)
        sessions.append(Session(state, vms.make_spec(state.root, machine, **spec), program=program))
        wait_for((state.sessions / "asked").exists)
        return sessions[-1]

    yield begin
    for session in sessions:
        session.process.kill()
        session.process.wait()


def test_a_desktop_of_the_machines_own_account_is_there_before_it_is_told_whose_it_is(begin: Begin) -> None:
    session = begin(account=ZOE)

    session.wait_until_ready()


@pytest.mark.parametrize("why", [{"login": "user", "account": ZOE}, {"sudo": "no"}], ids=["login", "no root"])
def test_nobody_has_a_desktop_before_its_user_is_logged_in_or_kept_from_root(
    why: dict[str, object], begin: Begin, gate: Path
) -> None:
    session = begin(**why)
    wait_for(lambda: session.probe() != 0)
    assert session.probe() == 503

    gate.touch()

    session.wait_until_ready()


def test_a_desktop_ends_whose_user_cannot_be_kept_from_root(begin: Begin) -> None:
    session = begin(fails=True, sudo="no")

    wait_for(lambda: session.probe() == 503 and find_qemu(session.paths) is None)


def test_a_desktop_whose_user_cannot_be_logged_in_goes_on_as_it_is(begin: Begin) -> None:
    session = begin(fails=True, login="user", account=ZOE)

    session.wait_until_ready()
