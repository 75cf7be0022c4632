"""Machine: what a user can choose, as its machine.toml says it.

Read and checked by `machines.catalogue`; travels to the session inside the SessionSpec. Every key is
described in docs/machines.md, in the same order.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from qemuspawner.network import Mode, Network
from qemuspawner.units import parse_mib, parse_seconds


class Mib(int):
    """A size in MiB; in machine.toml also text such as "2 GiB"."""


class Seconds(int):
    """A duration in seconds; in machine.toml also text such as "8 h"."""


Name = Annotated[str, Meta(min_length=1, max_length=200)]
Label = Annotated[str, Meta(min_length=1, max_length=60)]
Url = Annotated[str, Meta(max_length=2000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Architecture = Literal["x86_64", "aarch64"]
MachineType = Literal["q35", "pc", "virt"]
ImageFormat = Literal["qcow2", "raw", "iso", "vmdk", "vdi", "vhd", "vhdx", "qed"]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of machine.toml."""


class Image(_Table, frozen=True, kw_only=True):
    """The base image: never written, shared by all sessions."""

    file: Name  # relative to the machine's image folder; absolute after loading
    format: ImageFormat
    digest: Annotated[str, Meta(pattern="^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})?$")] = ""
    url: Url = ""  # where `qemuspawner machines fetch` takes it from
    mirrors: Annotated[tuple[Url, ...], Meta(max_length=8)] = ()  # where it is, too
    checksums: Url = ""  # a list of digests that names the file at `url`
    signature: Url = ""  # of `checksums`, or else of the image
    keyring: Annotated[str, Meta(max_length=1000)] = ""  # the keys that sign, beside machine.toml or absolute
    kernel: str = ""  # with firmware = "direct": the kernel to start, beside the image
    initrd: str = ""
    cmdline: Annotated[str, Meta(max_length=1000)] = ""
    cmdline_tcg: Annotated[str, Meta(max_length=1000)] = ""  # added to it where the guest is emulated
    drivers: str = ""  # an ISO beside the image, in a drive of its own: what an installation needs
    bus: Literal["virtio", "sata", "nvme", "scsi"] = "virtio"
    disk: Mib = Mib(0)  # size of the writable disk; 0: the image's own, or none beside an ISO


class Cpus(_Table, frozen=True, kw_only=True):
    default: Annotated[int, Meta(ge=1, le=512)] = 1
    offered: tuple[Annotated[int, Meta(ge=1, le=512)], ...] = (1, 2, 4)


class Memory(_Table, frozen=True, kw_only=True):
    default: Mib = Mib(2048)
    offered: tuple[Mib, ...] = (Mib(1024), Mib(2048), Mib(4096))


class Gpu(_Table, frozen=True, kw_only=True):
    need: Literal["none", "optional", "required"] = "none"
    plug: bool = True  # an optional one may come when the guest runs already: the template is used


class Lifetime(_Table, frozen=True, kw_only=True):
    default: Seconds = Seconds(8 * 3600)
    offered: tuple[Seconds, ...] = (Seconds(3600), Seconds(8 * 3600), Seconds(86400))
    max: Seconds = Seconds(2 * 86400)  # what extending can reach, counted from the start
    idle: Seconds = Seconds(0)  # without input for so long the session ends (0: never)


class Allow(_Table, frozen=True, kw_only=True):
    """Who may start the machine; with both lists empty, everybody."""

    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


class WebTool(_Table, frozen=True, kw_only=True):
    """A web server in the guest."""

    port: Port
    absolute_url: bool = False  # it knows under which path it is shown, and is asked for the whole of it


class Software(_Table, frozen=True, kw_only=True):
    """A program that is installed."""

    name: Label
    gpu: bool = False  # it uses a GPU where there is one


class Preset(_Table, frozen=True, kw_only=True):
    """A choice of size and time under one name; what it leaves out is as the machine has it."""

    name: Label
    description: Annotated[str, Meta(max_length=200)] = ""
    cpus: Annotated[int, Meta(ge=1, le=512)] | None = None
    memory: Mib | None = None
    gpu: Annotated[str, Meta(max_length=200)] = ""  # as the option of a start; "": as without a preset
    lifetime: Seconds | None = None


