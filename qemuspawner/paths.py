"""Every file and directory name in use, one line of meaning each."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).parent
# In a wheel the shared files lie inside the package, in a checkout beside it.
_INSTALLED_SHARE = _PACKAGE / "share"
SHARE = _INSTALLED_SHARE if _INSTALLED_SHARE.is_dir() else _PACKAGE.parent / "share"

TEMPLATES = SHARE / "templates"  # Jinja: the options form, the desktop page, the hub's pages that we extend
LOCALES = SHARE / "locale"  # gettext's catalogues, a folder for each language
STATIC = SHARE / "static"  # the desktop page's scripts and styles; vendor/ holds the noVNC bundle
PERSONALISE_SCRIPT = SHARE / "guest" / "personalise.sh"  # what the guest agent runs after each start
START_SCRIPT = SHARE / "guest" / "script.sh"  # what runs a user's own script in a new desktop
CLOUD_SCRIPT = SHARE / "guest" / "cloud-init.sh"  # what has the guest's cloud-init carry out a user's wishes
FIRST_BOOT_SCRIPT = SHARE / "guest" / "first-boot.sh"  # what cloud-init runs where there is no guest agent
PACKAGES_SCRIPT = SHARE / "guest" / "packages.sh"  # what installs packages with whatever the guest has for it
FILES_SCRIPT = SHARE / "guest" / "files.sh"  # what the guest agent has done with the user's files
MOUNTING_SCRIPT = SHARE / "guest" / "mounting.sh"  # what the next two begin with
FOLDERS_SCRIPT = SHARE / "guest" / "folders.sh"  # what mounts and unmounts the host's folders in the guest
REMOTE_SCRIPT = SHARE / "guest" / "remote_folder.sh"  # the same for a folder of a server
EXAMPLE_MACHINES = SHARE / "machines" if SHARE is _INSTALLED_SHARE else _PACKAGE.parent / "machines"

DEBIAN_PACKAGES = SHARE / "debian" / "packages"  # what a host needs of Debian, by what for
SYSTEMD_UNITS = SHARE / "systemd"  # units to copy: the hub, its proxy, and what TLJH's hub needs besides

MACHINE_FILE = "machine.toml"
SAVED_FILE = "saved.json"
DIGESTS = "digests.json"  # beside the files of an image: what they hold

# QEMU's sockets. Relative to its working directory they are short, and no host path is among its options.
VNC_SOCKET = "vnc"
QMP_SOCKET = "qmp"
AGENT_SOCKET = "qga"
# A unix socket's path, with its closing NUL, fits in 108 bytes.
MAX_SOCKET_PATH = 107


def session_id(user: str, server_name: str) -> str:
    """The directory name of a user's server: 20 hex digits, the same at every start.

    Names may be e-mail addresses or Unicode, so they never become a path.
    """
    return hashlib.sha256(f"{user}\0{server_name}".encode()).hexdigest()[:20]


def default_state() -> Path:
    """The state folder where none is given: the host's for root, the account's own for everybody else."""
    if os.geteuid() == 0:
        return Path("/var/lib/qemuspawner")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qemuspawner"


@dataclass(frozen=True, kw_only=True)
class StatePaths:
    """The state folder of a host."""

    root: Path

    @classmethod
    def of(cls, folder: str) -> "StatePaths":
        return cls(root=Path(folder))

    @property
    def images(self) -> Path:
        """`images/MACHINE/`: disk images and kernels, written by `qemuspawner machines`, read by sessions."""
        return self.root / "images"

    @property
    def machines(self) -> Path:
        """`machines/ID/`: the machines that administrators add and change on the hub; they count first."""
        return self.root / "machines"

    @property
    def removed_machines(self) -> Path:
        """`removed-machines/ID-MOMENT/`: machines that were removed with their images, for some days."""
        return self.root / "removed-machines"

    @property
    def downloads(self) -> Path:
        """`downloads/KEY/`: images that users take home, for a day; see `machines.downloads`."""
        return self.root / "downloads"

    @property
    def sessions(self) -> Path:
        """`sessions/ID/`: one directory a session."""
        return self.root / "sessions"

    @property
    def gpus(self) -> Path:
        """`gpus/`: a file for each GPU, locked by the session that has it."""
        return self.root / "gpus"

    @property
    def templates(self) -> Path:
        """`templates/MACHINE-DIGEST/`: saved VMs that sessions start from, written by `qemuspawner warm`."""
        return self.root / "templates"

    @property
    def records(self) -> Path:
        """`hub/records.sqlite`: the hub's own records, for its account alone."""
        return self.root / "hub" / "records.sqlite"

    @property
    def probes(self) -> Path:
        """`sessions/.probes-UID/`: what this host can do, as found by our account since the last boot."""
        return self.probes_of(os.geteuid())

    def probes_of(self, uid: int) -> Path:
        return self.sessions / f".probes-{uid}"

    @property
    def audit(self) -> Path:
        """`sessions/.audit-UID/`: the audit log of our account's sessions, a file a day."""
        return self.sessions / f".audit-{os.geteuid()}"

    def certificates(self, session_id: str) -> Path:
        """`certs/ID/`: a session's part of JupyterHub's internal TLS, for its account alone."""
        return self.root / "certs" / session_id

    @property
    def jobs(self) -> Path:
        """`jobs/NAME`: what a session is given that is a batch system's job, until it takes it."""
        return self.root / "jobs"

    def session(self, session_id: str) -> "SessionPaths":
        return SessionPaths(root=self.sessions / session_id)


