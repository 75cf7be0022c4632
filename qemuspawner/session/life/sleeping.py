"""What a session saves of its VM: asleep, at checkpoints, and what is left at an end."""

import asyncio

from msgspec import structs

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.machines.templates import find_suspend_obstacle
from qemuspawner.saved import Saved
from qemuspawner.session.life.life import Ending, Life
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import Plan, choose
from qemuspawner.spec import SuspendOn
from qemuspawner.texts import Text


class Saves(Life):
    """Saves the VM, which has no folder of the host or of a server in it meanwhile."""

    # Folders of the host and of servers

    async def _attach_folders(self, guest: Guest, *, is_anew: bool = False) -> None:
        """Bring the folders into a guest that has come up, and say what became of each of the host's.

        `is_anew`: it has booted once more.
        """
        self.remote_folders.forget()
        assert self.keeper is not None
        # Not while it is saved, which is without them.
        async with self.keeper.lock:
            if self._guest is guest and self._state == "running":
                await self._attach(guest, is_anew=is_anew)
                for text, level in guest.folders.describe():
                    self.report(text, level=level)

    async def _attach(self, guest: Guest, *, is_anew: bool = False) -> None:
        if guest.agent is not None:
            self.remote_folders.resume(guest.agent)
            if guest.folders.statuses:
                if is_anew:
                    await guest.folders.attach_anew(guest.agent)
                else:
                    await guest.folders.attach(guest.agent)
                self._note_change()

    async def _detach(self, guest: Guest, *, ends_programs: bool = False) -> None:
        """Raises VmError where a folder is in use, so that the VM cannot be saved."""
        if guest.agent is not None:
            await self.remote_folders.release(guest.agent, ends_programs=ends_programs)
            await guest.folders.detach(guest.agent, ends_programs=ends_programs)

    # Asleep, and checkpoints

    def _ready_guest(self) -> Guest:
        """One that is past its boot; raises VmError, also where it can never be saved."""
        guest = self.running_guest()
        if self._state != "running":
            raise VmError(Text("The desktop is not ready yet."), hint=Text("Try again in a moment."))
        if obstacle := find_suspend_obstacle(self.spec):
            raise VmError(obstacle)
        return guest

    async def suspend(self, *, by: str) -> None:
        """Put the desktop to sleep; where that fails it goes on.

        Raises:
            QemuSpawnerError: Why it cannot be.
        """
        guest = self._ready_guest()
        try:
            reason = Text("{name} has put the desktop to sleep.", name=by)
            await self._work(self._suspend(guest, reason, by=by))
        except OSError as exc:
            raise _not_saved(exc) from exc

    async def _suspend(
        self, guest: Guest, reason: str, *, by: str = "", cause: SuspendOn | None = None
    ) -> None:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            self._set_state("suspending")
            try:
                await self._usage.look_again(guest)
                await self._detach(guest)
                saved = await self.keeper.suspend(guest)
            except BaseException:
                self._set_state("running")
                if guest.qemu.running:
                    await self._attach(guest)
                else:
                    self._note_exit(guest.qemu, await guest.qemu.wait())
                raise
            self._message = Text("{reason} Start it again to go on where you were.", reason=reason)
            await self.dismiss_viewers(self._message)
            await guest.stop()
            self._set_state("suspended")
            self.end(Ending(reason=self._message, by=by, graceful=False, cause=cause))
            await asyncio.to_thread(self.keeper.tidy, saved)

    def _check_still(self, guest: Guest) -> None:
        """Raise VmError where, while we waited for our turn, something else has begun with this VM."""
        if self._guest is not guest or self._state != "running":
            raise VmError(Text("The desktop is being suspended, stopped or taken back already."))

    async def save_checkpoint(self, *, title: str, by: str) -> Saved:
        """Remember the desktop as it is now. Raises QemuSpawnerError where it cannot be saved."""
        guest = self._ready_guest()
        self.log.info("A checkpoint, asked for by %s", by)
        return await self._work(self._save_checkpoint(guest, title=title, automatic=False))

    async def _save_checkpoint(self, guest: Guest, *, title: str, automatic: bool) -> Saved:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            return await self._save(guest, title=title, automatic=automatic)

    async def _save(self, guest: Guest, *, title: str, automatic: bool, needed: str = "") -> Saved:
        assert self.keeper is not None
        try:
            await self._detach(guest)
            saved = await self.keeper.save_checkpoint(guest, title=title, automatic=automatic, needed=needed)
        except OSError as exc:
            raise _not_saved(exc) from exc
        finally:
            if guest.qemu.running:
                await self._attach(guest)
        self.log.info("Checkpoint %s was saved", saved.name)
        self._note_change()
        return saved

    async def go_back(self, name: str, *, by: str) -> None:
        """Go on from a checkpoint; the desktop as it is now becomes one itself, so that nothing is lost.

        Raises:
            QemuSpawnerError: The checkpoint cannot be restored; the desktop goes on.
        """
        guest = self._ready_guest()
        self.log.info("Back to checkpoint %s, asked for by %s", name, by)
        await self._work(self._go_back(guest, name))

    async def _go_back(self, guest: Guest, name: str) -> None:
        assert self.keeper is not None
        async with self.keeper.lock:
            self._check_still(guest)
            if self.keeper.find(name).fingerprint != self.keeper.fingerprint:
                raise SessionError(
                    Text("This checkpoint is of another size or another image than the desktop has now."),
                    hint=Text(
                        "Put the desktop to sleep, then start it from the checkpoint on the hub's page."
                    ),
                )
            plan = await self._plan_of(name)
            present = await self._save(guest, title="Before going back", automatic=True, needed=name)
            self._way_back = await self._plan_of(present.name)
            # From here on nothing else begins with this VM.
            self._set_state("booting")
            self._next = plan
            self._interrupted.set()

    async def _plan_of(self, name: str) -> Plan:
        assert self._prepared is not None
        spec = structs.replace(self.spec, sleeping=name, branch="")
        _, plan = await asyncio.to_thread(choose, spec, self._prepared.paths, self._prepared.host)
        return plan

    # At the end

    async def _suspend_at_end(self, guest: Guest) -> None:
        """The session must end now: keep what can be kept of it."""
        assert self.keeper is not None
        self._set_state("suspending")
        reason = Text(
            "{message} The desktop is asleep; start it again to go on where you were.", message=self._message
        )
        try:
            if why := find_suspend_obstacle(self.spec):
                raise VmError(why)
            # The alternative is the end of all programs.
            await self._detach(guest, ends_programs=True)
            saved = await self.keeper.suspend(guest)
            await self.dismiss_viewers(reason)
            await guest.stop()
        except (QemuSpawnerError, OSError) as exc:
            self.log.warning("The memory cannot be kept, only the disk: %s", exc)
            reason = Text(
                "{message} Its disk is kept, programs that were open are not.", message=self._message
            )
            await self.dismiss_viewers(reason)
            await guest.shut_down()
            await guest.stop()
            try:
                saved = await self.keeper.keep_disk(guest)
            except (VmError, OSError) as full:
                raise SessionError(
                    Text("{message} It could not be kept: {full}.", message=self._message, full=full),
                    hint=Text("Tell the administrator."),
                ) from full
        self._message = reason
        self._set_state("suspended")
        await asyncio.to_thread(self.keeper.tidy, saved)

    async def _keep_what_is_left(self) -> None:
        """After a failure: the disk is worth having where desktops are kept at all."""
        guest, keeper = self._guest, self.keeper
        if guest is None or keeper is None or not self.spec.suspend_on or not self._was_up or self._is_lost:
            return
        await guest.stop()
        try:
            saved = await keeper.keep_disk(guest)
        except (QemuSpawnerError, OSError):
            self.log.exception("The disk could not be kept")
            return
        self._hint = Text("Start it again from its disk: files are kept, programs that were open are lost.")
        await asyncio.to_thread(keeper.tidy, saved)


def _not_saved(exc: OSError) -> VmError:
    return VmError(
        Text("The desktop could not be saved: {strerror}.", strerror=exc.strerror),
        hint=Text("It goes on; nothing else has happened."),
    )
