"""Routes of the hub's REST API for desktops that are to become machines: users ask, staff answer.

The command `qemuspawner` looks into the desktop and makes the machine; the hub itself never reads its disk.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from jupyterhub import apihandlers, orm
from jupyterhub.scopes import needs_scope
from tornado import web

from qemuspawner.errors import CatalogueError
from qemuspawner.hub.catalogue.image_jobs import ImageJob, What
from qemuspawner.hub.catalogue.machines_api import MachineHandler, for_administrators
from qemuspawner.hub.desktops.kept import load_kept
from qemuspawner.hub.languages import http_error
from qemuspawner.hub.publishing.wishes import (
    Audience,
    Wish,
    add_wish,
    answer_wish,
    find_wish,
    list_wishes,
    note_changes,
    take_back,
)
from qemuspawner.hub.records import Records
from qemuspawner.languages import choose_language
from qemuspawner.machine import Machine
from qemuspawner.machines.catalogue import is_machine_id
from qemuspawner.paths import StatePaths
from qemuspawner.texts import Text

_TASKS = "qemuspawner_publishing_tasks"
_MAX_NAME = 60
_MAX_WORDS = 1000


class _New(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    name: str
    audience: Audience
    group: str = ""
    reason: str = ""


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    answer: Literal["yes", "no"]
    word: str = ""


class _PublishingHandler(MachineHandler):
    @property
    def records(self) -> Records:
        records: Records = self.spawner.records
        return records

    def find_owner_of(self, user_name: str) -> Any:
        """The user who sent this request; nobody else gives a disk away, whoever may open the desktop."""
        person = self.current_user
        user = self.find_user(user_name)
        if user is None or isinstance(person, orm.Service) or person.name != user.name:
            raise http_error(self.request, 403, Text("Only its owner may publish a desktop."))
        return user

    def describe_wish(self, wish: Wish) -> dict[str, Any]:
        job = self.jobs.find(wish.machine)
        # Another one's job on the same machine says nothing of this wish.
        is_its = job is not None and job.what == "publish" and wish.state == "asked"
        return {**wish.describe(), "job": self.describe_job(wish.machine) if is_its else None}

    def describe_for_staff(self, wish: Wish) -> dict[str, Any]:
        looking = self.jobs.find(_looking(wish.id))
        return {
            **self.describe_wish(wish),
            "changes": None if wish.changes is None else json.loads(wish.changes),
            "looking": None if looking is None else choose_language(self.request).say(looking.describe()),
        }

    def keep_task(self, work: Any) -> None:
        """Have it go on when this request is answered."""
        tasks: set[asyncio.Task[None]] = self.settings.setdefault(_TASKS, set())
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def check_not_made(self, wish: Wish) -> None:
        """Raises HTTPError 409 while the machine is being made: that is an answer already."""
        if self.describe_wish(wish)["job"] and self.jobs.is_active(wish.machine):
            text = Text("The machine '{machine}' is being made of it.", machine=wish.machine)
            raise http_error(self.request, 409, text)

    def start_job(self, key: str, command: list[str], *, what: What, by: str) -> ImageJob:
        try:
            return self.jobs.start(key, command, what=what, by=by)
        except CatalogueError as exc:
            self.refuse(exc)
            raise web.Finish from exc

    def start_looking(self, wish: Wish) -> None:
        """Find out what the desktop has changed, when what is before it is done."""
        command = [*self.spawner.host_command, "machines", "changes"]
        # A name may begin as an option does.
        command += ["--saved", wish.saved, "--json", "--", _desktop(wish)]
        job = self.start_job(_looking(wish.id), command, what="changes", by=wish.user)
        self.keep_task(self._note_changes(wish.id, job))

    async def _note_changes(self, number: int, job: ImageJob) -> None:
        await self.jobs.wait_for(job)
        if job.result is not None:
            await asyncio.to_thread(note_changes, self.records, number, job.result)


class PublishHandler(_PublishingHandler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def post(self, user_name: str, server_name: str) -> None:
        """Ask for it: `{"id": ..., "name": ..., "audience": "me", "group" or "all", "group", "reason"}`."""
        user, new = self.find_owner_of(user_name), self.body_as(_New)
        self._check(user, new)
        kept = await asyncio.to_thread(
            load_kept, StatePaths.of(self.spawner.state_dir), user=user.name, server_name=server_name
        )
        running = user.spawners.get(server_name)
        if kept.suspended is None or (running is not None and running.active):
            raise http_error(
                self.request, 409, Text("This desktop does not sleep. Suspend it, then publish it.")
            )
        await self.work(lambda: self._check_id(new.id, user.name))
        wish = Wish(
            user=user.name,
            server=server_name,
            saved=kept.suspended.name,
            machine=new.id,
            name=new.name,
            audience=new.audience,
            group=new.group,
            reason=new.reason,
        )
        wish = await self.work(lambda: add_wish(self.records, wish))
        self.log.info("%s asks to publish %s as '%s'", user.name, _desktop(wish), wish.machine)
        self.start_looking(wish)
        self.set_status(201)
        self.write(json.dumps(self.describe_wish(wish)))

    def _check(self, user: Any, new: _New) -> None:
        groups = {group.name for group in user.groups}
        problem = ""
        if not 0 < len(new.name) <= _MAX_NAME or not new.name.isprintable() or not new.name.strip():
            problem = Text("The name has 1 to {most} characters, on one line.", most=_MAX_NAME)
        elif len(new.reason) > _MAX_WORDS:
            problem = Text("The reason has at most {most} characters.", most=_MAX_WORDS)
        elif new.audience == "group" and new.group not in groups:
            problem = Text("You are not in the group '{group}'.", group=new.group[:60])
        elif new.audience != "group" and new.group:
            problem = Text("A group is named only where the machine is for a group.")
        elif not is_machine_id(new.id):
            problem = Text("The id is 1 to 40 of a-z, 0-9 and '-', a letter first.")
        if problem:
            raise http_error(self.request, 400, problem)

    def _check_id(self, machine_id: str, user: str) -> None:
        for entry in self.own.list():
            is_theirs = entry.machine is not None and entry.machine.owner == user
            if entry.id == machine_id and not is_theirs:
                raise CatalogueError(
                    "exists",
                    Text("There is a machine '{machine}' already.", machine=machine_id),
                    hint=Text("Choose another id."),
                )


class MyWishesHandler(_PublishingHandler):
    @needs_scope("read:servers")  # type: ignore[untyped-decorator]
    async def get(self, user_name: str) -> None:
        """What the user has asked for, and the answers."""
        wishes = await self.work(lambda: list_wishes(self.records, user=user_name))
        mine = {}
        if wishes and (user := self.find_user(user_name)) is not None:
            mine = user.spawner._my_machines(user.spawner._catalogue())
        self.write(
            json.dumps(
                {
                    "wishes": [
                        {**self.describe_wish(wish), "can_download": _can_download(wish, mine)}
                        for wish in wishes
                    ]
                }
            )
        )


class MyWishHandler(_PublishingHandler):
    @needs_scope("access:servers")  # type: ignore[untyped-decorator]
    async def delete(self, user_name: str, number: str) -> None:
        """Take it back."""
        user = self.find_owner_of(user_name)
        self.check_not_made(await self.work(lambda: find_wish(self.records, int(number))))
        await self.work(lambda: take_back(self.records, int(number), user=user.name))
        await self.jobs.cancel(_looking(int(number)))
        self.set_status(204)


class WishesHandler(_PublishingHandler):
    @for_administrators
    async def get(self) -> None:
        """Everybody's, with what the desktops have changed."""
        wishes = await self.work(lambda: list_wishes(self.records))
        self.write(json.dumps({"wishes": [self.describe_for_staff(wish) for wish in wishes]}))