@dataclass(frozen=True, kw_only=True)
class SessionPaths:
    """Everything of one session; mode 0700."""

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by the supervisor for as long as it lives; the lock is the session's existence."""
        return self.root / "lock"

    @property
    def spec(self) -> Path:
        """The SessionSpec, for whoever sums up what is in use."""
        return self.root / "spec.json"

    @property
    def resolv_conf(self) -> Path:
        """Which name servers QEMU asks for its guest."""
        return self.root / "resolv.conf"

    @property
    def seed(self) -> Path:
        """What cloud-init is told at the first boot, in a machine without a guest agent."""
        return self.root / "seed.iso"

    @property
    def vm(self) -> Path:
        """The only directory of the session that QEMU may see and write."""
        return self.root / "vm"

    def overlay(self, depth: int) -> Path:
        """The session's own writes: a qcow2 on `depth` frozen ones, which lie on the base image."""
        return self.vm / f"disk-{depth}.qcow2"

    @property
    def firmware_vars(self) -> Path:
        """The VM's own copy of the UEFI variables."""
        return self.vm / "vars.fd"

    @property
    def tpm(self) -> Path:
        """What the VM's TPM keeps: of its own process, and out of QEMU's reach."""
        return self.root / "tpm"

    @property
    def layers(self) -> Path:
        """The frozen disks under the overlay, out of QEMU's reach; further names of what was saved."""
        return self.root / "layers"

    @property
    def saved(self) -> Path:
        """`saved/NAME/`: the suspended session and its checkpoints; they stay when nothing runs."""
        return self.root / "saved"

    @property
    def vnc_socket(self) -> Path:
        """QEMU's sockets, made in `vm` and moved here, out of QEMU's reach, as soon as they are there."""
        return self.root / VNC_SOCKET

    @property
    def qmp_socket(self) -> Path:
        return self.root / QMP_SOCKET

    @property
    def agent_socket(self) -> Path:
        """The QEMU guest agent's channel."""
        return self.root / AGENT_SOCKET


@dataclass(frozen=True, kw_only=True)
class SavedPaths:
    """The folder of a saved VM: a template, a suspended session or a checkpoint."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What was saved and what it depends on; written last, so without it the folder is a draft."""
        return self.root / SAVED_FILE

    @property
    def state(self) -> Path:
        """QEMU's migration stream: the devices, and the memory too unless `memory` has it."""
        return self.root / "state"

    @property
    def memory(self) -> Path:
        """A template's memory, a sparse file that many VMs map copy-on-write."""
        return self.root / "memory"

    def layer(self, depth: int) -> Path:
        """One of the frozen disks, counted from the base image."""
        return self.root / f"disk-{depth}.qcow2"

    @property
    def firmware_vars(self) -> Path:
        return self.root / "vars.fd"

    @property
    def tpm_state(self) -> Path:
        return self.root / "tpm"

    @property
    def picture(self) -> Path:
        """The screen at that moment, a PNG."""
        return self.root / "screen.png"
