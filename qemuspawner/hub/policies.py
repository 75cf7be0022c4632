"""The traits of who may do what at a desktop, and of what keeps one awake."""

from typing import Any

from traitlets import Bool, Enum, Integer, List, TraitError, Unicode, Union, validate
from traitlets.config import LoggingConfigurable

from qemuspawner.policy import Policy
from qemuspawner.units import parse_mib

_LEAST = ["view", "control", "owner", "nobody"]


def _least(default: str, what: str) -> Any:
    return Enum(
        _LEAST,
        default_value=default,
        help=f"""The least role that {what}: "view", "control", "owner", or "nobody".""",
    ).tag(config=True)


class PolicyTraits(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`; each trait is a field of Policy."""

    staff = Enum(
        ["ask", "view", "control", "nobody"],
        default_value="ask",
        help="""What people see of a desktop who have access by a role of the hub, such as administrators.

        "ask": nothing, until its owner consents; "view" or "control": that, without being asked; "nobody":
        they cannot even ask. Whatever they do is in the audit log, and who has the desktop open is seen by
        everybody there.
        """,
    ).tag(config=True)
    owner_away = Enum(
        ["stay", "view", "leave"],
        default_value="stay",
        help="""What becomes of others at a desktop that its owner has left.

        "stay": they go on; "view": they only look on; "leave": their windows are closed, and open again when
        the owner is back; until then they see, hear and change nothing of it by the API either. Programs with
        tokens of the owner's go on.
        """,
    ).tag(config=True)
    one_driver = Bool(
        False,
        help="Whether only one person at a time has mouse and keyboard; owners can change it for a desktop.",
    ).tag(config=True)
    clipboard_in = _least("control", "may copy text into the desktop")
    clipboard_out = _least("control", "may copy text out of the desktop")
    files_in = _least("control", "may upload files")
    files_out = _least("control", "may browse and download files")
    max_file = Union(
        [Integer(), Unicode()],
        default_value=1024,
        help="""The largest file that can be uploaded or downloaded: MiB, or text like "4 GiB".""",
    ).tag(config=True)
    sound = _least("view", "hears the desktop's sound")
    ports = _least("control", "reaches the web servers that a machine declares in `ports`")
    agents = Bool(
        True,
        help="Whether programs with the scope `custom:qemuspawner:agent` may type and click by the API.",
    ).tag(config=True)

    busy = List(
        Enum(["cpu", "disk", "gpu"]),
        default_value=["cpu", "disk", "gpu"],
        help="""What keeps a desktop awake that nobody touches: work of its CPUs, of its disk, of its GPU.

        With an empty list only mouse and keyboard count.
        """,
    ).tag(config=True)
    busy_cpu = Integer(
        25,
        min=1,
        help="From how many percent of one of the host's cores on its CPUs count as busy, all together.",
    ).tag(config=True)
    busy_disk = Union(
        [Integer(), Unicode()],
        default_value=1,
        help="""From how much on a second its disk counts as busy: MiB, or text like "4 MiB".""",
    ).tag(config=True)
    busy_gpu = Integer(
        5,
        min=1,
        max=100,
        help="From how many percent on a GPU counts as busy, by nvidia-smi inside.",
    ).tag(config=True)

    @validate("max_file", "busy_disk")
    def _at_least_a_mib(self, proposal: Any) -> int:
        name = proposal["trait"].name
        try:
            size = parse_mib(proposal["value"])
        except ValueError as exc:
            raise TraitError(f"{name} is {proposal['value']!r}: {exc}.") from None
        if size < 1:
            raise TraitError(f"{name} is {size} MiB; it is at least 1 MiB.")
        return size

    def make_policy(self) -> Policy:
        return Policy(
            staff=self.staff,  # type: ignore[arg-type]
            owner_away=self.owner_away,  # type: ignore[arg-type]
            one_driver=self.one_driver,
            clipboard_in=self.clipboard_in,
            clipboard_out=self.clipboard_out,
            files_in=self.files_in,
            files_out=self.files_out,
            max_file_mib=self.max_file,
            sound=self.sound,
            ports=self.ports,
            agents=self.agents,
            busy=tuple(self.busy),
            busy_cpu_percent=self.busy_cpu,
            busy_disk_kib_s=self.busy_disk * 1024,
            busy_gpu_percent=self.busy_gpu,
        )
