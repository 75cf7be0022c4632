"""DARTS itself, as Debian 12 has it (qemu-web-desktop 23.02.16): installed, running, asked as by browsers.

It is installed from Debian's archive into a root folder of its own, and configured as the package configures
it. Two things around it are ours: where KVM does not work its QEMU is started with TCG, and it reads a quiet
load average, as it refuses everybody on a busy host. Nothing of it is part of this project.
"""

import contextlib
import html
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

PACKAGE, SUITE = "qemu-web-desktop", "bookworm"
_URL = "http://127.0.0.1"
_CGI = f"{_URL}/cgi-bin/qemu-web-desktop.pl"
_LINK = re.compile(r"href=['\"]?(?P<url>http://[^'\" >]+/vnc\.html\?[^'\" >]+)")
_NAME = re.compile(r"name=session_stop value=\"?(?P<name>[\w.-]+)")
_UP_S = 30

# Stands before QEMU on the path, and changes those of its words that ask for KVM.
_WITHOUT_KVM = """#!/bin/bash
words=()
for word; do
    case $word in
        -enable-kvm) ;;
        pc,accel=kvm) words+=(pc,accel=tcg) ;;
        host,kvm=off) words+=(max) ;;
        *) words+=("$word") ;;
    esac
done
exec /usr/bin/qemu-system-x86_64 "${words[@]}"
"""
# Where Perl looks first.
_QUIET = "package Sys::CpuLoad; sub load { return (0, 0, 0) } 1;\n"
# $1 is the root, $2 a folder with the machines' disks.
_RUN = """set -e
mount -t proc proc "$1/proc"
mount --bind "$2" "$1/var/lib/qemu-web-desktop/machines"
exec chroot "$1" /usr/sbin/apache2ctl -D FOREGROUND
"""


def install(root: Path) -> str:
    """Install it into the folder, unless it is there; its version. Needs root and Debian's archive."""
    if not (root / "usr/lib/cgi-bin/qemu-web-desktop.pl").exists():
        command = ["mmdebstrap", "--mode=root", "--variant=apt", f"--include={PACKAGE}"]
        command += ['--aptopt=Apt::Install-Recommends "false"', SUITE]
        # Half a root is none.
        part = root.with_name(root.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run([*command, part], check=True, stdout=subprocess.DEVNULL)
        part.rename(root)
    ask = ["chroot", root, "dpkg-query", "-W", "-f", "${Version}", PACKAGE]
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout


class RefusedError(Exception):
    """Its page brings no link."""


@dataclass(frozen=True, kw_only=True)
class Started:
    """What its page says of a session."""

    websocket: str  # the URL to which the page of its link connects
    name: str


@dataclass(frozen=True, kw_only=True)
class Darts:
    """A running one, in the network namespace of this process."""

    pid: int

    async def start(self, http: aiohttp.ClientSession, user: str, machine: str) -> Started:
        """Press Create, and read the page that comes back."""
        form = {"user": user, "password": "bench", "machine": machine, "cpu": "1", "memory": "1"}
        form |= {"snapshot_lifetime": "43200", "create": "Create"}
        async with http.post(_CGI, data=form) as answer:
            page = await answer.text()
        link = _LINK.search(page)
        if link is None:
            raise RefusedError(" ".join(re.sub(r"<[^>]*>", " ", page).split())[-300:])
        token = html.unescape(link["url"]).partition("token=")[2]
        port = link["url"].split("/")[2].partition(":")[2]
        name = _NAME.search(page)
        assert name is not None, page
        return Started(websocket=f"ws://127.0.0.1:{port}/?token={token}", name=name["name"])

    async def stop(self, http: aiohttp.ClientSession, started: Started) -> None:
        async with http.post(_CGI, data={"session_stop": started.name}) as answer:
            assert answer.status == 200


@contextlib.contextmanager
def running_darts(root: Path, machines: Path, work: Path, *, kvm: bool) -> Iterator[Darts]:
    """DARTS with the disks in the folder `machines`; only in a PID and a network namespace of one's own."""
    program = root / "usr/local/bin/qemu-system-x86_64"
    program.unlink(missing_ok=True)
    if not kvm:
        program.write_text(_WITHOUT_KVM)
        program.chmod(0o755)
    quiet = root / "etc/perl/Sys/CpuLoad.pm"
    quiet.parent.mkdir(exist_ok=True)
    quiet.write_text(_QUIET)
    # What the one before has left: desktops, what it knows of them, and its process's number.
    for folder in ("var/lib/qemu-web-desktop/snapshots", "tmp", "run/apache2"):
        (root / folder).mkdir(exist_ok=True)
        subprocess.run(["find", root / folder, "-mindepth", "1", "-delete"], check=True)
    # Its mounts are in a namespace that ends with it.
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _RUN, "sh", root, machines]
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
    with (work / "darts.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_up(process, work / "darts.log")
            yield Darts(pid=process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
            _end_what_is_left(root)


def _wait_until_up(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{_URL}/qemu-web-desktop/"):
            return
        time.sleep(0.1)


def processes_of(root: Path) -> dict[int, list[str]]:
    """Its processes and their words: those whose root folder is its own."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0] and (entry / "root").readlink() == root:
                    found[int(entry.name)] = words
    return found


def _end_what_is_left(root: Path) -> None:
    """Guests and the daemon of its displays, which outlive its Apache."""
    while left := processes_of(root):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
