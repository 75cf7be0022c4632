"""What the guest mounts a server's folder with: the programs of NFS, SMB and SSHFS, and what they are told.

None is told the password here: each reads it from its standard input.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import assert_never

from qemuspawner.qemu.folders import Ids
from qemuspawner.spec import RemoteFolder

# In the guest; below it are the folders themselves, each by its number.
_PLACE = "/run/qemuspawner-remote"
# By this name a server's key is kept, whatever its address and port are.
_KEY_NAME = "qemuspawner"

# No option of ssh's, and nothing that separates options, hosts or folders.
_ACCOUNT = re.compile(r"[\w.][\w.@+$ -]{0,127}")
_MAX_PASSWORD = 512  # as mount.cifs has it


@dataclass(frozen=True, kw_only=True, repr=False)
class Login:
    """Who the user is for a server. It is in no `repr`, so in no log."""

    account: str
    password: str

    def __post_init__(self) -> None:
        if not _ACCOUNT.fullmatch(self.account):
            raise ValueError("'account' is no account's name of 1 to 128 letters, digits and . @ + $ - _")
        if not 0 < len(self.password.encode()) <= _MAX_PASSWORD or not self.password.isprintable():
            raise ValueError(f"'password' is not a line of 1 to {_MAX_PASSWORD} bytes")


def real_place(number: int) -> str:
    """Where the guest mounts the folder of this number, before it is shown where its user finds it."""
    # No such name begins another: who is at work for one is found by it.
    return f"{_PLACE}/{number:02}"


def mount_command(folder: RemoteFolder, number: int, login: Login | None, ids: Ids) -> list[str]:
    """What mounts it at `real_place(number)`, for the guest's user alone; run as root."""
    # Nothing of a server's makes root of somebody in the guest.
    common = ["nosuid", "nodev", "ro" if folder.read_only else "rw"]
    port = [f"port={folder.port}"] if folder.port else []
    place = real_place(number)
    account = login.account if login is not None else ""
    match folder.kind:
        case "nfs":
            # A server that is silent is an error for who asks, after 30 s, rather than a wait without end.
            options = [*common, "softerr", "timeo=100", "retrans=3", "retry=0", *port]
            return ["mount.nfs4", f"{_host(folder)}:{folder.path}", place, "-o", ",".join(options)]
        case "cifs":
            domain = [f"domain={folder.domain}"] if folder.domain else []
            whose = [f"uid={ids.uid}", f"gid={ids.gid}", "forceuid", "forcegid"]
            modes = ["file_mode=0700", "dir_mode=0700"]
            # Encrypted; and a connection on which nothing comes back ends after 20 s.
            alive = ["seal", "echo_interval=10"]
            # Debian 12's does not read it where PASSWD_FD says.
            who = [f"username={account}", *domain, "credentials=/dev/stdin"]
            options = [*who, *whose, *modes, *common, *alive, *port]
            return ["mount.cifs", f"//{folder.server}{folder.path}", place, "-o", ",".join(options)]
        case "sshfs":
            whose = ["allow_other", "default_permissions", f"uid={ids.uid}", f"gid={ids.gid}"]
            keys = ["StrictHostKeyChecking=yes", f"HostKeyAlias={_KEY_NAME}"]
            known = [*keys, f"UserKnownHostsFile={place}.hosts"]
            # A connection on which nothing comes back ends after 30 s.
            alive = ["ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3"]
            asks = ["PubkeyAuthentication=no", "PreferredAuthentications=password,keyboard-interactive"]
            # Why it fails is written there; SSHFS itself says nothing of it.
            log = f"ssh_command=ssh -E {place}.log"
            options = [*common, *whose, "password_stdin", log, *known, *alive, *asks, *port]
            command = ["sshfs", "-F", "/dev/null", f"{account}@{_host(folder)}:{folder.path}", place]
            # One each: there is a comma in one of them.
            return [*command, *(word for option in options for word in ("-o", option.replace(",", "\\,")))]
        case _:
            assert_never(folder.kind)


def make_input(folder: RemoteFolder, login: Login | None) -> bytes:
    """What the command reads."""
    if login is None:
        return b""
    return f"{'password=' if folder.kind == 'cifs' else ''}{login.password}\n".encode()


def environment(folder: RemoteFolder) -> dict[str, str]:
    """What the script that runs the command is told beside it."""
    return {"HOST_KEY": folder.host_key} if folder.host_key else {}


def _host(folder: RemoteFolder) -> str:
    try:
        is_ipv6 = ipaddress.ip_address(folder.server).version == 6
    except ValueError:
        is_ipv6 = False
    return f"[{folder.server}]" if is_ipv6 else folder.server
