"""The two documents that cross between processes: SessionSpec in, SessionStatus out."""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from qemuspawner.account import Account, Sudo
from qemuspawner.errors import SessionError
from qemuspawner.machine import Machine, decode_unit, encode_unit
from qemuspawner.network import Network
from qemuspawner.policy import Busy, Policy
from qemuspawner.texts import Sentence, decode_text, pack

# One environment variable is at most 128 KiB on Linux.
SPEC_VARIABLE = "QEMUSPAWNER_SESSION"
# The number of the descriptor on which the hub listens for the session; unset: the session binds itself.
LISTEN_VARIABLE = "QEMUSPAWNER_LISTEN_FD"

State = Literal["preparing", "booting", "running", "suspending", "stopping", "ended", "suspended", "failed"]

# QEMU's own memory and its supervisor's, beside the guest's.
SESSION_OVERHEAD_MIB = 224

# How a desktop came up.
Way = Literal["cold", "restored", "woken"]

# How a script does; "": there is none, or not yet.
ScriptState = Literal["", "running", "done", "failed", "interrupted"]

# What ends a session from outside, and may suspend it instead.
SuspendOn = Literal["idle", "lifetime", "stop"]

# What can be wrong with a desktop: its host has lost the storage, its disk takes no more, its system has
# crashed, nobody answers.
TroubleKind = Literal["no-storage", "disk-limit", "disk-full", "disk-error", "crashed", "silent"]

# What a person can do about a trouble: try the disk again, allow it more room, press the reset button.
Act = Literal["retry", "extend", "reset"]

# What stands around QEMU; `qemu.walls` says of each what it is for.
Wall = Literal[
    "seccomp",
    "privileges",
    "core",
    "oom",
    "memory",
    "capabilities",
    "processes",
    "files",
    "network",
    "ipc",
    "users",
]

# What the hub writes down as it was told fits into its records.
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
_Cores = Annotated[float, msgspec.Meta(ge=0, le=1 << 20)]


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """GPUs of one model for one desktop."""

    count: int
    model: str = ""  # "": whichever there is; in a spec it is a name

    def __str__(self) -> str:
        """As the option `gpu` has it."""
        if not self.model:
            return str(self.count)
        return self.model if self.count == 1 else f"{self.model}:{self.count}"


class DataFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of the host with data of a proposal."""

    name: str  # unique in the proposal, and fit for a file's name
    path: str  # absolute
    read_only: bool = True


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of the host that the desktop is to have."""

    name: str  # for people; unique in the session
    path: str  # the host's; absolute, and without symbolic links. "": this user has none
    mount: str  # where the guest has it; absolute
    read_only: bool = True
    required: bool = False  # without it the desktop does not start


# How a folder comes into the guest.
FolderWay = Literal["virtiofs", "9p"]


class FolderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a folder."""

    name: str
    mount: str
    read_only: bool
    way: Literal["", FolderWay] = ""  # "": it is not in the guest
    problem: Sentence = ""  # why not


RemoteKind = Literal["nfs", "cifs", "sshfs"]
RemoteState = Literal["off", "connecting", "connected", "failed"]


class RemoteFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of a server that the guest mounts itself, with what its user knows."""

    name: str  # for people; unique in the session
    kind: RemoteKind
    server: str  # an address or a host's name
    port: int = 0  # 0: the usual one
    path: str  # absolute; for "cifs" /SHARE or /SHARE/FOLDER
    mount: str  # where the guest has it; absolute
    read_only: bool = True
    domain: str = ""  # "cifs": of the user's account there
    host_key: str = ""  # "sshfs": how the server is known, as "ssh-ed25519 AAAA..."

    @property
    def needs_login(self) -> bool:
        """Whether the server asks who it is; NFS believes the number of the guest's user."""
        return self.kind != "nfs"


class RemoteFolderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a folder of a server."""

    name: str
    kind: RemoteKind
    server: str
    mount: str
    read_only: bool
    state: RemoteState = "off"
    problem: Sentence = ""  # why it failed
    asks: bool  # connecting needs an account and a password: the session knows none, or none any more


class ChosenProposal(msgspec.Struct, frozen=True, kw_only=True):
    """The proposal (experiment) that a session was started on, one of its user's."""

    id: str
    title: str
    data: tuple[DataFolder, ...] = ()


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub asks for: one run of one machine for one user."""

    session_id: str
    user: str
    server_name: str  # "" is the default server
    started_by: str = ""  # who asked for this start, as sessions call people; "": nobody knows
    state_dir: str  # the host's state folder
    machine: Machine
    cpus: int
    memory_mib: int
    gpus: Gpus | None = None  # what was promised
    # What may be taken for them: PCI addresses, or ADDRESS/TYPE for a mediated device of that GPU.
    gpu_devices: tuple[str, ...] = ()
    where: str = ""  # which of the hub's places it runs at; "" where the hub has one
    lifetime_s: int
    max_lifetime_s: int  # what extending can reach, counted from the start
    idle_s: int = 0  # 0: never ends for being idle
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    allow_tcg: bool = False  # QEMU calls only KVM a security boundary
    jail: bool = True  # QEMU in its own namespaces, seeing its own files only
    templates: bool = True  # start from a template where one fits
    # With what was saved earlier: "wake" it, where there is something; "boot" its disk; "discard" it all.
    # Anything else is the name of one of this session's checkpoints.
    sleeping: str = "wake"
    name: str = ""  # what its user calls the desktop
    notes: str = ""  # what they want to remember about it; may have several lines
    keyboard: str = ""  # a layout of `keyboards`, set at the start; "": the page sets what the browser says
    resolution: str = ""  # one of `resolutions`, kept from start to end; "": as the owner's window
    script: str = ""  # run once in a new desktop; begins with #! or #cloud-config
    branch: str = ""  # SESSION-ID/NAME: start from that checkpoint of another session of the same user
    suspend_on: tuple[SuspendOn, ...] = ()
    disk_limit_mib: int = 0  # what a desktop may write to its disk; 0: as much as the disk has room for
    max_disk_limit_mib: int = 0  # what extending that can reach
    keep_s: int = 14 * 86400  # how long saved VMs are kept
    quota_mib: int = 0  # what one user's saved VMs may take before there are no more checkpoints; 0: no limit
    checkpoint_every_s: int = 0  # 0: only when asked for
    max_checkpoints: int = 10
    policy: Policy = Policy()  # who may do what
    network: Network = Network()  # what the guest may reach
    proposal: ChosenProposal | None = None
    folders: tuple[Folder, ...] = ()  # of the host, for the guest
    remote_folders: tuple[RemoteFolder, ...] = ()  # of servers, which the guest reaches itself
    account: Account | None = None  # who its user is in the guest; None: as the machine calls them
    sudo: Sudo = ""  # whether they may become root there; "": as the machine has it
    gifts: tuple[str, ...] = ()  # folders of the host, put into a new desktop one after the other
    # Other hosts have the state folder too: after so long without it the desktop stands still. 0: none has.
    lease_s: int = 0
    # A folder of the host's own disk for copies of images, each fetched once; "": they are used in place.
    image_cache: str = ""

    def to_json(self) -> str:
        return msgspec.json.encode(self, enc_hook=encode_unit).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "SessionSpec":
        """Raises SessionError where the text is not a SessionSpec."""
        try:
            return msgspec.json.decode(text, type=cls, dec_hook=decode_unit)
        except msgspec.DecodeError as exc:
            raise SessionError(
                f"The session's specification cannot be read: {exc}.",
                hint="Give the hub and its hosts the same version of qemuspawner.",
            ) from exc

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "SessionSpec":
        """The spec that the hub gave this process."""
        text = environ.get(SPEC_VARIABLE)
        if not text:
            raise SessionError(
                f"The environment variable {SPEC_VARIABLE} is missing.",
                hint="qemuspawner-session is started by JupyterHub, not by hand.",
            )
        return cls.from_json(text)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on the way to the desktop."""

    at: float  # seconds since the session's start
    text: Sentence
    level: Literal["info", "warning", "error"] = "info"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the guest was in the last while; None where that is not known."""

    cpu_percent: int | None = None  # of one of the host's cores; with several virtual CPUs it can be over 100
    disk_kib_s: int | None = None
    gpu_percent: int | None = None  # of the busiest one
    memory_mib: int | None = None  # of the host's, QEMU's own included
    # Of the guest's network, by its agent.
    received_kib_s: int | None = None
    sent_kib_s: int | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a desktop has used, from when it was there; moments before that do not count."""

    span_s: _Count  # for so long it was measured
    active_s: _Count = 0  # of these somebody typed or moved the pointer, to half a minute
    cpu_mean: _Cores = 0  # CPUs of the host, all its virtual ones together
    cpu_p95: _Cores = 0  # 95 % of the time it was no more than that
    cpu_peak: _Cores = 0  # the highest average of some 30 s
    written_mib: _Count = 0  # to its disks
    memory_mib: _Count | None = None  # the most at once; None where nobody knows
    # Whose word that is: the guest's, of what its programs held, or the host's, of all that it ever touched.
    memory_by: Literal["", "guest", "host"] = ""
    gpu_percent: _Count | None = None  # the most, of the busiest one


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asked for more time than the longest lifetime, and what was answered."""

    by: str
    reason: str
    seconds: int  # asked for
    at: float  # Unix seconds, as in the status
    answer: Literal["", "granted", "refused"] = ""  # "": none yet
    answered_by: str = ""
    granted_s: int = 0
    comment: str = ""


class StaffMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What the site's staff told everybody at this desktop."""

    by: str
    text: str
    at: float  # Unix seconds, as in the status
    number: int = 0  # counts up: the same words again are another message


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a desktop that runs, or is paused for it; the status' message says it in words."""

    kind: TroubleKind
    acts: tuple[Act, ...] = ()  # what can be done about it


