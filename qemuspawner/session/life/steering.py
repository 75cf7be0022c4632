"""What people and programs have a running session do."""

import contextlib
import socket
from collections.abc import (
    AsyncIterator,
)
from typing import Literal, assert_never

from msgspec import structs

from qemuspawner.errors import SessionError, VmError
from qemuspawner.keyboards import KEYBOARDS
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.session.inside.remote_mounts import Login
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.sleeping import Saves
from qemuspawner.session.vm.hooks import NoHookError, run_hook
from qemuspawner.spec import (
    Act,
)
from qemuspawner.texts import Text

PowerAction = Literal["shutdown", "reset", "poweroff"]


class Steers(Saves):
    """Each raises a sentence where it cannot be done now."""

    def extend(self, seconds: int | None, *, by: str) -> None:
        """Move the end later. Raises SessionError where it cannot be."""
        self.clocks.extend(seconds)
        self.log.info("Extended by %s; %.0f s are left", by, self.clocks.deadline - self.clocks.now())

    def ask_extension(self, *, by: str, reason: str, seconds: int | None) -> None:
        """Ask the site's staff for more time than extending can gain."""
        self._extensions.ask(by=by, reason=reason, seconds=seconds or self.spec.lifetime_s)
        self.log.info("More time than the longest lifetime is asked for by %s", by)
        self._note_change()

    def answer_extension(self, *, by: str, granted_s: int, comment: str) -> None:
        """Grant so many seconds more, or refuse with 0. Raises SessionError where nobody waits for it."""
        self._extensions.answer(by=by, granted_s=granted_s, comment=comment)
        self.log.info("More time: %d s granted by %s", granted_s, by)
        self._note_change()

    def tell(self, text: str, *, by: str) -> None:
        """Show a message of the site's staff on every page, and in the guest at the next look."""
        self._notices.tell(text, by=by)
        self.log.info("A message of %s is shown", by)
        self._note_change()

    def describe(self, *, name: str, notes: str) -> None:
        """Give the desktop another name and other notes, also in what is saved of it from now on."""
        self.spec = structs.replace(self.spec, name=name, notes=notes)
        if self.keeper is not None:
            self.keeper.spec = structs.replace(self.keeper.spec, name=name, notes=notes)
        self._note_change()

    async def set_keyboard(self, name: str, *, by: str) -> None:
        """Have the guest take keys for those of this keyboard.

        Raises:
            SessionError: Its image does not know how.
            VmError: It does not run, or failed.
        """
        guest = self.running_guest()
        keyboard = KEYBOARDS[name]
        try:
            await run_hook(guest, "keyboard", {"LAYOUT": keyboard.layout, "VARIANT": keyboard.variant})
        except NoHookError as exc:
            raise SessionError(
                Text("The layout cannot be set from here: {message}", message=exc.message),
                hint=Text("Set it inside the desktop, in its own settings."),
            ) from exc
        guest.keyboard = name
        self.log.info("Keyboard layout %s, set by %s", name, by)
        self._note_change()

    async def power(self, action: PowerAction, *, by: str) -> None:
        """Press the machine's power switch. Raises VmError where it does not run."""
        qemu = self.running_guest().qemu
        self.log.info("Power: %s, asked for by %s", action, by)
        match action:
            case "shutdown":
                self.end(Ending(reason=Text("The desktop was shut down."), by=by))
            case "poweroff":
                self.end(Ending(reason=Text("The desktop was switched off."), by=by, graceful=False))
            case "reset":
                await qemu.reset()

    async def act(self, act: Act, *, by: str) -> None:
        """Do something about what is wrong with the desktop.

        Raises:
            QemuSpawnerError: It is of no help now, or fails.
        """
        qemu = self.running_guest().qemu
        self._troubles.check_act(act)
        self.log.info("Against the trouble: %s, asked for by %s", act, by)
        assert self._disk is not None
        match act:
            case "retry":
                self._disk.retry()
            case "extend":
                self._disk.extend()
            case "reset":
                await qemu.reset()
            case _:
                assert_never(act)

    async def connect_folder(self, name: str, login: Login | None, *, by: str) -> None:
        """Have the guest mount a folder of a server, with the account and password there or those of before.

        Raises:
            SessionError, VmError: It is not there now, and why.
        """
        self.log.info("The folder %s is to be connected, asked for by %s", name, by)
        await self.remote_folders.connect(self._folders_agent(), name, login)

    async def disconnect_folder(self, name: str, *, by: str) -> None:
        """Take a server's folder out of the guest, and forget the login.

        Raises:
            SessionError, VmError: It is in use, or there is none.
        """
        self.log.info("The folder %s is to be disconnected, asked for by %s", name, by)
        await self.remote_folders.disconnect(self._folders_agent(), name)

    def _folders_agent(self) -> GuestAgent:
        """Raises QemuSpawnerError where the desktop cannot be given folders, or not yet."""
        guest = self.running_guest()
        if guest.agent is None:
            machine = self.spec.machine.name
            raise SessionError(Text("'{machine}' has no guest agent, which mounts folders.", machine=machine))
        if self._state != "running":
            raise VmError(Text("The desktop is not ready yet."), hint=Text("Try again in a moment."))
        return guest.agent

    async def screenshot(self) -> bytes:
        """The screen as a PNG. Raises VmError where there is none."""
        return await self.running_guest().screenshot()

    async def connect_port(self, name: str) -> socket.socket:
        """A connection to the machine's port `name`; raises VmError where it cannot be reached."""
        return await self.running_guest().ports.connect(name)

    @contextlib.asynccontextmanager
    async def steady(self) -> AsyncIterator[None]:
        """The VM runs, and is not paused to be saved meanwhile: QEMU would drop what is typed.

        Raises:
            VmError: It does not run.
        """
        self.running_guest()
        assert self.keeper is not None
        async with self.keeper.lock:
            self.running_guest()
            yield
