"""What a session does about hosts that have its directory too: it stands still, goes on, or gives way."""

import asyncio

from qemuspawner.session.host.holding import Holding
from qemuspawner.session.host.salvage import note_left
from qemuspawner.session.life.life import Ending
from qemuspawner.session.life.steering import Steers
from qemuspawner.texts import Text


class GivesWay(Steers):
    """Part of `Supervisor`: it runs only as long as the directory is its own."""

    def _heed(self, holding: Holding) -> None:
        """Stand still while the storage is away, and end where another host wants or has the directory."""
        loop = asyncio.get_running_loop()

        def freeze() -> None:
            if self._guest is not None:
                self._guest.qemu.freeze()

        def thaw() -> None:
            if self._guest is not None:
                self._guest.qemu.thaw()

        def tell() -> None:
            loop.call_soon_threadsafe(self._note_hold, holding)

        holding.heed(freeze=freeze, thaw=thaw, tell=tell)

    def _note_hold(self, holding: Holding) -> None:
        match holding.hold:
            case "lapsed":
                self._troubles.note(
                    "no-storage",
                    Text("The desktop's storage does not answer, so the desktop stands still."),
                    Text("It goes on by itself when the storage is back."),
                )
            case "lost":
                self._is_lost = True
                # Whatever else it was to end for: nothing may be kept of it any more.
                self._ending = Ending(
                    reason=Text("The desktop was started anew on another host."),
                    graceful=False,
                    for_good=False,
                )
                self._interrupted.set()
                self._note_change()
            case "held":
                self._troubles.clear("no-storage")
                self._note_change()
                if holding.is_wanted:
                    self.end(
                        Ending(
                            reason=Text("The desktop is started anew on another host."),
                            cause="stop",
                            for_good=False,
                        )
                    )

    async def _note_left(self) -> None:
        """Have the disk kept should this host be lost, where desktops are kept at all."""
        prepared, keeper = self._prepared, self.keeper
        if prepared is None or prepared.host.holding is None or keeper is None or not self.spec.suspend_on:
            return
        try:
            await asyncio.to_thread(note_left, keeper.paths, keeper.spec, keeper.fingerprint)
        except OSError as exc:
            self.log.warning("Its disk will not be kept if this host is lost: %s", exc)

    async def _settle(self, holding: Holding) -> None:
        """Wait until it is known whose the directory is, which only the storage can say."""
        while holding.hold == "lapsed":
            await self.changed.wait()
