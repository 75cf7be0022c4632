"""A real Grid Engine on one machine: its master and one execution host, which are this host.

Needs root and Debian's gridengine-master, gridengine-exec and gridengine-client; nothing in /etc or /var.
"""

import contextlib
import os
import re
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

SLOTS = 4
_PROGRAMS = Path("/usr/lib/gridengine")
_SHARED = Path("/usr/share/gridengine")
_UP_S = 60

# From `qconf -sq`, but for what the tests need.
_QUEUE = {
    "qname": "desktop.q",
    "hostlist": "localhost",
    "slots": str(SLOTS),
    "shell": "/bin/sh",
    "shell_start_mode": "unix_behavior",
    "pe_list": "smp",
    # A machine that runs tests is busy.
    "load_thresholds": "NONE",
}
_PARALLEL = """\
pe_name            smp
slots              999
user_lists         NONE
xuser_lists        NONE
start_proc_args    NONE
stop_proc_args     NONE
allocation_rule    $pe_slots
control_slaves     FALSE
job_is_first_task  TRUE
urgency_slots      min
accounting_summary FALSE
qsort_args         NONE
"""


@dataclass
class GridEngineCell:
    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        master, execution = free_ports(2)
        self.environment = {
            "SGE_ROOT": str(self.folder / "root"),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(master),
            "SGE_EXECD_PORT": str(execution),
            "SGE_CLUSTER_NAME": "qs",
        }

    @property
    def path(self) -> str:
        """Where its commands are: Debian's wrappers would look in /etc first."""
        return f"{_PROGRAMS}:/usr/bin:/bin"

    def run(self, command: str, *arguments: str, check: bool = True) -> str:
        # Jobs have the environment of who starts the execution daemon.
        done = subprocess.run(
            [_PROGRAMS / command, *arguments],
            env={**self.environment, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, cwd="/",
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command} {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """Those that wait or run."""
        return re.findall(r"<JB_job_number>(\d+)<", self.run("qstat", "-xml", "-u", "*"))

    def start(self) -> None:
        self._write_cell()
        self.run("sge_qmaster")
        self._wait(lambda: self.run("qconf", "-sconf", check=False) != "")
        self.run("qconf", "-as", "localhost")
        self.run("sge_execd")
        self._wait(lambda: "localhost" in self.run("qconf", "-sel", check=False))
        self._configure()
        self._wait(lambda: "lx-amd64" in self.run("qstat", "-f", check=False))

    def stop(self) -> None:
        for pid_file in (self.folder / "execd/localhost/execd.pid", self.folder / "qmaster/qmaster.pid"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)

    def _write_cell(self) -> None:
        common = self.folder / "root/default/common"
        for folder in (common, self.folder / "qmaster/job_scripts", self.folder / "execd"):
            folder.mkdir(parents=True)
        spool = f"{common};{self.folder}/qmaster"
        (common / "bootstrap").write_text(
            "admin_user none\ndefault_domain none\nignore_fqdn true\nspooling_method classic\n"
            f"spooling_lib libspoolc\nspooling_params {spool}\nbinary_path {_PROGRAMS}\n"
            f"qmaster_spool_dir {self.folder}/qmaster\nsecurity_mode none\n"
            "listener_threads 1\nworker_threads 1\nscheduler_threads 1\n"
        )
        (common / "act_qmaster").write_text("localhost\n")
        # What this host calls itself, it is called by the address that its connections come from.
        (common / "host_aliases").write_text(f"localhost {socket.gethostname()}\n")
        changed = {
            "execd_spool_dir": f"{self.folder}/execd",
            "mailer": "/bin/true",
            "min_uid": "0",
            "min_gid": "0",
            "load_report_time": "00:00:02",
        }
        configuration = self._write("configuration", (_SHARED / "default-configuration").read_text(), changed)
        self.run("spoolinit", "classic", "libspoolc", spool, "init")
        resources = _SHARED / "util/resources"
        for kind, given in (
            ("configuration", configuration),
            ("complexes", resources / "centry"),
            ("usersets", resources / "usersets"),
            ("managers", "root"),
        ):
            self.run("spooldefaults", kind, str(given))

    def _configure(self) -> None:
        quick = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
        self.run("qconf", "-Msconf", str(self._write("scheduler", self.run("qconf", "-ssconf"), quick)))
        self.run("qconf", "-Ap", str(self._write("parallel", _PARALLEL, {})))
        self.run("qconf", "-Aq", str(self._write("queue", self.run("qconf", "-sq"), _QUEUE)))

    def _write(self, name: str, text: str, changed: dict[str, str]) -> Path:
        """A file of settings, those of `text` but for what is changed."""
        for key, value in changed.items():
            text = re.sub(rf"^{key} .*$", f"{key} {value}".replace("\\", r"\\"), text, flags=re.MULTILINE)
        file = self.folder / name
        file.write_text(text)
        return file

    def _wait(self, is_so: object) -> None:
        until = time.monotonic() + _UP_S
        while not is_so():  # type: ignore[operator]
            assert time.monotonic() < until, (self.folder / "qmaster/messages").read_text()[-2000:]
            time.sleep(0.05)


@contextlib.contextmanager
def running_cell() -> Iterator[GridEngineCell]:
    """An execution host with a queue; everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="qs-gridengine-"))
    folder.chmod(0o755)
    cell = GridEngineCell(folder)
    try:
        cell.start()
        yield cell
    finally:
        cell.stop()
        shutil.rmtree(folder, ignore_errors=True)
