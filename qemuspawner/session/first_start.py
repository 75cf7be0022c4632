"""A script of its user's own that runs once in a new desktop."""

from qemuspawner.errors import VmError, printable
from qemuspawner.paths import START_SCRIPT
from qemuspawner.qemu.agent import ENVIRONMENT, GuestAgent
from qemuspawner.session.prepare import Plan

# It may install programs.
_TIMEOUT_S = 900
_MAX_WORDS = 300


def is_new(plan: Plan) -> bool:
    """Whether a VM is a new desktop, rather than one that goes on from something that was kept."""
    return plan.saved is None or plan.saved.kind == "template"


async def run_script(agent: GuestAgent, script: str) -> str:
    """Run a script in the guest as root; the end of what it wrote, in one line.

    Raises:
        VmError: It failed, could not be run, or did not end within 15 minutes.
    """
    code, output = await agent.run(
        *("/bin/sh", "-c", START_SCRIPT.read_text()),
        stdin=script.encode(),
        env=ENVIRONMENT,
        timeout_s=_TIMEOUT_S,
    )
    words = " ".join(printable(output).split())[-_MAX_WORDS:]
    if code:
        raise VmError(f"it ended with code {code}: {words or 'it said nothing'}")
    return words
