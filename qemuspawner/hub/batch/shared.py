"""What nodes have in common, the storage, and what each has for itself: the traits for it."""

from msgspec import structs
from traitlets import Integer, Unicode

from qemuspawner.hub.mixin import QemuSpawnerMixin
from qemuspawner.hub.runs.runs import last_runs
from qemuspawner.spec import SessionSpec
from qemuspawner.texts import Text


class SharesStorage(QemuSpawnerMixin):
    """Part of the spawners of clusters: sessions whose state folder other nodes have too."""

    lease = Integer(
        30,
        min=5,
        max=180,
        help="""After how many seconds without the storage of `state_dir` a desktop stands still.

        Who starts it on another node waits a little longer than that: no disk ever has two desktops.
        """,
    ).tag(config=True)
    image_cache = Unicode(
        "",
        help="""A folder on each node's own disk to which images are copied once, such as "/local/desktops".

        "": they are read from `state_dir`, over the network.
        """,
    ).tag(config=True)

    _was_lost = False

    def begin_session(self, spec: SessionSpec, *, node: str) -> None:
        former = last_runs(self.records, self.user.name).get(spec.session_id)
        self._was_lost = former is not None and former.outcome == "lost"
        super().begin_session(spec, node=node)

    async def follow_start(self) -> None:
        if self._was_lost:
            self._progress.say(Text("Making sure that the desktop runs on no other node any more"))
        await super().follow_start()

    def make_spec(self) -> SessionSpec:
        return structs.replace(super().make_spec(), lease_s=self.lease, image_cache=self.image_cache)
