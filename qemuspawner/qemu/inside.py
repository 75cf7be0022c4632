"""Into QEMU's network namespace, where the ports lie that it forwards to its guest.

The namespace has a loopback of its own, so no port of the host is opened, and no other account and no other
guest can reach it. A socket belongs to the namespace that it was made in, whoever uses it: a program that
lives for some milliseconds enters, makes sockets and hands them over. The supervisor may do that without
privileges, as the namespaces around QEMU belong to its account.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import VmError
from qemuspawner.texts import Text

_PROGRAM = Path(__file__).with_name("make_sockets.py")
# ioctl(2) on a namespace: a descriptor of the user namespace that owns it. Source: linux/nsfs.h
_NS_GET_USERNS = 0xB701
_TIMEOUT_S = 10


def open_network(pid: int) -> int:
    """A descriptor of the network namespace of QEMU, whose process is `pid`.

    Raises:
        VmError: QEMU has ended, or has no network of its own: its ports would be the host's.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise VmError(Text("The machine is not running."), hint=Text("Start it again from the hub.")) from exc
    except OSError as exc:
        raise _cannot_enter(str(exc)) from exc
    if os.path.samestat(os.fstat(descriptor), Path("/proc/self/ns/net").stat()):
        os.close(descriptor)
        raise VmError(
            Text(
                "The machine's web tools are closed: its ports would be open to every account of this host."
            ),
            hint=Text("The administrator switches the jail around QEMU on (jail = True)."),
        )
    return descriptor


def make_sockets(network: int, count: int) -> list[socket.socket]:
    """`count` unconnected TCP sockets inside, which never block; takes a hundredth of a second or more.

    Raises:
        VmError: The namespace cannot be entered.
    """
    with _user_namespace(network) as user:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            number = theirs.fileno()
            command = [
                *("nsenter", f"--user=/proc/self/fd/{user}", f"--net=/proc/self/fd/{network}"),
                # Whoever enters may everything there, and gives it up with the next program.
                *("--preserve-credentials", "--"),
                *(sys.executable, "-I", "-S", str(_PROGRAM), str(number), str(count)),
            ]
            try:
                done = subprocess.run(
                    command,
                    # Nothing of ours, such as the server's token.
                    env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    pass_fds=(user, network, number),
                    timeout=_TIMEOUT_S,
                )
            except (OSError, subprocess.SubprocessError) as exc:
                raise _cannot_enter(str(exc)) from exc
            if done.returncode != 0:
                raise _cannot_enter(done.stderr.strip())
            _, descriptors, _, _ = socket.recv_fds(ours, 1, count)
    made = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    for one in made:
        one.setblocking(False)
    return made


@contextlib.contextmanager
def _user_namespace(network: int) -> Iterator[int]:
    """The owner of the network namespace; QEMU itself may be in one further inside, without rights there."""
    try:
        descriptor = fcntl.ioctl(network, _NS_GET_USERNS)
    except OSError as exc:
        raise _cannot_enter(str(exc)) from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _cannot_enter(why: str) -> VmError:
    return VmError(
        Text("The machine's network cannot be reached: {why}.", why=why), hint=Text("Tell the administrator.")
    )
