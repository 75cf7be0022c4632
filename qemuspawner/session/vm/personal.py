"""What makes a desktop its user's own: a copy of a saved VM is a different machine from its twins.

Most of it happens in the guest, in share/guest/personalise.sh. A session that wakes up again is the machine
that it was, by the marker that the script leaves in its memory, and gets nothing but its clock set.

The network card keeps its MAC address, which a saved VM brings along whatever QEMU is told, and with it the
address 10.0.2.15: each guest is alone with QEMU in a network of its own, where nobody else can have the same.
"""

import asyncio
import logging
import time

from qemuspawner.errors import VmError, printable
from qemuspawner.network import Network
from qemuspawner.paths import PERSONALISE_SCRIPT
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.qemu.command import NETWORK
from qemuspawner.session.inside.identity import make_environment, sudo_of
from qemuspawner.session.vm.guest import Guest
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text

log = logging.getLogger(__name__)

# A machine's own hooks get 20 s each, and the login 60 s twice; the script goes on without us after that.
_SCRIPT_TIMEOUT_S = 240
# A link that is back at once has never been away for the guest.
_LINK_DOWN_S = 0.1


async def personalise(guest: Guest, spec: SessionSpec) -> None:
    """Tell the guest by its agent whose it is.

    Raises:
        VmError: The agent does not answer, or what it was told to do failed.
    """
    if guest.agent is None:
        return
    link = asyncio.create_task(_renew_network(guest)) if _has_another_network(guest, spec) else None
    try:
        await _run_script(guest.agent, spec, way=guest.plan.way)
    finally:
        if link is not None:
            await link


def _has_another_network(guest: Guest, spec: SessionSpec) -> bool:
    """Whether what the guest was told of its network may be true no more: it may have a router now."""
    if not guest.plan.restores:
        return False
    before = guest.plan.saved.spec if guest.plan.saved is not None else None
    # A template is made without one. Asking for nothing new would cost each copy memory and time.
    network = Network() if before is None else before.network
    return bool(spec.branch) or spec.network != network


async def _run_script(agent: GuestAgent, spec: SessionSpec, *, way: str) -> None:
    try:
        code, output = await agent.run(
            "/bin/sh",
            "-s",
            stdin=PERSONALISE_SCRIPT.read_bytes(),
            env=make_environment(spec, way=way),
            timeout_s=_SCRIPT_TIMEOUT_S,
        )
    except VmError:
        # Windows has no such shell, and is what it is.
        if not await _is_windows(agent):
            raise
        await agent.execute("guest-set-time", time=time.time_ns())
        return
    if code:
        words = printable(output[-4000:].replace("\n", " | "))
        log.warning("%s: the machine says: %s", spec.session_id, words)
        raise VmError(
            Text("In the machine failed: {words}.", words=words.rstrip(" |").rpartition(" | ")[2][:200])
        )


def must_wait(spec: SessionSpec) -> bool:
    """Whether nobody may have the desktop before it is its user's.

    Their programs would be ended, or they could do what they must not.
    """
    return (spec.account is not None and spec.machine.login == "user") or sudo_of(spec) == "no"


async def _renew_network(guest: Guest) -> None:
    """Pull the cable and put it in again, so that the guest asks for its address anew."""
    await guest.qemu.execute("set_link", name=NETWORK, up=False)
    try:
        await asyncio.sleep(_LINK_DOWN_S)
    finally:
        await guest.qemu.execute("set_link", name=NETWORK, up=True)


async def _is_windows(agent: GuestAgent) -> bool:
    found = await agent.execute("guest-get-osinfo")
    return isinstance(found, dict) and found.get("id") == "mswindows"
