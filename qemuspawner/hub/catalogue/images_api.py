"""Routes of the hub's REST API for images: fetched from a URL, or uploaded by the core of the tus protocol.

Source: https://tus.io/protocols/resumable-upload, version 1.0.0, with creation and termination. The command
`qemuspawner` checks what came and puts it in place: the hub itself never looks into an image.
"""

import json
import re
from typing import Any

from jupyterhub import apihandlers
from tornado import web

from qemuspawner.errors import CatalogueError, QemuSpawnerError
from qemuspawner.hub.catalogue.machines_api import MachineHandler, for_administrators
from qemuspawner.hub.catalogue.uploads import FullError, Uploads, WrongOffsetError
from qemuspawner.hub.languages import http_error
from qemuspawner.machine import Machine
from qemuspawner.paths import StatePaths
from qemuspawner.texts import Text
from qemuspawner.units import render_mib

_TUS = "1.0.0"
_PART = "application/offset+octet-stream"
# Held in the hub's memory as a whole.
_MAX_PART_BYTES = 16 << 20
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


class _ImageHandler(MachineHandler):
    def find_machine(self, machine_id: str) -> Machine:
        """One that can be given an image; raises CatalogueError."""
        machine = self.own.find(machine_id).machine
        if machine is None:
            raise CatalogueError(
                "invalid",
                Text("The machine.toml of '{machine}' has to be repaired first.", machine=machine_id),
            )
        if machine.build is not None:
            raise CatalogueError(
                "denied",
                Text("The image of '{machine}' is made by its recipe, on the host.", machine=machine_id),
            )
        return machine

    def start_job(self, machine_id: str, command: list[str], *, what: Any) -> None:
        try:
            self.jobs.start(machine_id, command, what=what, by=self.current_user.name)
        except CatalogueError as exc:
            self.refuse(exc)
            raise web.Finish from exc


class ImageHandler(_ImageHandler):
    """A machine's image on its way."""

    @for_administrators
    async def get(self, machine_id: str) -> None:
        """How far it is; null where none was on its way since the hub's start."""
        await self.work(lambda: self.own.find(machine_id))
        self.write(json.dumps({"job": self.describe_job(machine_id)}))

    @for_administrators
    async def post(self, machine_id: str) -> None:
        """Fetch it from the machine's `image.url`; nowhere else is a URL that a process list would show."""
        machine = await self.work(lambda: self.find_machine(machine_id))
        spawner = self.spawner
        command = [*spawner.host_command, "machines", "fetch", machine.id, "--json"]
        command += ["--max-size", f"{spawner.max_image} MiB"]
        self.start_job(machine.id, command, what="fetch")
        self.set_status(202)
        self.write(json.dumps({"job": self.describe_job(machine.id)}))

    @for_administrators
    async def delete(self, machine_id: str) -> None:
        """Cancel it."""
        if not await self.jobs.cancel(machine_id):
            raise http_error(self.request, 404, Text("No image of this machine is on its way."))
        self.set_status(204)


class _TusHandler(_ImageHandler):
    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Tus-Resumable", _TUS)

    def uploads(self, machine_id: str) -> Uploads:
        return Uploads(state=StatePaths.of(self.spawner.state_dir), machine_id=machine_id)

    def check_protocol(self) -> None:
        if self.request.headers.get("Tus-Resumable") != _TUS:
            self.set_header("Tus-Version", _TUS)
            raise web.HTTPError(412, f"Uploads take the tus protocol, version {_TUS}.")

    def number(self, header: str) -> int:
        text = self.request.headers.get(header, "")
        if not _NUMBER.fullmatch(text):
            raise web.HTTPError(400, f"'{header}' must be a whole number of bytes.")
        return int(text)

    def refuse(self, exc: QemuSpawnerError) -> None:
        super().refuse(exc)
        if isinstance(exc, WrongOffsetError):
            self.set_status(409)
        elif isinstance(exc, FullError):
            self.set_status(507)


class UploadsHandler(_TusHandler):
    @for_administrators
    async def post(self, machine_id: str) -> None:
        """Begin an upload."""
        self.check_protocol()
        machine = await self.work(lambda: self.find_machine(machine_id))
        size, spawner = self.number("Upload-Length"), self.spawner
        if size > spawner.max_image << 20:
            text = Text(
                "The image has {size}; at most {most} are allowed.",
                size=render_mib(-(-size >> 20)),
                most=render_mib(spawner.max_image),
            )
            raise http_error(self.request, 413, text)
        if not size:
            raise http_error(self.request, 400, Text("The file is empty."))
        token = await self.work(lambda: self.uploads(machine.id).begin(size))
        self.log.info("%s: %s uploads an image of %s bytes", machine.id, self.current_user.name, size)
        self.set_header("Location", f"{self.hub.base_url}api/machines/{machine.id}/uploads/{token}")
        self.set_status(201)


class UploadHandler(_TusHandler):
    """One upload. With its last byte the command takes it over; see ImageHandler for how that goes on."""

    @for_administrators
    async def head(self, machine_id: str, token: str) -> None:
        """How far it is."""
        self.check_protocol()
        machine = await self.work(lambda: self.find_machine(machine_id))
        uploads = self.uploads(machine.id)
        offset = await self.work(lambda: uploads.offset(token))
        self.set_header("Upload-Offset", str(offset))
        self.set_header("Upload-Length", str(uploads.size(token)))
        self.set_header("Cache-Control", "no-store")

    @for_administrators
    async def patch(self, machine_id: str, token: str) -> None:
        """Go on with it; parts have at most 16 MiB."""
        self.check_protocol()
        if self.request.headers.get("Content-Type") != _PART:
            raise web.HTTPError(415, f"The body must be '{_PART}'.")
        data, offset = self.request.body, self.number("Upload-Offset")
        if len(data) > _MAX_PART_BYTES:
            raise web.HTTPError(413, "A part of an upload has at most 16 MiB.")
        machine = await self.work(lambda: self.find_machine(machine_id))
        uploads = self.uploads(machine.id)
        now = await self.work(lambda: uploads.append(token, data, offset=offset))
        if now == uploads.size(token):
            self._take_over(machine, uploads, token)
        self.set_header("Upload-Offset", str(now))
        self.set_status(204)

    def _take_over(self, machine: Machine, uploads: Uploads, token: str) -> None:
        file = str(uploads.folder / token)
        command = [*self.spawner.host_command, "machines", "import", machine.id, file, "--move", "--json"]
        # Where that is refused all of it is there still: a part without a byte tries again.
        self.start_job(machine.id, command, what="upload")

    @for_administrators
    async def delete(self, machine_id: str, token: str) -> None:
        """Give it up."""
        self.check_protocol()
        machine = await self.work(lambda: self.find_machine(machine_id))
        await self.work(lambda: self.uploads(machine.id).give_up(token))
        self.set_status(204)


ROUTES = [
    (r"/api/machines/([^/]+)/image", ImageHandler),
    (r"/api/machines/([^/]+)/uploads", UploadsHandler),
    (r"/api/machines/([^/]+)/uploads/([^/]+)", UploadHandler),
]
apihandlers.default_handlers += ROUTES
