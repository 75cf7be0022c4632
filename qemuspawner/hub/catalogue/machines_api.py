"""Routes of the hub's REST API for the machines themselves: for administrators to add, change and remove.

Who may do that decides what runs in everybody's desktops. So it takes the scopes of who may stop and open
all of them anyway, as JupyterHub's administrators may; a token for a script has to name both. A custom scope
would be in no role of an administrator, until each hub's configuration puts it there.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from jupyterhub import apihandlers
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.errors import CatalogueError, QemuSpawnerError
from qemuspawner.hub.catalogue.image_jobs import ImageJobs
from qemuspawner.hub.desktops.kept import find_owner
from qemuspawner.hub.form.options import find_obstacle
from qemuspawner.hub.json_body import ReadsJson
from qemuspawner.hub.languages import http_error
from qemuspawner.hub.limits import Limits
from qemuspawner.languages import choose_language
from qemuspawner.machine import encode_unit
from qemuspawner.machines.catalogue import icon_uri
from qemuspawner.machines.history import load_version
from qemuspawner.machines.icons import MAX_UPLOAD_BYTES
from qemuspawner.machines.own import Entry, InvalidMachineError, OwnMachines, describe_new
from qemuspawner.machines.removed import list_removed, remove_machine, restore_machine, size_of_removed
from qemuspawner.machines.uses import Uses, find_uses
from qemuspawner.paths import StatePaths
from qemuspawner.texts import Text

SCOPES = ("admin:servers", "access:servers")

_T = TypeVar("_T")
_STATUS = {"missing": 404, "exists": 409, "changed": 409, "used": 409, "invalid": 400, "denied": 403}
_JOBS = "qemuspawner_image_jobs"


def for_administrators(method: Callable[..., Any]) -> Callable[..., Any]:
    """A route that takes all of SCOPES, without a filter; JupyterHub's own takes any of several."""
    for scope in SCOPES:
        method = needs_scope(scope)(method)
    return method


class MachineHandler(ReadsJson):
    """What routes about machines have in common."""

    @cached_property
    def spawner(self) -> Any:
        """One of the hub's spawners that is nobody's, for its traits; raises 404 where it is not ours."""
        spawner = self.settings["spawner_class"](config=self.config)
        if not hasattr(spawner, "host_command"):
            raise web.HTTPError(404)
        return spawner

    @cached_property
    def own(self) -> OwnMachines:
        spawner = self.spawner
        return OwnMachines(
            state=StatePaths.of(spawner.state_dir),
            folders=spawner.machine_folders,
            by=self.current_user.name,
        )

    @property
    def jobs(self) -> ImageJobs:
        """Those of this hub."""
        jobs: ImageJobs = self.settings.setdefault(_JOBS, ImageJobs())
        return jobs

    async def work(self, do: Callable[[], _T]) -> _T:
        """Do it in a thread, as it waits for disks; an error of ours becomes the answer."""
        try:
            return await asyncio.to_thread(do)
        except QemuSpawnerError as exc:
            self.refuse(exc)
            raise web.Finish from exc

    def refuse(self, exc: QemuSpawnerError) -> None:
        status = _STATUS[exc.trouble] if isinstance(exc, CatalogueError) else 400
        say = choose_language(self.request).say
        answer: dict[str, object] = {"status": status, "message": say(exc.message), "hint": say(exc.hint)}
        if isinstance(exc, InvalidMachineError):
            answer["problems"] = [
                {"line": one.line, "key": one.key, "reason": one.reason} for one in exc.problems
            ]
        self.set_status(status)
        self.write(json.dumps(answer))

    def body_as(self, kind: type[_T]) -> _T:
        """The request's JSON as such; raises HTTPError 400."""
        try:
            return msgspec.convert(self.get_json_body() or {}, kind)
        except msgspec.ValidationError as exc:
            text = Text("The request's body does not fit: {reason}.", reason=exc)
            raise http_error(self.request, 400, text) from exc

    async def find_limits(self) -> Limits:
        """What a machine may need; not in a thread, as the hub's database may be asked."""
        await self.spawner.look_around()
        return Limits(gpus=self.spawner.find_gpu_models())

    def describe(self, entry: Entry, uses: Mapping[str, Uses], limits: Limits) -> dict[str, object]:
        described = choose_language(self.request).say(_describe(entry, uses.get(entry.id), limits))
        return {**described, "job": self.describe_job(entry.id)}

    def describe_job(self, machine_id: str) -> dict[str, object] | None:
        job = self.jobs.find(machine_id)
        return None if job is None else choose_language(self.request).say(job.describe())

    async def write_machine(self, entry: Entry) -> None:
        """The answer about one machine: with its text, its values and its versions."""
        own, limits = self.own, await self.find_limits()

        def look() -> dict[str, object]:
            uses = find_uses(own.state, find_owner=find_owner)
            return {
                **self.describe(entry, uses, limits),
                "text": entry.text,
                "values": _values(entry),
                "versions": [
                    {"number": one.number, "at": one.at, "by": one.by, "what": one.what, "digest": one.digest}
                    for one in own.versions(entry.id)
                ],
            }

        self.write(json.dumps(await self.work(look)))


