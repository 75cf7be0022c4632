"""A real Slurm on one machine: munged, slurmctld, and a slurmd for each node, in a network namespace each.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge; no systemd, nothing in /etc.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from free_ports import free_ports

NODES = 3
CPUS = 4
MEMORY_MIB = 6000
GPUS = 2
# Of the addresses that are for such tests (RFC 2544).
_NET = "198.18.77"
_UP_S = 60


@dataclass
class SlurmCluster:
    folder: Path
    tag: str = field(default_factory=lambda: f"qs{os.getpid()}")

    @property
    def config(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def hub_address(self) -> str:
        """Where nodes reach what listens on this host."""
        return f"{_NET}.1"

    def run(self, *command: str, check: bool = True, errors: bool = False) -> str:
        """What it prints, with what it complains about where `errors` are wanted."""
        done = subprocess.run(
            command, env={**os.environ, "SLURM_CONF": str(self.config)}, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout + (done.stderr if errors else "")

    # Nodes

    def boot(self, node: int) -> None:
        # Not `ip netns exec`: that mounts a /sys without cgroups.
        self.run(
            *("nsenter", f"--net=/run/netns/{self.tag}-n{node}", "unshare", "--uts", "--"),
            *("sh", "-c", 'hostname "$1"; exec slurmd -f "$2" -N "$1"', "sh", f"n{node}", str(self.config)),
        )

    def wait_until_idle(self) -> None:
        command = ("sinfo", "-h", "-p", "desktop", "-t", "idle", "-o", "%D")
        self._wait(lambda: self.run(*command, check=False).strip() == str(NODES))

    def wait_until_answering(self, node: int) -> None:
        """It may have jobs."""
        command = ("sinfo", "-h", "-n", f"n{node}", "-p", "desktop", "-o", "%t")
        self._wait(lambda: self.run(*command, check=False).strip() in ("idle", "mix", "alloc"))

    def cut(self, node: int) -> None:
        """Take its network away; what runs there goes on."""
        self.run("ip", "link", "set", f"{self.tag}-{node}", "down")

    def heal(self, node: int) -> None:
        self.run("ip", "link", "set", f"{self.tag}-{node}", "up")

    @contextlib.contextmanager
    def is_lost(self, node: int) -> Iterator[None]:
        """It is cut off, and Slurm has given it up, as it does by itself after SlurmdTimeout."""
        self.cut(node)
        try:
            self.run("scontrol", "update", f"nodename=n{node}", "state=down", "reason=cut off")
            yield
        finally:
            self.heal(node)
            self.run("scontrol", "update", f"nodename=n{node}", "state=resume")
            self.wait_until_answering(node)

    def kill(self, node: int) -> None:
        """As if its power were gone."""
        for pid in self._pids(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def is_drained(self, node: int) -> Iterator[None]:
        """Nothing new starts there."""
        self.run("scontrol", "update", f"nodename=n{node}", "state=drain", "reason=test")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"nodename=n{node}", "state=resume")

    @contextlib.contextmanager
    def is_full(self) -> Iterator[list[str]]:
        """Every node has a job that takes all of it; their numbers."""
        fill = ("sbatch", "--parsable", "--output=/dev/null", f"-c{CPUS}", "-t5", "--wrap", "sleep 300")
        jobs = [self.run(*fill).strip() for _ in range(NODES)]
        try:
            yield jobs
        finally:
            self.run("scancel", *jobs)

    @contextlib.contextmanager
    def controller_is_down(self) -> Iterator[None]:
        """As for an upgrade: it has written down which jobs there are."""
        pid = int((self.folder / "slurmctld.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self._wait(lambda: not Path(f"/proc/{pid}").exists())
        try:
            yield
        finally:
            self.run("slurmctld", "-f", str(self.config))
            self._wait(lambda: "UP" in self.run("scontrol", "ping", check=False))

    @contextlib.contextmanager
    def munge_is_down(self) -> Iterator[None]:
        socket = self.folder / "munge.socket"
        away = socket.rename(self.folder / "munge.away")
        try:
            yield
        finally:
            away.rename(socket)

    def _pids(self, node: int) -> list[int]:
        """All processes in its network namespace."""
        with contextlib.suppress(FileNotFoundError):
            wanted = f"net:[{Path(f'/run/netns/{self.tag}-n{node}').stat().st_ino}]"
            return [
                int(path.parent.parent.name)
                for path in Path("/proc").glob("[0-9]*/ns/net")
                if _link(path) == wanted
            ]
        return []

    # The whole

    def start(self) -> None:
        self._write_config()
        self._make_networks()
        munge = self.folder / "munge"
        self.run(
            *("munged", "--force", f"--key-file={munge}/key", f"--socket={self.folder}/munge.socket"),
            *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        )
        self._wait(lambda: (self.folder / "munge.socket").is_socket())
        self.run("slurmctld", "-f", str(self.config))
        for node in range(1, NODES + 1):
            self.boot(node)
        self.wait_until_idle()

    def stop(self) -> None:
        for node in range(1, NODES + 1):
            self.kill(node)
        for path in (self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        for node in range(1, NODES + 1):
            self.run("ip", "netns", "del", f"{self.tag}-n{node}", check=False)
            self.run("ip", "link", "del", f"{self.tag}-{node}", check=False)
        self.run("ip", "link", "del", f"{self.tag}-br", check=False)

    def _make_networks(self) -> None:
        bridge = f"{self.tag}-br"
        self.run("ip", "link", "add", bridge, "type", "bridge")
        self.run("ip", "addr", "add", f"{self.hub_address}/24", "dev", bridge)
        self.run("ip", "link", "set", bridge, "up")
        for node in range(1, NODES + 1):
            space, link = f"{self.tag}-n{node}", f"{self.tag}-{node}"
            self.run("ip", "netns", "add", space)
            self.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            self.run("ip", "link", "set", link, "master", bridge, "up")
            self.run("ip", "-n", space, "link", "set", "lo", "up")
            self.run("ip", "-n", space, "addr", "add", f"{_NET}.{10 + node}/24", "dev", "eth0")
            self.run("ip", "-n", space, "link", "set", "eth0", "up")

    def _write_config(self) -> None:
        folder, last = self.folder, NODES
        (folder / "munge").mkdir(mode=0o700)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (folder / "state").mkdir(mode=0o700)
        (folder / "dev").mkdir()
        for node in range(1, NODES + 1):
            (folder / f"spool.n{node}").mkdir()
        for gpu in range(GPUS):
            (folder / "dev" / f"nvidia{gpu}").touch()
        (folder / "gres.conf").write_text(
            "AutoDetect=off\n"
            + "".join(f"NodeName=n{last} Name=gpu Type=t4 File={folder}/dev/nvidia{n}\n" for n in range(GPUS))
        )
        ports = free_ports(2)
        nodes = "".join(
            f"NodeName=n{n} NodeHostname=n{n} NodeAddr={_NET}.{10 + n} Port={ports[1]} CPUs={CPUS}"
            f" RealMemory={MEMORY_MIB}{f' Gres=gpu:t4:{GPUS}' if n == last else ''}\n"
            for n in range(1, NODES + 1)
        )
        self.config.write_text(f"""\
