"""Starts are checked before JupyterHub begins with them, so that a refusal is the answer to who asked.

JupyterHub first makes tokens and a client of OAuth, and writes them to its database; only then it asks the
spawner. Its pages wait for that for a second, and its API for `slow_spawn_timeout`: on a busy host a refusal
came after they had answered that the desktop starts.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jupyterhub import apihandlers, handlers
from jupyterhub.apihandlers.users import UserServerAPIHandler
from jupyterhub.handlers.pages import SpawnHandler
from jupyterhub.metrics import SERVER_SPAWN_DURATION_SECONDS, ServerSpawnStatus
from jupyterhub.spawner import SpawnException
from tornado import web

from qemuspawner.hub.admission.deletions import wait_while_deleted
from qemuspawner.hub.admission.promises import KeepsPromise
from qemuspawner.hub.json_body import ReadsJson

# Of the hub's loop: more than a request takes, from its connection to the form that says why not.
_STEPS = 20


class ChecksFirst(KeepsPromise):
    """Part of `QemuSpawnerMixin`: the check of a start that JupyterHub has yet to begin with."""

    handler: Any
    user: Any
    orm_spawner: Any
    _spawn_pending: bool
    _spawn_future: Any
    # JupyterHub's mark of a pending start is ours: its own code has yet to set it.
    _is_checking = False
    _checked: dict[str, object]

    async def check_options(self, user_options: Mapping[str, object]) -> None:
        """Check the options of a start and promise it what it needs.

        Raises:
            SpawnException: It is refused.
        """
        raise NotImplementedError

    async def apply_group_overrides(self) -> None:
        # Once a start: some are functions of what is set already.
        if self._claimed is None:
            await super().apply_group_overrides()

    @property
    def can_check_first(self) -> bool:
        """Whether it does not start yet, and nothing that JupyterHub does first changes what is checked."""
        # The identity provider may say other groups then.
        return not self.pending and not self.user.authenticator.refresh_pre_spawn

    async def check_first(self, handler: Any, options: Mapping[str, object] | None) -> None:
        """Check the start that `handler`'s request asks for, with its last options where it brings none.

        What it needs is claimed then, and kept for when JupyterHub comes to the spawner. Until `hand_over`
        nobody else starts this server.

        Raises:
            SpawnException: It is refused.
        """
        begun = time.perf_counter()
        self._spawn_pending = self._is_checking = True
        self.handler = handler
        try:
            await self.run_auth_state_hook(await self.user.get_auth_state())
            await self.apply_group_overrides()
            await self.check_options(self.orm_spawner.user_options or {} if options is None else options)
        except BaseException as exc:
            self.hand_over()
            if isinstance(exc, SpawnException):
                duration = SERVER_SPAWN_DURATION_SECONDS.labels(ServerSpawnStatus.failure, exc.reason)
                duration.observe(time.perf_counter() - begun)
            raise
        finally:
            self.handler = None
        # JupyterHub clears the server's state, and stores the options as they were asked for.
        self._claimed, self._promise = self._promise, None
        self._checked = self.user_options

    def take_claim(self) -> dict[str, object] | None:
        """Promise what was claimed for this start: its options; None where it was not checked first."""
        if self._claimed is None:
            return None
        self._promise, self._claimed = self._claimed, None
        return self._checked

    def hand_over(self) -> None:
        """What comes next is JupyterHub's own mark, or the end of it."""
        if self._is_checking:
            self._spawn_pending = self._is_checking = False

    def keep_claim_while_starting(self) -> None:
        """What was claimed counts for no longer than JupyterHub is at it, should it never ask the spawner."""
        if self._spawn_future is None or self._spawn_future.done():
            self._claimed = None
        else:
            self._spawn_future.add_done_callback(lambda _: setattr(self, "_claimed", None))


async def _let_others_be_told() -> None:
    """Have the hub do first what it has at hand; nothing, where that is nothing.

    To begin with a start takes as much of its time as ten refusals, which would all wait for that.
    """
    for _ in range(_STEPS):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def _admitted(spawner: Any, handler: Any, options: Mapping[str, object] | None) -> AsyncIterator[None]:
    """Within this JupyterHub begins with a start, if it is not refused here.

    Where the hub's spawner is not one of ours, such as one that wraps them, it is refused later.
    """
    if not isinstance(spawner, ChecksFirst) or not spawner.can_check_first:
        yield
        return
    await spawner.check_first(handler, options)
    try:
        await _let_others_be_told()
        yield
    finally:
        spawner.keep_claim_while_starting()


def _hand_over(spawner: Any) -> None:
    if isinstance(spawner, ChecksFirst):
        spawner.hand_over()


class StartPage(SpawnHandler):  # type: ignore[misc]
    """The form, and the start that it asks for."""

    async def _post(self, user_name: str, server_name: str, display_name: str) -> None:
        await wait_while_deleted(user_name, server_name)
        try:
            await super()._post(user_name, server_name, display_name)
        except UnicodeDecodeError as exc:
            raise web.HTTPError(400, "The form is not UTF-8.") from exc

    async def _wrap_spawn_single_user(
        self,
        user: Any,
        server_name: str,
        display_name: str,
        spawner: Any,
        pending_url: str,
        options: Any = None,
    ) -> None:
        # It waits for the start for a second, and for its check as long as that takes.
        async with _admitted(spawner, self, options):
            await super()._wrap_spawn_single_user(
                user, server_name, display_name, spawner, pending_url, options
            )

    async def spawn_single_user(
        self, user: Any, server_name: str = "", display_name: str = "", options: Any = None
    ) -> None:
        _hand_over(user.spawners[server_name])
        await super().spawn_single_user(user, server_name, display_name, options)


class StartHandler(UserServerAPIHandler, ReadsJson):  # type: ignore[misc]
    """A start by the API."""

    async def post(self, user_name: str, server_name: str = "") -> None:
        await wait_while_deleted(user_name, server_name)
        await super().post(user_name, server_name)

    async def spawn_single_user(
        self, user: Any, server_name: str = "", display_name: str = "", options: Any = None
    ) -> None:
        spawner = user.spawners[server_name]
        async with _admitted(spawner, self, options):
            _hand_over(spawner)
            await super().spawn_single_user(user, server_name, display_name, options)


_OURS = {SpawnHandler: StartPage, UserServerAPIHandler: StartHandler}

for _routes in (handlers.default_handlers, apihandlers.default_handlers):
    _routes[:] = [(path, _OURS.get(handler, handler), *more) for path, handler, *more in _routes]
