"""A desktop's checkpoints."""

import asyncio
import time

from tornado import web

from qemuspawner.errors import SessionError
from qemuspawner.session.vm.keep import Keeper
from qemuspawner.session.web.routes.base import Handler
from qemuspawner.texts import Text

_MAX_TITLE = 100


class CheckpointsHandler(Handler):
    """The desktop's checkpoints: a list, and one more."""

    least = "owner"

    async def get(self) -> None:
        self.write_checkpoints()

    async def post(self) -> None:
        title = self.body().get("title", "")
        if not isinstance(title, str) or len(title) > _MAX_TITLE:
            raise web.HTTPError(400, f"'title' must be a text of at most {_MAX_TITLE} characters.")
        saved = await self.supervisor.save_checkpoint(title=title.strip(), by=self.person.name)
        self.audit("checkpoint-saved", checkpoint=saved.name, title=saved.title)
        self.write_checkpoints()

    def write_checkpoints(self) -> None:
        keeper = self.supervisor.keeper
        now = time.time()
        shown = [
            {
                "name": saved.name,
                "title": saved.title,
                "automatic": saved.automatic,
                "age_s": max(0, round(now - saved.saved_at)),
                "expires_in_s": max(0, round(saved.expires - now)) if saved.expires else 0,
                "size_bytes": saved.size_bytes,
            }
            for saved in (keeper.checkpoints() if keeper else [])
        ]
        self.finish({"checkpoints": shown, "most": self.supervisor.spec.max_checkpoints})


class CheckpointHandler(CheckpointsHandler):
    """One checkpoint: go back to it, or delete it."""

    async def get(self, name: str) -> None:  # type: ignore[override]
        """Its picture."""
        try:
            picture = await asyncio.to_thread(self._keeper.picture(name).read_bytes)
        except OSError as exc:
            raise web.HTTPError(404, "This checkpoint has no picture.") from exc
        self.set_header("Content-Type", "image/png")
        self.finish(picture)

    async def post(self, name: str) -> None:  # type: ignore[override]
        """Go back to it."""
        await self.supervisor.go_back(name, by=self.person.name)
        self.audit("checkpoint-gone-back-to", checkpoint=name)
        self.write_status()

    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self._keeper.delete, name)
        self.audit("checkpoint-deleted", checkpoint=name)
        self.write_checkpoints()

    @property
    def _keeper(self) -> Keeper:
        if self.supervisor.keeper is None:
            raise SessionError(Text("The machine is not running."))
        return self.supervisor.keeper