ClusterName={self.tag}
SlurmctldHost={socket.gethostname()}({self.hub_address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=100000,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=30
SlurmdTimeout=10
MessageTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}PartitionName=desktop Nodes=n[1-{NODES}] Default=YES DefaultTime=10:00 MaxTime=4:00:00 State=UP
PartitionName=urgent Nodes=n[1-{NODES}] PriorityTier=10 DefaultTime=5:00 MaxTime=5:00 State=UP
PartitionName=short Nodes=n1 DefaultTime=1:00 MaxTime=5:00 State=UP
PartitionName=gpu Nodes=n{last} DefaultTime=10:00 MaxTime=1:00:00 State=UP
""")

    def _wait(self, is_so: object) -> None:
        until = time.monotonic() + _UP_S
        while not is_so():  # type: ignore[operator]
            assert time.monotonic() < until, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.05)


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # it has ended
        return ""


def find_obstacle() -> str:
    """Why no node can be made here; "" where it can."""
    if os.geteuid() != 0:
        return "Nodes are network namespaces of their own, which root makes."
    name = f"qs{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    # In many containers not even root may.
    return f"Nodes are network namespaces of their own: {made.stderr.strip()}" if made.returncode else ""


@contextlib.contextmanager
def running_cluster() -> Iterator[SlurmCluster]:
    """Three idle nodes; everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="qs-slurm-"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)