class WishHandler(_PublishingHandler):
    @for_administrators
    async def post(self, number: str) -> None:
        """Answer it: `{"answer": "yes" or "no", "word": ...}`; after a yes the machine is made meanwhile."""
        said = self.body_as(_Answer)
        if len(said.word) > _MAX_WORDS:
            text = Text("The word has at most {most} characters.", most=_MAX_WORDS)
            raise http_error(self.request, 400, text)
        wish, by = await self.work(lambda: find_wish(self.records, int(number))), self.current_user.name
        self.check_not_made(wish)
        if said.answer == "no" or wish.state != "asked":
            wish = await self.work(
                lambda: answer_wish(self.records, wish.id, state="refused", by=by, word=said.word)
            )
        else:
            self._start(wish, by=by, word=said.word)
            self.set_status(202)
        self.log.info("%s says %s to the wish %d of %s", by, said.answer, wish.id, wish.user)
        self.write(json.dumps(self.describe_for_staff(wish)))

    @for_administrators
    async def put(self, number: str) -> None:
        """Look again what the desktop has changed."""
        wish = await self.work(lambda: find_wish(self.records, int(number)))
        self.start_looking(wish)
        self.set_status(202)

    def _start(self, wish: Wish, *, by: str, word: str) -> None:
        command = [*self.spawner.host_command, "machines", "publish"]
        command += ["--saved", wish.saved, f"--name={wish.name}", f"--by={by}", "--json"]
        match wish.audience:
            case "me":
                command.append(f"--for-user={wish.user}")
            case "group":
                command.append(f"--for-group={wish.group}")
            case "all":
                command.append("--for-all")
        command += ["--", _desktop(wish), wish.machine]
        job = self.start_job(wish.machine, command, what="publish", by=by)
        self.keep_task(self._note_published(wish.id, job, by=by, word=word))

    async def _note_published(self, number: int, job: ImageJob, *, by: str, word: str) -> None:
        """The wish stays open until the machine is there: a hub that is restarted meanwhile lost nothing."""
        await self.jobs.wait_for(job)
        if job.state == "done":
            await asyncio.to_thread(answer_wish, self.records, number, state="published", by=by, word=word)


def _can_download(wish: Wish, machines: Mapping[str, Machine]) -> bool:
    machine = machines.get(wish.machine)
    return wish.state == "published" and machine is not None and machine.download


def _desktop(wish: Wish) -> str:
    return f"{wish.user}/{wish.server}" if wish.server else wish.user


def _looking(number: int) -> str:
    """The name of a job that is no machine's."""
    return f"wish/{number}"


ROUTES = [
    (r"/api/users/([^/]+)/desktops/([^/]*)/publish", PublishHandler),
    (r"/api/users/([^/]+)/publications", MyWishesHandler),
    (r"/api/users/([^/]+)/publications/([0-9]{1,9})", MyWishHandler),
    (r"/api/publications", WishesHandler),
    (r"/api/publications/([0-9]{1,9})", WishHandler),
]
apihandlers.default_handlers += ROUTES
