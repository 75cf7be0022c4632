"""Programs that an image may have in /etc/qemuspawner for what only it knows how to do."""

from collections.abc import Mapping

from qemuspawner.errors import VmError, printable
from qemuspawner.qemu.agent import ENVIRONMENT, AgentRefusalError
from qemuspawner.session.vm.guest import Guest
from qemuspawner.texts import Text

_FOLDER = "/etc/qemuspawner"
_TIMEOUT_S = 20
_MAX_TEXT = 500


class NoHookError(VmError):
    """The image has no such program, or no agent that could run it."""


async def run_hook(guest: Guest, name: str, values: Mapping[str, str]) -> None:
    """Run the hook `name` as root; of its environment are `values`, bounded, each as QEMUSPAWNER_<KEY>.

    Raises:
        NoHookError: The image has none.
        VmError: It failed, or did not end within 20 s.
    """
    if guest.agent is None:
        raise NoHookError(Text("This machine has no guest agent."))
    told = {f"QEMUSPAWNER_{key}": printable(value)[:_MAX_TEXT] for key, value in values.items()}
    try:
        code, _ = await guest.agent.run(f"{_FOLDER}/{name}", env=ENVIRONMENT | told, timeout_s=_TIMEOUT_S)
    except AgentRefusalError as exc:
        raise NoHookError(
            Text("This machine has no program '{folder}/{name}'.", folder=_FOLDER, name=name)
        ) from exc
    if code:
        raise VmError(
            Text(
                "The machine's program '{folder}/{name}' failed with code {code}.",
                folder=_FOLDER,
                name=name,
                code=code,
            )
        )
