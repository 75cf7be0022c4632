"""S5: whatever the screen's websocket of a real session is sent, session and QEMU stay as they are."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress

import guests
import pytest
import relays
import rfb_streams
import vms
from hypothesis import strategies as st
from processes import resident_mib
from proofs import Proof
from sessions import Session, sessions_state, wait_for

from qemuspawner.session.screen import rfb
from qemuspawner.session.screen.visitors import MAX_VISITORS, MAX_VISITORS_PER_PERSON

pytestmark = pytest.mark.goal("S5")

_AT_ONCE = 8
_GROWTH_MIB = 5
_SLOW_SOCKETS = 100
# Everybody is who their token says, and may control alice's desktop.
_PROGRAM = """
from qemuspawner.session import main
from qemuspawner.session.people.logins import Logins
from qemuspawner.session.people.shares import Shares

async def find(self, token, session_id, *, fresh_s):
    return {"kind": "user", "name": token, "scopes": []} if token else None

async def role_of(self, name, groups, *, by_group):
    return "control"

Logins._find, Logins.lets_in, Shares.role_of = find, lambda self, model: True, role_of
main()
"""


@pytest.fixture
def session() -> Iterator[Session]:
    """A session of the painter, in its walls."""
    with sessions_state() as state:
        image = {"file": str(guests.make_disk(state.root / "painter")), "format": "raw"}
        machine = vms.make_machine(shutdown=1, image=image)
        session = Session(state, vms.make_spec(state.root, machine), program=_PROGRAM)
        try:
            session.wait_until_ready()
            yield session
        finally:
            session.process.kill()
            session.process.wait()


class Memory:
    """What the session's supervisor and its QEMU hold, against the moment at which this was made."""

    def __init__(self, session: Session) -> None:
        self._pids = (session.process.pid, session.qemu_pid)
        self._before = self._look()

    def growth_mib(self) -> list[float]:
        return [round(now - before, 1) for now, before in zip(self._look(), self._before, strict=True)]

    def _look(self) -> list[float]:
        return [resident_mib(pid) for pid in self._pids]


async def test_random_streams_and_handshakes_leave_session_and_qemu_as_they_were(
    session: Session, proof: Proof
) -> None:
    """Of who may control, so that all that is valid reaches QEMU."""
    count = proof.rounds(short=80, full=10_000)
    warm_up = proof.rounds(short=40, full=1000)
    streams = rfb_streams.draw(rfb_streams.streams, warm_up + count)
    greetings = rfb_streams.draw(_greetings, count // 2)
    requests = [_mutate(relays.upgrade(_PATH, _as("bob"))) for _ in range(count - len(greetings))]
    async with _looking_on(session) as still_there:
        # What the first of them take is taken for good: code, pools, and room for the largest eight at once.
        await _do_all(session, streams[:warm_up], _send_stream)
        # Who is refused hears why in their language, for which the languages are read.
        await _do_all(session, [b"RFB 003.003\n"], _send_greeting)
        memory = Memory(session)
        await _do_all(session, streams[warm_up:], _send_stream)
        after_streams = memory.growth_mib()
        await _do_all(session, greetings, _send_greeting)
        await _do_all(session, requests, _send_request)
        grown = memory.growth_mib()
        await still_there()
    proof.note(
        done=f"{count} random streams of RFB and {count} random handshakes (half RFB's, "
        f"half the websocket's), {_AT_ONCE} at once, at a real session with QEMU in its walls, beside the "
        f"owner's window, after {warm_up} more streams",
        found=f"session and QEMU answer; grown by {after_streams} MiB after the streams, "
        f"{grown} MiB at the end",
        limit=f"both answer; {_GROWTH_MIB} MiB each",
    )
    assert max(grown) <= _GROWTH_MIB


async def test_slow_clients_keep_nobody_out(session: Session, proof: Proof) -> None:
    """Half a request, half a handshake of RFB, half a message: the owner gets in, nothing is collected."""
    async with _looking_on(session) as still_there:
        await _do_all(session, [b""] * 20, _send_stream)
        memory = Memory(session)
        slow = [socket async for socket in _open_slowly(session)]
        grown = memory.growth_mib()
        for _ in range(proof.rounds(short=20, full=120)):
            for writer, rest in slow:
                writer.write(next(rest))
            # Not to wait for anything: this is how slow they are.
            await asyncio.sleep(0.1)
        # The owner comes once more, with everything taken.
        owner = await relays.open_websocket(session.port, _PATH, headers=_as("alice"))
        await owner.greet()
        owner.writer.close()
        await still_there()
        for writer, _ in slow:
            writer.close()
        wait_for(lambda: session.probe() == 200)
        after = memory.growth_mib()
    proof.note(
        done=f"{len(slow)} sockets, each sending a byte in 0.1 s at most: handshakes and messages of RFB, "
        "as many viewers as there is room for, and requests without an end",
        found=f"the owner gets in beside them; grown by {grown} MiB with them, {after} MiB after them",
        limit=f"the owner gets in; {_GROWTH_MIB} MiB each",
    )
    assert max(grown + after) <= _GROWTH_MIB


_PATH = "/user/alice/vnc"


def _as(name: str) -> dict[str, str]:
    return {"Authorization": f"token {name}"}


_greeting = rfb.VERSION + b"\x01\x00"
_greetings = st.one_of(
    st.binary(max_size=100),
    st.integers(0, len(_greeting)).map(lambda size: _greeting[:size]),
    st.tuples(st.integers(0, 13), st.binary(min_size=1, max_size=3), st.binary(max_size=40)).map(
        lambda cut: _greeting[: cut[0]] + cut[1] + _greeting[cut[0] + 1 :] + cut[2]
    ),
)


def _mutate(request: bytes) -> bytes:
    """With some bytes of it changed, and maybe the end cut off."""
    changed = bytearray(request)
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed[: random.choice([len(changed), random.randrange(len(changed))])])


