"""Servers of files in a network namespace: SFTP, SMB and NFS, real ones, with one account.

SFTP and SMB serve the same folder, NFS one in memory.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from network_world import World, entered
from own_accounts import knowing_account

# Connections are taken there, and nobody ever says a word.
SILENT_PORT = 2222
ACCOUNT, PASSWORD = "remote", "open, 'sésame' $HOME"
UID = 4711

_SSHD = """
Port 22
HostKey {folder}/hostkey
PidFile none
UsePAM no
StrictModes no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
"""
_SMB = """
[global]
server role = standalone server
private dir = {folder}/samba
lock directory = {folder}/samba
state directory = {folder}/samba
cache directory = {folder}/samba
pid directory = {folder}/samba
ncalrpc dir = {folder}/samba/ncalrpc
log file = {folder}/samba.log
passdb backend = tdbsam:{folder}/samba/passdb.tdb
server smb encrypt = required
smb ports = 445
load printers = no
disable spoolss = yes
[files]
path = {folder}
read only = no
"""
_NFS = """
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 2049; Enable_NLM = false; Enable_RQUOTA = false; }}
MEM {{ Inode_Size = 65536; }}
NFSv4 {{ Grace_Period = 0; Graceless = true; RecoveryRoot = {folder}/ganesha; }}
EXPORT {{
    Export_Id = 1; Path = /files; Pseudo = /files; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
    FSAL {{ Name = MEM; }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class FileServers:
    shared: Path
    host_key: str
    _namespace: str

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Meanwhile nothing comes from them, and nothing reaches them."""
        self._nft("table inet silent { chain input { type filter hook input priority 0; policy drop; }\n}")
        try:
            yield
        finally:
            self._nft("delete table inet silent")

    def _nft(self, rules: str) -> None:
        command = ["nsenter", f"--net=/run/netns/{self._namespace}", "nft", "-f", "-"]
        subprocess.run(command, input=rules.encode(), check=True)


@contextlib.contextmanager
def file_servers(around: World, folder: Path) -> Iterator[FileServers]:
    """They listen on all addresses of the peers of `around`, until the end."""
    shared = folder / "shared"
    shared.mkdir()
    os.chown(shared, UID, UID)
    (folder / "samba").mkdir()
    (folder / "ganesha").mkdir()
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
    ).stdout.strip()
    known = knowing_account(folder, name=ACCOUNT, uid=UID, home=folder, password=hashed)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name, text in (("sshd_config", _SSHD), ("smb.conf", _SMB), ("ganesha.conf", _NFS)):
        (folder / name).write_text(text.format(folder=folder))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "hostkey"], check=True)

    def command(*words: str) -> list[str]:
        there = ["nsenter", f"--net=/run/netns/{around.peers}"]
        # Whatever they start ends with them.
        alone = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        return [*there, *alone, *known, *words]

    subprocess.run(
        command("smbpasswd", "-c", f"{folder}/smb.conf", "-s", "-a", ACCOUNT),
        input=f"{PASSWORD}\n{PASSWORD}\n".encode(),
        check=True,
        capture_output=True,
    )
    with contextlib.ExitStack() as stack:
        for words in (
            ("/usr/sbin/sshd", "-D", "-f", f"{folder}/sshd_config", "-E", f"{folder}/sshd.log"),
            ("smbd", "-F", "--no-process-group", "-s", f"{folder}/smb.conf"),
            (
                *("ganesha.nfsd", "-F", "-f", f"{folder}/ganesha.conf"),
                *("-L", f"{folder}/ganesha.log", "-p", f"{folder}/ganesha.pid"),
            ),
        ):
            server = subprocess.Popen(command(*words), stdin=subprocess.DEVNULL)
            stack.callback(server.wait)
            stack.callback(server.kill)
        for port in (22, 445, 2049):
            ends = time.monotonic() + 30
            while not around.connects(around.peers, "127.0.0.1", port):
                assert time.monotonic() < ends, f"nobody listens on port {port}"
                time.sleep(0.1)
        key, value, *_ = (folder / "hostkey.pub").read_text().split()
        with entered(around.peers):
            stack.enter_context(socket.create_server(("", SILENT_PORT)))
        yield FileServers(shared=shared, host_key=f"{key} {value}", _namespace=around.peers)