class _New(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new machine: one that starts from an image, or a copy of another."""

    id: str
    name: str = ""
    format: str = ""
    firmware: str = ""
    url: str = ""
    digest: str = ""
    copy_of: str = ""


class _Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str
    digest: str


class _Changes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    set: dict[str, Any]
    digest: str


class _Digest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    digest: str


class _Undo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    digest: str
    version: int | None = None


class MachinesHandler(MachineHandler):
    @for_administrators
    async def get(self) -> None:
        """All machines, those that are broken or hidden too, and those that were removed."""
        own, limits = self.own, await self.find_limits()

        def look() -> dict[str, object]:
            uses = find_uses(own.state, find_owner=find_owner)
            return {
                "machines": [self.describe(entry, uses, limits) for entry in own.list()],
                "removed": [
                    {
                        **msgspec.to_builtins(one),
                        "size_bytes": size_of_removed(own.state, one.name),
                    }
                    for one in list_removed(own.state)
                ],
            }

        self.write(json.dumps(await self.work(look)))

    @for_administrators
    async def post(self) -> None:
        """Add one, which is hidden at first."""
        new, own = self.body_as(_New), self.own

        def add() -> Entry:
            if new.copy_of:
                return own.copy(new.copy_of, new.id, name=new.name)
            text = describe_new(
                name=new.name,
                image_format=new.format,
                firmware=new.firmware,
                url=new.url,
                digest=new.digest,
            )
            return own.add(new.id, text)

        entry = await self.work(add)
        self.jobs.forget(entry.id)
        self._note("added", entry.id)
        self.set_status(201)
        await self.write_machine(entry)

    def _note(self, what: str, machine_id: str) -> None:
        self.log.info("The machine '%s' was %s by %s", machine_id, what, self.current_user.name)


class OneMachineHandler(MachineHandler):
    @for_administrators
    async def get(self, machine_id: str) -> None:
        await self.write_machine(await self.work(lambda: self.own.find(machine_id)))

    @for_administrators
    async def put(self, machine_id: str) -> None:
        """Another text: `{"text": TOML, "digest": of the one that was changed}`."""
        new = self.body_as(_Text)
        entry = await self.work(lambda: self.own.save(machine_id, new.text, digest=new.digest))
        await self._answer(entry)

    @for_administrators
    async def patch(self, machine_id: str) -> None:
        """Some keys: `{"set": {"cpus.default": 2, "icon": null}, "digest": ...}`."""
        changes = self.body_as(_Changes)
        what = "edit"
        if changes.set.keys() == {"hidden"}:
            what = "hide" if changes.set["hidden"] else "unhide"
        entry = await self.work(
            lambda: self.own.change(machine_id, changes.set, digest=changes.digest, what=what)
        )
        await self._answer(entry)

    @for_administrators
    async def delete(self, machine_id: str) -> None:
        """Remove it where nobody uses it: `{"digest": ...}`."""
        digest, own = self.body_as(_Digest).digest, self.own
        if self.jobs.is_active(machine_id):
            text = Text("The image of '{machine}' is on its way; cancel that first.", machine=machine_id)
            raise http_error(self.request, 409, text)

        def remove() -> dict[str, object]:
            uses = find_uses(own.state, find_owner=find_owner).get(machine_id)
            removed = remove_machine(own, machine_id, digest=digest, uses=uses)
            return {"removed": None if removed is None else removed.name}

        answer = await self.work(remove)
        self.jobs.forget(machine_id)
        self.log.info("The machine '%s' was removed by %s", machine_id, self.current_user.name)
        self.write(json.dumps(answer))

    async def _answer(self, entry: Entry) -> None:
        self.log.info("The machine '%s' was changed by %s", entry.id, self.current_user.name)
        await self.write_machine(entry)


class IconHandler(MachineHandler):
    @for_administrators
    async def put(self, machine_id: str) -> None:
        """Another icon: a PNG as the body, and in the query the `digest` of the text."""
        if len(self.request.body) > MAX_UPLOAD_BYTES:
            raise http_error(self.request, 413, Text("The picture is too large for an icon."))
        picture, digest = self.request.body, self.get_query_argument("digest", "")
        entry = await self.work(lambda: self.own.set_icon(machine_id, picture, digest=digest))
        self.log.info("The machine '%s' has another icon by %s", entry.id, self.current_user.name)
        await self.write_machine(entry)


class VersionHandler(MachineHandler):
    @for_administrators
    async def get(self, machine_id: str, number: str) -> None:
        """The text of one version."""

        def load() -> str:
            entry = self.own.find(machine_id)
            if not entry.is_own:
                raise CatalogueError(
                    "missing", Text("'{machine}' has no version {number}.", machine=machine_id, number=number)
                )
            return load_version(entry.folder, int(number))

        self.write(json.dumps({"number": int(number), "text": await self.work(load)}))


class UndoHandler(MachineHandler):
    @for_administrators
    async def post(self, machine_id: str) -> None:
        """Take the last change back, or go back to a version: `{"digest": ..., "version": number}`."""
        undo = self.body_as(_Undo)
        entry = await self.work(lambda: self.own.undo(machine_id, digest=undo.digest, number=undo.version))
        self.log.info("The machine '%s' was changed back by %s", entry.id, self.current_user.name)
        await self.write_machine(entry)


class RestoreHandler(MachineHandler):
    @for_administrators
    async def post(self, name: str) -> None:
        """Put a removed machine back."""
        own = self.own
        entry = await self.work(lambda: restore_machine(own, name))
        self.log.info("The machine '%s' was restored by %s", entry.id, self.current_user.name)
        await self.write_machine(entry)


def _describe(entry: Entry, uses: Uses | None, limits: Limits) -> dict[str, object]:
    machine = entry.machine
    obstacle = find_obstacle(machine, limits) if machine is not None else ""
    if machine is None:
        state = "broken"
    elif obstacle:
        state = "cannot start"
    else:
        state = "hidden" if machine.hidden else "offered"
    return {
        "id": entry.id,
        "name": machine.name if machine is not None else entry.id,
        "version": machine.version if machine is not None else "",
        "description": machine.description if machine is not None else "",
        "icon": icon_uri(machine) if machine is not None else "",
        "hidden": machine is not None and machine.hidden,
        "owner": machine.owner if machine is not None else "",
        "download": machine is not None and machine.download and machine.image.format != "iso",
        "is_own": entry.is_own,
        "digest": entry.digest,
        "state": state,
        "obstacle": obstacle,
        "problems": [{"line": one.line, "key": one.key, "reason": one.reason} for one in entry.problems],
        "users": list(machine.allow.users) if machine is not None else [],
        "groups": list(machine.allow.groups) if machine is not None else [],
        "image": _image(entry),
        "uses": {
            "running": uses.running if uses is not None else [],
            "asleep": uses.asleep if uses is not None else [],
            "checkpoints": uses.checkpoints if uses is not None else [],
            "templates": len(uses.templates) if uses is not None else 0,
        },
    }


def _image(entry: Entry) -> dict[str, object] | None:
    if entry.machine is None:
        return None
    image = entry.machine.image
    return {
        "format": image.format,
        "url": image.url,
        "digest": image.digest,
        "is_built": entry.machine.build is not None,
        "size_bytes": _size(image.file),
    }


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return 0


def _values(entry: Entry) -> dict[str, object]:
    """What machine.toml says and what it leaves to defaults; {} for a broken one."""
    if entry.machine is None:
        return {}
    values: dict[str, object] = msgspec.to_builtins(entry.machine, enc_hook=encode_unit)
    # Where its files lie on the host is nothing that is chosen here.
    return {name: value for name, value in values.items() if name not in ("folder", "image")}


ROUTES = [
    (r"/api/machines", MachinesHandler),
    (r"/api/machines/([^/]+)", OneMachineHandler),
    (r"/api/machines/([^/]+)/versions/([0-9]{1,6})", VersionHandler),
    (r"/api/machines/([^/]+)/undo", UndoHandler),
    (r"/api/machines/([^/]+)/icon", IconHandler),
    (r"/api/removed-machines/([^/]+)/restore", RestoreHandler),
]
apihandlers.default_handlers += ROUTES