class ScriptRun(msgspec.Struct, frozen=True, kw_only=True):
    """How the user's script went."""

    state: ScriptState
    code: int | None = None  # its exit code; None while it runs, and where nobody knows of one
    output: str = ""  # the end of what it wrote; as the guest says


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a session tells the hub before it goes."""

    state: Literal["ended", "suspended", "failed"]
    message: Sentence = ""  # why
    cause: Literal["", SuspendOn] = ""  # what ended it; "" where somebody did, in the desktop or on its page
    usage: Usage | None = None

    @classmethod
    def from_json(cls, text: bytes) -> "SessionEnd":
        """Raises msgspec.DecodeError where the text is not a SessionEnd."""
        return msgspec.json.decode(text, type=cls, dec_hook=decode_text)


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is doing. Moments are Unix seconds by this host's clock; compare them with `now`."""

    session_id: str
    state: State
    message: Sentence = ""  # what failed, why it ends, or what is wrong while it runs
    hint: Sentence = ""
    steps: tuple[Step, ...] = ()
    progress: int = 0  # percent of the way to the desktop
    machine: str = ""  # the machine's name
    name: str = ""  # what its user calls the desktop
    notes: str = ""  # what they want to remember about it
    cpus: int = 0
    memory_mib: int = 0
    gpus: Gpus | None = None  # what it has
    accelerator: Literal["", "kvm", "tcg"] = ""
    now: float = 0
    started: float = 0
    deadline: float = 0
    max_deadline: float = 0  # what extending can reach
    idle_deadline: float = 0  # 0: never
    last_activity: float = 0  # when somebody used it or the guest was busy; 0: could not yet
    load: Load | None = None
    usage: Usage | None = None  # of the whole session; None before its desktop is there
    awake: tuple[Busy, ...] = ()  # what kept it awake when its load was looked at last
    keyboard: str = ""  # the layout that was set from here; "": the guest has its own
    script: ScriptState = ""  # how its user's script does
    extension: Extension | None = None
    staff_message: StaffMessage | None = None  # the newest
    trouble: Trouble | None = None
    viewers: int = 0
    qemu_pid: int = 0
    walls: tuple[Wall, ...] = ()  # what stands around QEMU, as was seen before the guest ran
    way: Literal["", "cold", "restored", "woken"] = ""
    why: Sentence = ""  # why it came up this way, where there is more to say
    suspends: tuple[SuspendOn, ...] = ()  # what puts it to sleep, instead of ending it
    suspend_obstacle: Sentence = ""  # why it cannot be suspended; "" where it can
    folders: tuple[FolderStatus, ...] = ()  # of the host, in the guest or not
    remote_folders: tuple[RemoteFolderStatus, ...] = ()  # of servers, mounted by the guest or not
    version: int = 0  # counts up with every change of state or steps

    def to_json(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=pack)

    @classmethod
    def from_json(cls, text: bytes) -> "SessionStatus":
        """Raises msgspec.DecodeError where the text is not a SessionStatus."""
        return msgspec.json.decode(text, type=cls, dec_hook=decode_text)