class Build(_Table, frozen=True, kw_only=True):
    """How `qemuspawner machines build` makes the image with mmdebstrap."""

    suite: Name
    base: str = ""  # the machine whose build this one goes on from: its packages, files and script come first
    packages: tuple[Name, ...] = ()
    container: Annotated[str, Meta(max_length=1000)] = ""  # an OCI image that runs in the machine
    exclude: tuple[Name, ...] = ()  # path globs that dpkg leaves out
    files: str = ""  # a folder beside machine.toml, laid over the new root folder before the packages come
    script: str = ""  # a file beside machine.toml, run on the host with the new root folder as its argument
    first_boot: str = ""  # a file beside machine.toml, which the image itself runs at its first boot
    disk: Mib = Mib(4096)


class Machine(_Table, frozen=True, kw_only=True):
    """An entry of the catalogue."""

    id: str = ""  # the folder's name
    folder: str = ""  # where machine.toml lies
    name: Name
    description: Annotated[str, Meta(max_length=2000)] = ""
    icon: str = ""  # an SVG beside machine.toml
    version: Annotated[str, Meta(max_length=50)] = ""
    owner: Annotated[str, Meta(max_length=255)] = ""  # the user whose desktop it was made from
    software: Annotated[tuple[Label | Software, ...], Meta(max_length=100)] = ()
    hidden: bool = False  # not offered to anybody
    download: bool = False  # who may start it may take its image home, and that of a desktop of theirs
    architecture: Architecture = "x86_64"
    machine_type: MachineType = "q35"  # after loading "virt", where another architecture knows no other
    firmware: Literal["bios", "uefi", "direct"] = "bios"
    secure_boot: bool = False  # UEFI starts only what Microsoft's keys have signed
    tpm: bool = False  # the guest gets a TPM 2.0
    system: Literal["linux", "windows", "other"] = "linux"  # what the guest is told in its own terms
    display: Literal["virtio", "std", "qxl", "bochs", "cirrus", "vmware"] = "std"
    agent: bool = False  # the guest runs qemu-guest-agent; the desktop is ready when it answers
    clipboard: bool = False  # the guest runs spice-vdagent
    sound: bool = False  # the guest gets a sound card
    home: Annotated[str, Meta(pattern="^(/.*)?$", max_length=200)] = ""  # the user's home in the guest
    login: Literal["machine", "user"] = "machine"  # whose account the desktop is
    sudo: bool = False  # the user may become root, where the hub does not say otherwise
    cloud_init: bool = False  # the guest has cloud-init
    network: Mode | Network | None = None  # None: as the hub says
    shutdown: Seconds = Seconds(15)  # what the guest gets to shut down before it is switched off
    ports: dict[Name, Port | WebTool] = {}
    image: Image
    cpus: Cpus = Cpus()
    memory: Memory = Memory()
    gpu: Gpu = Gpu()
    lifetime: Lifetime = Lifetime()
    presets: Annotated[tuple[Preset, ...], Meta(max_length=12)] = ()
    allow: Allow = Allow()
    build: Build | None = None

    @property
    def wants_network(self) -> Network | None:
        """`network` in its long form."""
        return Network(mode=self.network) if isinstance(self.network, str) else self.network

    @property
    def has_seed(self) -> bool:
        """Whether cloud-init is told by a volume what a guest agent would do."""
        return self.cloud_init and not self.agent

    @property
    def has_lan(self) -> bool:
        """Whether it has a second card, for an interface of the host's."""
        return self.wants_network is not None and self.wants_network.mode in ("bridge", "tap")

    @property
    def web_tools(self) -> dict[str, WebTool]:
        """`ports`, each in its long form."""
        return {
            name: port if isinstance(port, WebTool) else WebTool(port=port)
            for name, port in self.ports.items()
        }

    @property
    def programs(self) -> list[Software]:
        """`software`, each in its long form."""
        return [item if isinstance(item, Software) else Software(name=item) for item in self.software]

    def find_preset(self, name: object) -> Preset | None:
        return next((preset for preset in self.presets if preset.name == name), None)


def decode_unit(kind: type, value: object) -> object:
    """Msgspec's hook for Mib and Seconds."""
    if kind is Mib:
        return Mib(parse_mib(value))
    if kind is Seconds:
        return Seconds(parse_seconds(value))
    raise NotImplementedError(kind)


def encode_unit(value: object) -> object:
    """The reverse of `decode_unit`: a plain number."""
    if isinstance(value, (Mib, Seconds)):
        return int(value)
    raise NotImplementedError(type(value))