async def _do_all(
    session: Session, items: Iterable[bytes], do: Callable[[int, str, bytes], Awaitable[None]]
) -> None:
    """Do it with each; as several people, of whom each has one window."""
    waiting = iter(items)

    async def work(name: str) -> None:
        for item in waiting:
            await do(session.port, name, item)

    await asyncio.gather(*(work(f"guest{number}") for number in range(_AT_ONCE)))


async def _send_stream(port: int, name: str, stream: bytes) -> None:
    bare = await relays.open_websocket(port, _PATH, headers=_as(name))
    await bare.greet()
    half = len(stream) // 2
    bare.writer.write(relays.frame(2, stream[:half]) + relays.frame(2, stream[half:]))
    bare.writer.write(relays.frame(8, b"\x03\xe8"))
    await bare.close_code()
    bare.writer.close()


async def _send_greeting(port: int, name: str, greeting: bytes) -> None:
    bare = await relays.open_websocket(port, _PATH, headers=_as(name))
    bare.writer.write(relays.frame(2, greeting) + relays.frame(8, b"\x03\xe8"))
    await bare.close_code()
    bare.writer.close()


async def _send_request(port: int, _name: str, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    with suppress(ConnectionError):
        async with asyncio.timeout(20):
            await reader.read()
    writer.close()


async def _open_slowly(
    session: Session,
) -> AsyncIterator[tuple[asyncio.StreamWriter, Iterator[bytes]]]:
    """Sockets with what they are still to send, byte by byte and without an end."""
    viewers = MAX_VISITORS - 1  # beside the owner
    for number in range(viewers):
        # A third window of one person would take the place of the first.
        name = f"slow{number // MAX_VISITORS_PER_PERSON}"
        bare = await relays.open_websocket(session.port, _PATH, headers=_as(name))
        if number % 2:
            await bare.greet()
            yield bare.writer, _one_by_one(relays.frame(2, b"\x06\0\0\0\0\x03\xff\xff" + bytes(60_000)))
        else:
            yield bare.writer, _one_by_one(relays.frame(2, relays.GREETING[:11]))
    for _ in range(_SLOW_SOCKETS - viewers):
        _, writer = await asyncio.open_connection("127.0.0.1", session.port)
        yield writer, _one_by_one(relays.upgrade(_PATH, _as("slow"))[:-2] + b"X-More: " + bytes(60_000))


def _one_by_one(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]
    while True:
        yield b""


@asynccontextmanager
async def _looking_on(session: Session) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The owner's window, and what fails unless it still has a picture when it asks for one."""
    owner = await relays.open_websocket(session.port, _PATH, headers=_as("alice"))
    await owner.greet()
    shown = asyncio.Event()

    async def look() -> None:
        while True:
            opcode, payload = await owner.frame(timeout_s=None)
            assert opcode in (2, 9), payload
            if opcode == 2:
                shown.set()
            else:
                owner.writer.write(relays.frame(10, payload))

    looking = asyncio.create_task(look())

    async def ask() -> None:
        assert session.probe() == 200
        shown.clear()
        owner.writer.write(relays.frame(2, rfb.update_request(incremental=False, width=8, height=8)))
        async with asyncio.timeout(20):
            await shown.wait()

    try:
        yield ask
    finally:
        looking.cancel()
        owner.writer.close()
