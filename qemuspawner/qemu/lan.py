"""A guest on an interface of the host's, which the administrator gives: a bridge, or a tap made beforehand.

QEMU gets a descriptor and stays in its own network namespace, as without. What the guest then reaches, and
who reaches the guest, is for the rules of that interface; none of ours stand there.
"""

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from qemuspawner.errors import HostError
from qemuspawner.network import Network
from qemuspawner.texts import Text

# Setuid root on most systems; which bridges it serves is in /etc/qemu/bridge.conf.
_HELPERS = tuple(Path(folder) / "qemu-bridge-helper" for folder in ("/usr/lib/qemu", "/usr/libexec"))
_TUN = Path("/dev/net/tun")
_TIMEOUT_S = 10

# Source: linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


@contextlib.contextmanager
def opened_lan(network: Network) -> Iterator[int | None]:
    """A descriptor of the tap that the guest's second card is to be at; None where it gets none.

    Raises:
        HostError: The interface is not there, or is not for this account.
    """
    if network.mode == "tap":
        descriptor = _open_tap(network.interface)
    elif network.mode == "bridge":
        descriptor = _open_at_bridge(network.interface)
    else:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mac_address(session_id: str) -> str:
    """The session's own, the same at each of its starts; locally administered."""
    digest = hashlib.sha256(session_id.encode()).hexdigest()
    return ":".join(["52", "54", *(digest[index : index + 2] for index in range(0, 8, 2))])


def find_bridge_helper() -> Path | None:
    """QEMU's program that makes taps at bridges."""
    return next((path for path in _HELPERS if path.exists()), None)


def _open_tap(name: str) -> int:
    # Else it would be made, where we may.
    if name not in {interface for _, interface in socket.if_nameindex()}:
        raise _no_interface(name, Text("there is no such interface on this host"))
    try:
        descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise _no_interface(name, str(exc)) from exc
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as exc:
        os.close(descriptor)
        raise _no_interface(name, str(exc.strerror)) from exc
    return descriptor


def _open_at_bridge(name: str) -> int:
    helper = find_bridge_helper()
    if helper is None:
        raise _no_interface(name, Text("qemu-bridge-helper was not found"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_TIMEOUT_S)
        try:
            done = subprocess.run(
                [str(helper), f"--br={name}", f"--fd={theirs.fileno()}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                pass_fds=[theirs.fileno()],
                timeout=_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise _no_interface(name, str(exc)) from exc
        if done.returncode != 0:
            raise _no_interface(name, done.stderr.strip().rpartition("\n")[2])
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise _no_interface(name, Text("qemu-bridge-helper gave nothing"))
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _no_interface(name: str, words: str) -> HostError:
    return HostError(
        Text("The machine cannot be put onto '{interface}': {words}.", interface=name, words=words),
        hint=Text("The administrator makes the interface, and gives it to the account of the sessions."),
    )
