"""What stays of a session: the suspended VM and its checkpoints, written so that a crash loses nothing.

A folder below `saved/` counts once its manifest is there: that is written last, and what it replaces is
deleted after that.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msgspec import structs

from qemuspawner.errors import QemuSpawnerError, SessionError, VmError
from qemuspawner.paths import SavedPaths, SessionPaths, StatePaths
from qemuspawner.qemu.host import DISK_RESERVE_MIB
from qemuspawner.qemu.image import merge_layer
from qemuspawner.qemu.saving import collect_disks, digest_file, size_only, sync_file
from qemuspawner.qemu.tpm import STATE_FILE
from qemuspawner.qemu.vm import DRIVERS, Disk
from qemuspawner.saved import (
    Fingerprint,
    FirstSteps,
    Saved,
    delete_saved,
    disk_usage,
    find_suspended,
    list_saved,
    load_saved,
    used_mib,
    write_manifest,
)
from qemuspawner.session.vm.guest import Guest
from qemuspawner.session.vm.prepare import Prepared
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

# Each suspend adds a layer to the disk; a chain of more is made shorter.
_MAX_LAYERS = 4
# Each checkpoint adds one while the session runs; QEMU's argument about a disk may have 128 KiB.
_MOST_LAYERS = 64

Kind = Literal["suspended", "checkpoint"]


@dataclass(kw_only=True)
class Keeper:
    """The saved VMs of one session."""

    spec: SessionSpec
    paths: SessionPaths
    fingerprint: Fingerprint
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while anything is saved

    @classmethod
    def of(cls, prepared: Prepared) -> "Keeper":
        return cls(spec=prepared.spec, paths=prepared.paths, fingerprint=prepared.fingerprint)

    # Looking

    def checkpoints(self) -> list[Saved]:
        """The newest first."""
        return [saved for saved in list_saved(self.paths.saved) if saved.kind == "checkpoint"]

    def find(self, name: str) -> Saved:
        """The checkpoint of this name.

        Raises:
            SessionError: There is none.
        """
        for saved in self.checkpoints():
            if saved.name == name:
                return saved
        raise SessionError(Text("There is no such checkpoint."), hint=Text("It was deleted, or has expired."))

    def picture(self, name: str) -> Path:
        return SavedPaths(root=self.paths.saved / self.find(name).name).picture

    def check_quota(self) -> None:
        """Raises SessionError where the user's saved VMs take all that they may."""
        if not self.spec.quota_mib:
            return
        used = used_mib(StatePaths.of(self.spec.state_dir), self.spec.user)
        if used >= self.spec.quota_mib:
            raise SessionError(
                Text(
                    "Your suspended desktops and checkpoints take {used}; {allowed} are allowed.",
                    used=render_mib(used),
                    allowed=render_mib(self.spec.quota_mib),
                ),
                hint=Text("Delete some of them first."),
            )

    # Saving; one at a time, which the caller sees to with `lock`

    async def suspend(self, guest: Guest) -> Saved:
        """Save the VM, which is paused then and must not go on: what is saved is what counts.

        Raises:
            VmError, OSError: It could not be saved, and goes on as before.
        """
        await asyncio.to_thread(self._check_room)
        await guest.sync()
        with self._draft() as draft:
            disks, first_steps = await self._pause_and_save(guest, draft)
            try:
                # QEMU has written everything, and writes no more. With its manifest, this counts.
                return await asyncio.to_thread(
                    self._finish, draft, "suspended", disks, first_steps=first_steps
                )
            except BaseException:
                await guest.go_on()
                raise

    async def save_checkpoint(self, guest: Guest, *, title: str, automatic: bool, needed: str = "") -> Saved:
        """Save the VM, which goes on. An automatic one may take the place of an older, but not of `needed`.

        Raises:
            SessionError: There are too many, or the user's quota is used up.
            VmError, ImageError, OSError: It could not be saved, and goes on as before.
        """
        await asyncio.to_thread(self._check_checkpoint, guest, automatic=automatic, needed=needed)
        await guest.sync()
        with self._draft() as draft:
            disks, first_steps = await self._pause_and_save(guest, draft, freeze=True)
            await guest.go_on()
            saved = await asyncio.to_thread(
                self._finish,
                draft,
                "checkpoint",
                disks,
                first_steps=first_steps,
                title=title,
                automatic=automatic,
            )
        await asyncio.to_thread(self._drop_automatic, needed=needed)
        return saved

    async def keep_disk(self, guest: Guest) -> Saved:
        """Keep the disk of a VM that has ended, where its memory could not be saved.

        Raises:
            VmError, OSError: Such as a full disk.
        """
        with self._draft() as draft:
            return await asyncio.to_thread(
                self._finish,
                draft,
                "suspended",
                guest.disks,
                first_steps=guest.first_steps,
                memory="lost",
            )

    async def _pause_and_save(
        self, guest: Guest, draft: SavedPaths, *, freeze: bool = False
    ) -> tuple[Sequence[Path], FirstSteps | None]:
        """Pause the VM and write its state; its disks, and how far it was. Where that fails it goes on."""
        with contextlib.suppress(VmError):
            await guest.screenshot(draft.picture)
        try:
            await guest.pause()
            disks = await guest.freeze_disk() if freeze else guest.disks
            await guest.qemu.save(draft.state, mapped=False)
            return disks, guest.first_steps
        except BaseException:
            with contextlib.suppress(VmError):
                await guest.go_on()
            raise

    def _check_room(self) -> None:
        """Raise VmError where the host's disk might become full: that would pause everybody's machines."""
        status = os.statvfs(self.paths.root)
        free_mib = status.f_bavail * status.f_frsize >> 20
        needed_mib = self.spec.memory_mib + DISK_RESERVE_MIB
        if free_mib < needed_mib:
            raise VmError(
                Text(
                    "Saving the desktop may need {needed}; the host's disk has {free} left.",
                    needed=render_mib(needed_mib),
                    free=render_mib(free_mib),
                ),
                hint=Text("Tell the administrator; the desktop goes on."),
            )

    def _check_checkpoint(self, guest: Guest, *, automatic: bool, needed: str) -> None:
        self.check_quota()
        self._check_room()
        kept = self.checkpoints()
        spare = [saved for saved in kept if automatic and saved.automatic and saved.name != needed]
        if len(kept) - len(spare) >= self.spec.max_checkpoints:
            raise SessionError(
                Text(
                    "This desktop has {count} checkpoints; {max_checkpoints} are allowed.",
                    count=len(kept),
                    max_checkpoints=self.spec.max_checkpoints,
                ),
                hint=Text("Delete one that you do not need any more."),
            )
        if len(guest.disks) >= _MOST_LAYERS:
            raise SessionError(
                Text(
                    "This desktop's disk has {count} layers, one for each checkpoint.", count=len(guest.disks)
                ),
                hint=Text("Delete checkpoints that you do not need, then suspend the desktop and wake it."),
            )

    @contextlib.contextmanager
    def _draft(self) -> Iterator[SavedPaths]:
        """A new folder; deleted where it does not get its manifest."""
        root = self.paths.saved / f"{time.time_ns() // 1_000_000:x}"
        root.mkdir(mode=0o700, parents=True)
        try:
            yield SavedPaths(root=root)
        except BaseException:
            delete_saved(root)
            raise

    def _finish(
        self,
        draft: SavedPaths,
        kind: Kind,
        disks: Sequence[Path],
        *,
        first_steps: FirstSteps | None,
        title: str = "",
        automatic: bool = False,
        memory: Literal["streamed", "lost"] = "streamed",
    ) -> Saved:
        files = collect_disks(
            draft,
            disks,
            self.paths.firmware_vars,
            self.paths.tpm / STATE_FILE,
            is_cut_off=memory == "lost",
        )
        if memory != "lost":
            sync_file(draft.state)
            files[draft.state.name] = digest_file(draft.state)
        now = time.time()
        saved = Saved(
            kind=kind,
            name=draft.root.name,
            title=title,
            automatic=automatic,
            saved_at=now,
            expires=now + self.spec.keep_s if self.spec.keep_s else 0,
            fingerprint=self.fingerprint,
            memory=memory,
            layers=len(disks),
            files=files,
            size_bytes=disk_usage(draft.root),
            machine_id=self.spec.machine.id,
            spec=structs.replace(self.spec, sleeping="wake", branch=""),
            first_steps=first_steps,
        )
        write_manifest(draft.root, saved)
        return saved

    # Forgetting

    def _drop_automatic(self, *, needed: str) -> None:
        """Delete the oldest automatic checkpoints beyond what is allowed."""
        kept = self.checkpoints()
        spare = [saved for saved in kept if saved.automatic and saved.name != needed]
        for _ in range(len(kept) - self.spec.max_checkpoints):
            if spare:
                delete_saved(self.paths.saved / spare.pop().name)

    def delete(self, name: str) -> None:
        """Raises SessionError where there is no such checkpoint."""
        delete_saved(self.paths.saved / self.find(name).name)

    def forget_suspended(self) -> None:
        """The desktop was ended for good: what it was woken from is of no use."""
        while (saved := find_suspended(self.paths)) is not None:
            delete_saved(self.paths.saved / saved.name)

    def tidy(self, newest: Saved) -> None:
        """Give back the room of what the newest replaces; nothing runs on it any more."""
        with contextlib.suppress(OSError):
            for path in (*self.paths.vm.glob("disk-*"), *self.paths.layers.glob("*")):
                path.unlink()
            for saved in list_saved(self.paths.saved):
                if saved.kind == "suspended" and saved.name != newest.name:
                    delete_saved(self.paths.saved / saved.name)
            self._shorten(newest)

    def renew(self, folder: Path) -> None:
        """It was woken: whatever was wrong is right again, and until the next sleep it does not expire."""
        saved = load_saved(folder)
        if saved is not None and saved.kind != "template":
            with contextlib.suppress(OSError):
                write_manifest(folder, structs.replace(saved, expires=self._expires(), problem=""))

    def _expires(self) -> float:
        longest_s = max(self.spec.lifetime_s, self.spec.max_lifetime_s)
        return time.time() + self.spec.keep_s + longest_s if self.spec.keep_s else 0

    def _shorten(self, saved: Saved) -> None:
        """Merge the newest layers of a long chain, as far as no checkpoint needs them apart."""
        folder = SavedPaths(root=self.paths.saved / saved.name)
        with contextlib.suppress(QemuSpawnerError, OSError):
            while saved.layers > _MAX_LAYERS:
                upper, lower = folder.layer(saved.layers - 1), folder.layer(saved.layers - 2)
                if max(upper.stat().st_nlink, lower.stat().st_nlink) > 1:
                    return
                files = {name: file for name, file in saved.files.items() if name != lower.name}
                # Its size changes from here on, and what it holds, read through the upper one, does not.
                write_manifest(folder.root, structs.replace(saved, files=files))
                merge_layer(self._disk(folder, saved.layers))
                sync_file(lower)
                files = {name: file for name, file in files.items() if name != upper.name}
                files[lower.name] = size_only(lower)
                saved = structs.replace(saved, layers=saved.layers - 1, files=files)
                write_manifest(folder.root, saved)
                upper.unlink()

    def _disk(self, folder: SavedPaths, layers: int) -> Disk:
        """The saved disk with its newest layer as what is written to."""
        image = self.spec.machine.image
        return Disk(
            id="disk0",
            path=folder.layer(layers - 1),
            driver="qcow2",
            layers=tuple(folder.layer(depth) for depth in range(layers - 1)),
            backing=None if image.format == "iso" else Path(image.file),
            backing_driver=DRIVERS[image.format],
        )


def note_problem(folder: Path, why: str) -> None:
    """Remember that it could not be woken, for the pages that offer it."""
    saved = load_saved(folder)
    if saved is not None and saved.kind != "template":
        with contextlib.suppress(OSError):
            write_manifest(folder, structs.replace(saved, problem=str(why)))
