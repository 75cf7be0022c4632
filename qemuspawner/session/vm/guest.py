"""A session's VM while it runs: QEMU, the guest agent, the clipboard and the disk it writes to."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.machine import Machine
from qemuspawner.paths import SessionPaths
from qemuspawner.qemu.agent import GuestAgent
from qemuspawner.qemu.command import SEED
from qemuspawner.qemu.image import create_layer
from qemuspawner.qemu.passing import function_args
from qemuspawner.qemu.plugging import remove_device
from qemuspawner.qemu.process import Log, QemuProcess
from qemuspawner.qemu.saving import check_state
from qemuspawner.qemu.vnc import wait_for_display
from qemuspawner.qemu.walls import check_walls
from qemuspawner.saved import FirstSteps
from qemuspawner.session.inside.folders import GuestFolders
from qemuspawner.session.screen.desktop import set_size
from qemuspawner.session.vm.ports import Ports
from qemuspawner.session.vm.prepare import Started
from qemuspawner.spec import Wall
from qemuspawner.texts import Text

_QMP_TIMEOUT_S = 20
_DISPLAY_TIMEOUT_S = 20
_AGENT_SEND_S = 2
_SYNC_S = 5
_HOLD_S = 5
_GO_ON_S = 10
_GO_ON_PAUSE_S = 0.5


class Guest:
    """One VM from its start to its end."""

    def __init__(self, started: Started, paths: SessionPaths, machine: Machine, *, log: Log) -> None:
        self.plan = started.plan
        self.qemu = QemuProcess(started.process, paths, log=log)
        self.agent = GuestAgent(paths.agent_socket) if machine.agent else None
        self.ports = Ports(self.qemu, {name: tool.port for name, tool in machine.web_tools.items()})
        self.walls: tuple[Wall, ...] = ()  # seen around QEMU before it ran
        self.file_limit_mib = started.file_limit_mib
        self._jail = started.jail
        self.has_gpu = bool(started.vm.gpus)
        self._late_gpus = started.vm.gpus if started.vm.late_gpus else ()
        self.folders = GuestFolders(started.folders, started.vm, self.qemu, paths, log=log)
        self._state = started.state
        self._paths = paths
        self.machine = machine
        self.keyboard = ""  # the layout that it was told, by its name here
        # What was done in it of what is done once; None where nobody knows, so that nothing is done again.
        self.look_once_more: Callable[[], Awaitable[None]] = (
            _look_at_nothing  # when it is paused, at what would else be lost
        )
        self.has_seed = started.vm.seed is not None  # it was not told yet whose it is
        kept = None if self.plan.is_new else self.plan.saved
        self.first_steps = FirstSteps() if kept is None else kept.first_steps
        # A machine that only has a disc has no disk of its own.
        self._disk = next((disk for disk in started.vm.disks if not disk.cdrom), None)

    @property
    def disks(self) -> Sequence[Path]:
        """Every qcow2 above the base image, the one that is written to last."""
        return () if self._disk is None else (*self._disk.layers, self._disk.path)

    async def connect(self) -> None:
        """Wait for QEMU, and let the guest run; raises VmError where it cannot."""
        await self.qemu.connect(timeout_s=_QMP_TIMEOUT_S)
        self.walls = check_walls(self.qemu.pid, jail=self._jail)
        self.limit_files(self.file_limit_mib)
        if self.plan.restores:
            await self._restore()
            # Before it goes on: where one cannot be plugged in, nothing is lost by another way to start.
            for device in function_args(self._late_gpus):
                await self.qemu.plug(device)
        await self.qemu.execute("cont")
        await self._connect_clipboard(connected=True)

    def limit_files(self, mib: int) -> None:
        """Let the disk's file become so large; raises VmError where QEMU has ended."""
        self.qemu.limit_files(mib)
        self.file_limit_mib = mib

    async def _restore(self) -> None:
        saved, folder = self.plan.saved, self.plan.folder
        if saved is None or folder is None or self._state is None:
            raise AssertionError("What is restored was saved.")
        # Both read the same file; whoever comes first brings it into the page cache.
        intact = asyncio.create_task(asyncio.to_thread(check_state, folder, saved))
        try:
            await self.qemu.restore(self._state, mapped=saved.memory == "mapped")
        finally:
            await intact

    async def wait_for_display(self) -> None:
        """Raises VmError where there is none."""
        await wait_for_display(self._paths.vnc_socket, timeout_s=_DISPLAY_TIMEOUT_S)

    async def set_size(self, *, width: int, height: int) -> None:
        """Give the screen a size in pixels. Raises VmError where it does not take it."""
        await set_size(self._paths.vnc_socket, width=width, height=height)

    async def _connect_clipboard(self, *, connected: bool) -> None:
        if self.machine.clipboard:
            await self.qemu.connect_clipboard(connected=connected)

    async def take_seed(self) -> None:
        """Take out what cloud-init was told by; harmless when done. Raises VmError where that fails."""
        if self.has_seed:
            try:
                await remove_device(self.qemu, SEED)
            except TimeoutError as exc:
                raise VmError(Text("The machine did not give its seed back.")) from exc
            await self.qemu.execute("blockdev-del", **{"node-name": SEED})
            self.has_seed = False
            self._paths.seed.unlink(missing_ok=True)

    # Saving

    async def sync(self) -> None:
        """Ask the guest to write what it holds to its disk, so that this alone is worth having."""
        if self.agent is not None:
            with contextlib.suppress(VmError, TimeoutError):
                async with asyncio.timeout(_SYNC_S):
                    await self.agent.run("/bin/sync", timeout_s=_SYNC_S)

    async def pause(self) -> None:
        """Stop the guest, in a state that can be saved.

        Raises:
            VmError: It cannot be now.
        """
        if self.has_seed:
            raise VmError(
                Text("The machine is being set up by its first boot."), hint=Text("Try again in a moment.")
            )
        await self._connect_clipboard(connected=False)
        if self.agent is not None:
            await self.agent.hold(timeout_s=_HOLD_S)
        await self.qemu.execute("stop")
        await self.look_once_more()

    async def go_on(self) -> None:
        """Let a paused guest run again; raises VmError where it does not, though asked for seconds."""
        try:
            await self._continue()
        finally:
            if self.agent is not None:
                self.agent.let_go()
        await self._connect_clipboard(connected=True)

    async def _continue(self) -> None:
        until = time.monotonic() + _GO_ON_S
        while True:
            try:
                await self.qemu.execute("cont")
                return
            except VmError:
                # QEMU may still be busy with what it was asked for before.
                if time.monotonic() > until or not self.qemu.running:
                    raise
                await asyncio.sleep(_GO_ON_PAUSE_S)

    async def freeze_disk(self) -> Sequence[Path]:
        """Write to a new overlay from now on; the disks that stay as they are.

        Raises:
            VmError, ImageError: It goes on writing where it did.
        """
        if self._disk is None:
            return ()
        frozen = self._disk.path
        overlay = self._paths.overlay(len(self._disk.layers) + 1)
        # Made where QEMU cannot put anything else in its place meanwhile.
        draft = self._paths.root / overlay.name
        draft.unlink(missing_ok=True)
        await asyncio.to_thread(create_layer, draft, frozen)
        draft.replace(overlay)
        await self.qemu.freeze_disk(self._disk, overlay)
        self._disk = replace(self._disk, path=overlay, layers=(*self._disk.layers, frozen))
        return self._disk.layers

    async def screenshot(self, target: Path | None = None) -> bytes:
        """The screen as a PNG, also written to `target`. Raises VmError where there is none."""
        picture = await self.qemu.screenshot()
        if target is not None:
            try:
                await asyncio.to_thread(target.write_bytes, picture)
            except OSError as exc:
                raise VmError(
                    Text("The screen could not be saved."), hint=Text("Is the host's disk full?")
                ) from exc
        return picture

    # The end

    async def shut_down(self) -> None:
        """Ask the guest, and wait: press the power button, and tell its agent where it has one."""
        with contextlib.suppress(VmError, TimeoutError):
            async with asyncio.timeout(self.machine.shutdown):
                await self.qemu.execute("system_powerdown")
                if self.agent is not None:
                    with contextlib.suppress(VmError, TimeoutError):
                        async with asyncio.timeout(_AGENT_SEND_S):
                            await self.agent.send("guest-shutdown", mode="powerdown")
                await self.qemu.wait()

    async def stop(self) -> None:
        """End QEMU now; harmless when it has ended."""
        self.ports.close()
        self.folders.close()
        await self.qemu.stop()
        if self.agent is not None:
            # Whoever waits for it is told that nobody answers.
            self.agent.let_go()
            self.agent.close()


async def _look_at_nothing() -> None:
    """Where nothing is told."""
