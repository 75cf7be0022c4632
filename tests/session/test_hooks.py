"""Programs of an image that a session runs, where they are; a guest agent that is not there answers."""

from typing import Any

import pytest
import vms

from qemuspawner.errors import VmError
from qemuspawner.qemu.agent import AgentRefusalError
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.hooks import NoHookError, run_hook


class FakeAgent:
    def __init__(self, answer: tuple[int, str] | VmError) -> None:
        self._answer = answer
        self.asked: list[tuple[tuple[str, ...], dict[str, str]]] = []

    async def run(self, *argv: str, env: dict[str, str], timeout_s: float) -> tuple[int, str]:
        self.asked.append((argv, env))
        if isinstance(self._answer, VmError):
            raise self._answer
        return self._answer


def guest_with(agent: Any) -> Guest:
    guest = Guest.__new__(Guest)
    guest.machine = vms.make_machine(image={"file": "/x", "format": "raw"})
    guest.agent = agent
    return guest


async def test_a_hook_is_told_printable_text_of_bounded_length() -> None:
    agent = FakeAgent((0, ""))

    await run_hook(guest_with(agent), "notify", {"TEXT": "a\0b\x1b[31m\n" + "x" * 1000})

    ((argv, env),) = agent.asked
    assert argv == ("/etc/qemuspawner/notify",)
    assert env["QEMUSPAWNER_TEXT"].startswith("a b [31m x")
    assert len(env["QEMUSPAWNER_TEXT"]) == 500


@pytest.mark.parametrize("agent", [None, FakeAgent(AgentRefusalError("no such file"))])
async def test_a_machine_without_the_hook_is_told_from_one_whose_hook_fails(agent: Any) -> None:
    with pytest.raises(NoHookError):
        await run_hook(guest_with(agent), "keyboard", {})


async def test_a_hook_that_fails_says_so_without_its_own_words() -> None:
    with pytest.raises(VmError, match="'/etc/qemuspawner/keyboard' failed with code 3") as failure:
        await run_hook(guest_with(FakeAgent((3, "<script>"))), "keyboard", {})

    assert not isinstance(failure.value, NoHookError)
    assert "script" not in failure.value.message
