"""Routes of the hub's REST API for images that users take home: of their sleeping desktops, and of machines.

The command `qemuspawner` packs the image, one at a time with others that the hub has made; the hub only reads
the file that comes of it. A download that broke off goes on where it was, by HTTP's ranges.
"""

import asyncio
import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from tornado import web
from tornado.iostream import StreamClosedError

from qemuspawner.audit_log import append_line
from qemuspawner.errors import CatalogueError
from qemuspawner.hub.catalogue.machines_api import MachineHandler
from qemuspawner.hub.desktops.kept import Kept, list_kept, load_kept
from qemuspawner.hub.languages import http_error
from qemuspawner.machine import Machine
from qemuspawner.machines.downloads import Packed, check_allowed, find_desktop_file, find_file, machine_file
from qemuspawner.paths import StatePaths, session_id
from qemuspawner.texts import Text

_PIECE_BYTES = 1 << 20
# A browser that takes nothing for so long is gone.
_SILENCE_S = 120
# Of one user at the same time; programs that fetch a file in parts use some.
_MOST_AT_ONCE = 4
_PLAIN = re.compile(r"[^A-Za-z0-9._-]", re.ASCII)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is taken home."""

    job: str  # the name of the job that packs it
    name: str  # of the file for people
    machine: str  # its id
    packed: Packed | None
    command: list[str] | None  # what packs it; None: it cannot be now
    session: str = ""
    server: str = ""


class _TakeHomeHandler(MachineHandler):
    async def find(self, user: Any, which: str) -> _Source:
        """Raises HTTPError, also where the machine does not allow it."""
        raise NotImplementedError

    async def check_others(self, user: Any) -> None:
        """Raises HTTPError 409 where another image keeps this one from being packed."""

    def find_self(self, user_name: str) -> Any:
        """The user who sent this request: nobody else takes a disk home, whoever may open the desktop."""
        person, user = self.current_user, self.find_user(user_name)
        if user is None or isinstance(person, orm.Service) or person.name != user.name:
            raise http_error(self.request, 403, Text("Only its owner may take an image home."))
        if not hasattr(user.spawner, "desktop_cards"):
            raise web.HTTPError(404)
        return user

    @property
    def state(self) -> StatePaths:
        return StatePaths.of(self.spawner.state_dir)

    def check_machine(self, machine: Machine | None) -> None:
        with self.refusing():
            check_allowed(machine)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        try:
            yield
        except CatalogueError as exc:
            self.refuse(exc)
            raise web.Finish from exc

    async def note(self, event: str, source: _Source, **facts: object) -> None:
        """A line of the audit log; one that cannot be written stops nobody."""
        by = self.current_user.name
        about = {"session": source.session, "owner": by, "server": source.server, "machine": source.machine}
        self.log.info("%s: %s of %s: %s", by, event, source.machine, facts)
        try:
            await asyncio.to_thread(append_line, self.state.audit, event, by=by, facts={**about, **facts})
        except OSError as exc:
            self.log.error("The audit log cannot be written: %s", exc.strerror)


class _OfDesktop(_TakeHomeHandler):
    async def find(self, user: Any, which: str) -> _Source:
        kept, packed = await asyncio.to_thread(self._look, user.name, which)
        asleep = kept.suspended
        if asleep is not None and packed is not None and packed.made < asleep.saved_at:
            packed = None  # of what slept before
        # What was packed may be taken while its desktop runs again.
        machine_id = asleep.machine_id if asleep is not None else packed.machine_id if packed else ""
        if not machine_id:
            text = Text("This desktop does not sleep. Suspend it, then download its image.")
            raise http_error(self.request, 409, text)
        self.check_machine(user.spawner._catalogue().machines.get(machine_id))
        command = None
        running = user.spawners.get(which)
        if asleep is not None and not (running is not None and running.active):
            desktop = f"{user.name}/{which}" if which else user.name
            command = [*self.spawner.host_command, "machines", "pack-desktop", "--json"]
            # A name may begin as an option does.
            command += ["--saved", asleep.name, "--", desktop]
        return _Source(
            job=_job_of(user.name, which),
            # Servers of older hubs have names with anything in them.
            name=f"{_PLAIN.sub('_', which) or machine_id}.qcow2",
            machine=machine_id,
            packed=packed,
            command=command,
            session=session_id(user.name, which),
            server=which,
        )

    async def check_others(self, user: Any) -> None:
        kept = await asyncio.to_thread(list_kept, self.state, user.name)
        if any(self.jobs.is_active(_job_of(user.name, one.server_name)) for one in kept):
            text = Text("An image of one of your desktops is being packed already.")
            raise http_error(self.request, 409, text)

    def _look(self, user: str, server: str) -> tuple[Kept, Packed | None]:
        kept = load_kept(self.state, user=user, server_name=server)
        return kept, find_desktop_file(self.state, user=user, server=server)


class _OfMachine(_TakeHomeHandler):
    async def find(self, user: Any, which: str) -> _Source:
        machine = user.spawner._my_machines(user.spawner._catalogue()).get(which)
        if machine is None:
            # The same answer for what they may not start: they may not learn of it.
            raise http_error(self.request, 404, Text("There is no machine '{machine}'.", machine=which))
        self.check_machine(machine)
        with self.refusing():
            path = machine_file(self.state, machine)
        return _Source(
            job=f"pack/machine/{machine.id}",
            name=f"{machine.id}.qcow2",
            machine=machine.id,
            packed=find_file(path),
            command=[*self.spawner.host_command, "machines", "pack", "--json", "--", machine.id],
        )


class _ImageHandler(_TakeHomeHandler):
    """An image to be packed, and how far that is."""

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, which: str) -> None:
        user = self.find_self(user_name)
        self._answer(await self.find(user, which))

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, which: str) -> None:
        """Have it packed: a job. What was packed of another desktop of the user's goes."""
        user = self.find_self(user_name)
        source = await self.find(user, which)
        if source.command is None:
            text = Text("This desktop does not sleep. Suspend it, then download its image.")
            raise http_error(self.request, 409, text)
        if not self.jobs.is_active(source.job):
            await self.check_others(user)
            with self.refusing():
                self.jobs.start(source.job, source.command, what="pack", by=user.name)
            await self.note("pack-image", source)
        self.set_status(202)
        self._answer(source)

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, which: str) -> None:
        """Cancel what the user has begun, and delete what was packed of a desktop."""
        user = self.find_self(user_name)
        source = await self.find(user, which)
        job = self.jobs.find(source.job)
        if job is not None and job.by == user.name:
            await self.jobs.cancel(source.job)
            self.jobs.forget(source.job)
            # It may have been done just before.
            source = await self.find(user, which)
        # That of a machine is for all its users.
        if source.session and source.packed is not None:
            packed = source.packed.path
            await asyncio.to_thread(packed.unlink, missing_ok=True)
        self.set_status(204)

    def _answer(self, source: _Source) -> None:
        job, packed = self.jobs.find(source.job), source.packed
        is_shown = job is not None and (job.is_active or (job.state == "failed" and packed is None))
        about = packed and {
            "name": source.name,
            "size_bytes": packed.size_bytes,
            "left_s": round(packed.left_s),
        }
        self.write(json.dumps({"job": self.describe_job(source.job) if is_shown else None, "file": about}))


