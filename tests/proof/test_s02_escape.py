"""Who escapes from QEMU finds nothing: a program in its place, inside the walls that the product builds."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import broken_out
import network_world
import pytest
from network_world import HOST, PEERS, PORT, World
from proofs import Proof
from seccomp_filter import read_filter
from sessions import Session, account, wait_for

from qemuspawner.network import Network
from qemuspawner.paths import StatePaths

pytestmark = pytest.mark.goal("S2")

ALLOWED = PEERS["internet"]
NETWORKS = {"none": Network(), "allow": Network(mode="allow", allow=(ALLOWED,))}

# A session as far as its QEMU's start. It waits for no QMP, which there is none of.
STARTER = """
import contextlib, os, signal
from qemuspawner.session.vm.prepare import prepare
from qemuspawner.spec import SessionSpec
os.umask(0o077)
with contextlib.ExitStack() as stack:
    prepare(SessionSpec.from_environment(), stack, lambda text, progress: None)
    signal.pause()
"""

# What a QEMU needs of its host.
SYSTEM = (
    *("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/proc", "/dev"),
    *(
        f"/usr/share/{name}"
        for name in ("qemu", "seabios", "ipxe", "ovmf", "OVMF", "qemu-efi-aarch64", "AAVMF")
    ),
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/resolv.conf"),
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx")


@pytest.fixture
def around(tmp_path: Path) -> Iterator[World]:
    with network_world.world(tmp_path) as around:
        yield around


class BrokenOut:
    """The program and its tools, where the sessions' account can go through."""

    def __init__(self, folder: Path) -> None:
        # The walls let QEMU read its own prefix's lib; elsewhere is no program.
        self.tools = folder / "lib"
        self.program = folder / "bin" / "qemu-system-x86_64"
        for made in (self.tools, self.program.parent):
            made.mkdir(parents=True)
        python = self.tools / "python3"
        shutil.copyfile(os.path.realpath(sys.executable), python)
        self.program.write_text(f"#!{python} -IS\n{Path(broken_out.__file__).read_text()}")
        for name in ("nft", "ip"):
            tool = shutil.which(name)
            assert tool is not None
            shutil.copyfile(tool, self.tools / name)
        for program in (self.program, *self.tools.iterdir()):
            program.chmod(0o755)

    def tell(self, facts: broken_out.Facts) -> None:
        draft = self.tools / "facts.part"
        draft.write_text(json.dumps(facts))
        draft.rename(self.tools / "facts.json")


def gather_facts(broken: BrokenOut, own: Session, other: Session) -> broken_out.Facts:
    """What there is of its own session and another one, and of the host, that it must not reach."""
    roots = (own.paths.root, other.paths.root)
    image = own.spec.machine.image.file
    return {
        "own": [*SYSTEM, image, str(own.paths.vm), str(broken.tools), str(broken.program)],
        "read_only": ["/usr/lib", "/etc/alternatives", image, str(broken.tools), str(broken.program)],
        "devices": [f"/dev/{name}" for name in DEVICES],
        "files": [
            *("/etc/passwd", "/etc/shadow", "/etc/hostname"),
            *(f"{root}/{name}" for root in roots for name in ("spec.json", "lock")),
            str(other.paths.overlay(0)),
        ],
        "folders": ["/root", "/home", "/var", "/run", "/usr/bin", str(other.paths.root)],
        "sockets": [str(path) for path in (other.paths.vnc_socket, other.paths.qmp_socket)],
        "words": ["JUPYTERHUB_API_TOKEN", other.spec.session_id],
        "processes": {
            "its session": own.process.pid,
            "another session": other.process.pid,
            "another QEMU": other.qemu_pid,
        },
        "ports": [
            *((address, PORT) for address in (HOST | PEERS).values()),
            *(("127.0.0.1", session.port) for session in (own, other)),
        ],
        "accounts": [0, account()[0] + 1, 4242],
        "filter": base64.b64encode(read_filter(other.qemu_pid)).decode(),
    }


def try_inside(
    start: Callable[..., Session], broken: BrokenOut, network: Network, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, str], broken_out.Facts]:
    """What came of each attempt in the place of a session's QEMU, beside another session."""
    other = start("other")
    wait_for(other.paths.qmp_socket.exists)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{broken.program.parent}:{os.environ['PATH']}")
        own = start("own", program=STARTER, network=network)
    facts = gather_facts(broken, own, other)
    broken.tell(facts)
    found = own.paths.vm / "found.json"
    wait_for(found.exists, timeout_s=120)
    return json.loads(found.read_text()), facts


def got(found: Mapping[str, str]) -> dict[str, str]:
    return {name: result for name, result in found.items() if result.startswith("got ")}


@pytest.mark.parametrize("mode", NETWORKS)
def test_who_escapes_finds_nothing(
    mode: str,
    start: Callable[..., Session],
    state: StatePaths,
    around: World,
    proof: Proof,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither by what the kernel has nor by what it lets QEMU do; but what its guest may reach it reaches."""
    with around.on_host():
        found, _ = try_inside(start, BrokenOut(state.root / "prefix"), NETWORKS[mode], monkeypatch)
    reached = got(found)
    allowed = {f"{kind} to {ALLOWED} {PORT}{how}" for kind in ("TCP", "UDP") for how in ("", ", filtered")}
    expected = allowed if mode == "allow" else set()

    proof.note(
        done=f"a program in the place of QEMU, the network '{mode}': {len(found) - len(expected)} attempts to"
        " get out or to gain rights, half of them behind the filter of a real QEMU",
        found=f"{len(reached.keys() - expected)} succeeded",
        limit="0",
    )
    assert reached.keys() == expected, reached


def test_without_walls_it_would_find_what_its_account_has(
    start: Callable[..., Session],
    state: StatePaths,
    around: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the proof showed nothing."""
    broken = BrokenOut(state.root / "prefix")
    uid, gid = account()
    folder = state.root / "outside"
    folder.mkdir()
    os.chown(folder, uid, gid)
    with around.on_host():
        _, facts = try_inside(start, broken, Network(), monkeypatch)
        process = subprocess.Popen([broken.program], cwd=folder, user=uid, group=gid, extra_groups=[])
        try:
            wait_for((folder / "found.json").exists, timeout_s=120)
        finally:
            process.kill()
            process.wait()

    reached = got(json.loads((folder / "found.json").read_text()))
    assert reached.keys() >= {
        *("files of others", "processes of others", "devices", "words of others"),
        *(f"read {path}" for path in facts["files"] if path != "/etc/shadow"),
        *(f"list {path}" for path in facts["folders"] if path != "/root"),
        *(f"connect to {path}" for path in facts["sockets"]),
        *(f"{kind} to {address} {PORT}" for kind in ("TCP", "UDP") for address in (HOST | PEERS).values()),
        *(f"{verb} {name}" for name in facts["processes"] for verb in ("signal", "limit", "hold")),
    }
