"""What only a session's job may read, the hub's token among it: a file on the storage that all share."""

from pathlib import PurePath

from qemuspawner.hub.batch.engine import BatchError, Commands
from qemuspawner.texts import Text


class KeepsDocuments(Commands):
    """Part of an engine. The jobs' account itself does this: the hub's may be unable to give files away."""

    async def store(self, path: PurePath, text: str) -> None:
        # A link of that name, or another's file, is not written to.
        writer = 'umask 077 && set -C && cat > "$1"'
        try:
            await self._run("sh", "-c", writer, "sh", str(path), given=text.encode())
        except BatchError as exc:
            raise self.error(
                Text("The desktop's keys cannot be laid down for its job: {why}", why=exc.message),
                hint=Text("The administrator lets the jobs' account write to jobs/ in the state folder."),
            ) from exc

    async def remove(self, path: PurePath) -> None:
        await self._run("sh", "-c", 'rm -f -- "$1"', "sh", str(path))