class _FileHandler(_TakeHomeHandler):
    """The packed image: all of it, or from somewhere on."""

    _under_way: ClassVar[Counter[str]] = Counter()

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def head(self, user_name: str, which: str) -> None:
        source = await self.find(self.find_self(user_name), which)
        with self._open(source) as (descriptor, _):
            self._describe(source, os.fstat(descriptor))

    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str, which: str) -> None:
        user = self.find_self(user_name)
        source = await self.find(user, which)
        with self._slot(user.name), self._open(source) as (descriptor, status):
            first, end = self._describe(source, status)
            if first >= end:
                self.set_status(416)
                self.set_header("Content-Range", f"bytes */{status.st_size}")
                self.set_header("Content-Length", "0")
                return
            sent = await self._send(descriptor, first, end)
            await self.note("download-image", source, size_bytes=sent, of_bytes=status.st_size)

    @contextlib.contextmanager
    def _slot(self, user: str) -> Iterator[None]:
        if self._under_way[user] >= _MOST_AT_ONCE:
            raise http_error(
                self.request, 429, Text("You download {most} images already.", most=_MOST_AT_ONCE)
            )
        self._under_way[user] += 1
        try:
            yield
        finally:
            self._under_way[user] -= 1
            if not self._under_way[user]:
                del self._under_way[user]

    @contextlib.contextmanager
    def _open(self, source: _Source) -> Iterator[tuple[int, os.stat_result]]:
        missing = Text("The image is not packed, or its day is over. Have it packed again.")
        if source.packed is None:
            raise http_error(self.request, 404, missing)
        try:
            descriptor = os.open(source.packed.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise http_error(self.request, 404, missing) from exc
        try:
            yield descriptor, os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def _describe(self, source: _Source, status: os.stat_result) -> tuple[int, int]:
        """Say what comes: the first byte, and the one behind the last."""
        size, tag = status.st_size, f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
        first, end = 0, size
        match = _RANGE.fullmatch(self.request.headers.get("Range", ""))
        if match is not None and self.request.headers.get("If-Range", tag) == tag:
            begin, last = match.groups()
            if begin:
                first, end = int(begin), min(int(last) + 1 if last else size, size)
            elif last:
                first = max(0, size - int(last))
            if (first, end) != (0, size) and first < end:
                self.set_status(206)
                self.set_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("ETag", tag)
        self.set_header("Content-Length", str(max(0, end - first)))
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Disposition", f'attachment; filename="{source.name}"')
        self.set_header("Cache-Control", "private, no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
        return first, end

    async def _send(self, descriptor: int, first: int, end: int) -> int:
        """How many bytes went out before the browser left, which may come back for the rest."""
        at = first
        with contextlib.suppress(StreamClosedError, TimeoutError):
            while at < end:
                piece = await asyncio.to_thread(os.pread, descriptor, min(_PIECE_BYTES, end - at), at)
                self.write(piece)
                async with asyncio.timeout(_SILENCE_S):
                    await self.flush()
                at += len(piece)
        return at - first


class DesktopImageHandler(_OfDesktop, _ImageHandler):
    pass


class DesktopFileHandler(_OfDesktop, _FileHandler):
    pass


class MachineImageHandler(_OfMachine, _ImageHandler):
    pass


class MachineFileHandler(_OfMachine, _FileHandler):
    pass


def _job_of(user: str, server: str) -> str:
    """The name of a job that is no machine's."""
    return f"pack/{session_id(user, server)}"


ROUTES = [
    (r"/api/users/([^/]+)/desktops/([^/]*)/image", DesktopImageHandler),
    (r"/api/users/([^/]+)/desktops/([^/]*)/image/file", DesktopFileHandler),
    (r"/api/users/([^/]+)/machines/([^/]+)/image", MachineImageHandler),
    (r"/api/users/([^/]+)/machines/([^/]+)/image/file", MachineFileHandler),
]
apihandlers.default_handlers += ROUTES
