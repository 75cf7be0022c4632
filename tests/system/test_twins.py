"""Copies of one saved VM side by side: each is a machine of its own, and knows nothing of the others."""

import asyncio
import contextlib
import mmap
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import vms
from msgspec import structs

from qemuspawner.errors import SessionError
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import load_machine
from qemuspawner.paths import EXAMPLE_MACHINES, PERSONALISE_SCRIPT, SavedPaths
from qemuspawner.saved import Saved
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.session.vm.personal import personalise
from qemuspawner.session.vm.prepare import Prepared
from qemuspawner.spec import SessionSpec

USER = "Zoë O'Neill"
SERVERS = ("left", 'right "$(id)" 😀')

# What an administrator may put into an image, and what every copy of a saved VM has in common.
PREPARE = r"""
set -e
mkdir -p /etc/qemuspawner/personalise.d
cat > /etc/qemuspawner/personalise.d/10-note << 'END'
#!/bin/sh
printf '%s\n' "$QEMUSPAWNER_USER" "$QEMUSPAWNER_SERVER" "$QEMUSPAWNER_SESSION" >> /var/tmp/told
END
chmod +x /etc/qemuspawner/personalise.d/10-note
echo shared > /var/lib/systemd/random-seed
"""

COUNT = "ls /home/user | grep -c secret || true"
X = "env DISPLAY=:0 XAUTHORITY=/run/desktop/cookie"


class Twin:
    """A running copy."""

    def __init__(self, guest: Guest, prepared: Prepared) -> None:
        assert guest.agent is not None
        self.guest = guest
        self.agent = guest.agent
        self.spec = prepared.spec
        self.keeper = make_keeper(prepared)

    async def run(self, command: str) -> str:
        """What a shell command in the guest writes; run as root."""
        code, output = await self.agent.run("/bin/sh", "-c", command, timeout_s=60)
        assert code == 0, output
        return output.strip()


def make_keeper(prepared: Prepared) -> Keeper:
    spec = prepared.spec
    fits = prepared.host.fingerprint(spec.machine, cpus=spec.cpus, memory_mib=spec.memory_mib)
    return Keeper(spec=spec, paths=prepared.paths, fingerprint=fits)


class Original:
    """A VM that was saved, and its copies."""

    def __init__(self, state: Path, machine: Machine) -> None:
        self.state = state
        self.machine = machine
        self.branch = ""

    def spec(self, server_name: str, *, user: str = USER) -> SessionSpec:
        return vms.make_spec(
            self.state,
            self.machine,
            memory_mib=1024,
            user=user,
            server_name=server_name,
            session_id=vms.session_id(user, server_name),
            branch=self.branch,
        )

    async def save(self) -> None:
        """Boot it and save it."""
        spec = self.spec("")
        async with vms.running_guest(spec) as (guest, prepared):
            twin = Twin(guest, prepared)
            assert await twin.agent.wait_until_ready(timeout_s=240)
            await twin.run(PREPARE)
            await twin.agent.run("/bin/sh", "-s", "rehearse", stdin=PERSONALISE_SCRIPT.read_bytes())
            saved = await twin.keeper.save_checkpoint(guest, title="", automatic=False)
        self.branch = f"{spec.session_id}/{saved.name}"

    @contextlib.asynccontextmanager
    async def copy(self, spec: SessionSpec) -> AsyncIterator[Twin]:
        async with vms.running_guest(spec) as (guest, prepared):
            twin = Twin(guest, prepared)
            assert guest.plan.way == "woken"
            assert await twin.agent.wait_until_ready(timeout_s=30)
            begin = time.monotonic()
            await personalise(guest, spec)
            print(f"{spec.server_name}: personalised after {time.monotonic() - begin:.2f} s")
            yield twin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """One boot for all tests here."""
    machine = load_machine(EXAMPLE_MACHINES / "debian-desktop", Path(os.environ["QEMUSPAWNER_TEST_IMAGES"]))
    original = Original(tmp_path_factory.mktemp("state"), machine)
    await original.save()
    # Its clock will be wrong by so much.
    await asyncio.sleep(3)
    return original


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def twins(original: Original) -> AsyncIterator[tuple[Twin, Twin]]:
    """Two copies side by side."""
    left, right = (original.spec(name) for name in SERVERS)
    async with original.copy(left) as one, original.copy(right) as two:
        yield one, two


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "what",
    [
        "cat /etc/machine-id",
        "hostname",
        "cat /etc/hostname",
        "head -c 32 /dev/urandom | base64",
        "cat /var/lib/systemd/random-seed",
    ],
)
async def test_twins_are_different_machines(what: str, twins: tuple[Twin, Twin]) -> None:
    one, two = [await twin.run(what) for twin in twins]

    assert one
    assert two
    assert one != two
    assert "shared" not in (one, two)


async def test_their_clocks_are_right(twins: tuple[Twin, Twin]) -> None:
    for twin in twins:
        before = time.time()
        guest = float(await twin.run("date +%s.%N"))

        assert before - 2 < guest < time.time() + 2


async def test_each_is_told_whose_it_is(twins: tuple[Twin, Twin]) -> None:
    """By the image's own hook, once, with names as they are."""
    for twin, server_name in zip(twins, SERVERS, strict=True):
        assert await twin.run("cat /var/tmp/told") == f"{USER}\n{server_name}\n{twin.spec.session_id}"


async def test_the_account_bears_the_users_name(twins: tuple[Twin, Twin]) -> None:
    for twin in twins:
        assert (await twin.run("getent passwd user")).split(":")[4].partition(",")[0] == USER


async def test_programs_still_open_under_the_new_name(twins: tuple[Twin, Twin]) -> None:
    """The X server lets them in, and sudo finds its own host."""
    for twin in twins:
        assert await twin.run("hostname") != "desktop"
        assert await twin.run(f"runuser -u user -- {X} xprop -root _NET_ACTIVE_WINDOW")
        assert await twin.run("runuser -u user -- sudo -n true 2>&1") == ""


async def test_each_has_its_address_again(twins: tuple[Twin, Twin]) -> None:
    """The link was gone for a moment."""
    wait = "until ip -4 -oneline address show | grep -F ' 10.0.2.15/24 '; do sleep 0.2; done"
    for twin in twins:
        assert "10.0.2.15" in await twin.run(wait)


async def test_nothing_of_one_is_in_another(original: Original, twins: tuple[Twin, Twin]) -> None:
    """Neither on the disk nor in the memory; not in a copy that is made afterwards, either."""
    one, two = twins
    assert await one.run(COUNT) == "0"
    secret = secrets.token_hex(16)
    await one.run(f"echo {secret} > /home/user/secret; sync; SECRET={secret} sleep 1000 > /dev/null 2>&1 &")

    assert await one.run(COUNT) == "1"
    mine = await one.keeper.save_checkpoint(one.guest, title="", automatic=False)
    assert contains(one, mine, secret)
    await one.guest.stop()
    theirs = await two.keeper.save_checkpoint(two.guest, title="", automatic=False)
    assert not contains(two, theirs, secret)
    assert await two.run(COUNT) == "0"
    async with original.copy(original.spec("third")) as third:
        later = await third.keeper.save_checkpoint(third.guest, title="", automatic=False)
        assert await third.run(COUNT) == "0"
        assert not contains(third, later, secret)


def contains(twin: Twin, saved: Saved, text: str) -> bool:
    """Whether any file of a saved VM has the text."""
    folder = SavedPaths(root=twin.keeper.paths.saved / saved.name)
    assert folder.state.stat().st_size > 100 << 20
    found = False
    for path in folder.root.iterdir():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = found or content.find(text.encode()) >= 0
    return found


async def test_another_user_never_gets_a_copy(original: Original) -> None:
    with pytest.raises(SessionError, match="not there any more"):
        async with vms.running_guest(original.spec("mine", user="bob")):
            pass


async def test_a_session_that_wakes_up_is_the_machine_that_it_was(original: Original) -> None:
    """It gets its clock set, and nothing else; also where it began as a copy of another."""
    identity = "cat /etc/machine-id /etc/hostname /var/tmp/told"
    spec = original.spec("sleeper")
    async with original.copy(spec) as twin:
        before = await twin.run(identity)
        await twin.keeper.suspend(twin.guest)
    await asyncio.sleep(3)

    async with original.copy(structs.replace(spec, branch="")) as twin:
        assert await twin.run(identity) == before
        assert abs(float(await twin.run("date +%s.%N")) - time.time()) < 2
