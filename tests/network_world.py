"""A host with a network around it, in namespaces: its neighbours, its site, a cloud's metadata, the internet.

What each of them is called, and its addresses, is in PEERS. All of them answer at PORT, by TCP and UDP, with
their own name; so does the host itself, on each of its addresses.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemuspawner.qemu.lan import find_bridge_helper

PORT, OTHER_PORT = 8000, 8001

HOST = {
    "host loopback": "127.0.0.1",
    "host loopback 6": "::1",
    "host": "10.77.0.1",
    "host 6": "fd77::1",
    "host, public": "203.0.113.1",
    "host, public 6": "2001:db8:77::1",
}
PEERS = {
    "gateway": "10.77.0.254",
    "LAN": "10.77.0.2",
    "LAN 6": "fd77::2",
    # Of the host's own network, which at some sites has public addresses.
    "LAN, public": "203.0.113.2",
    "LAN, public 6": "2001:db8:77::2",
    "site": "192.168.9.9",
    "site 6": "fd99::9",
    "metadata": "169.254.169.254",
    "metadata 6": "fd00:ec2::254",
    "hub elsewhere": "198.51.100.7",
    "internet": "198.51.100.1",
    "internet 6": "2001:db8:1::1",
}
_NAME_SERVER = "10.77.0.53"
_ROUTER_6 = "fe80::1"  # routers of IPv6 name themselves so
# The host's on interfaces that guests are put onto.
AT_GUESTS = ("10.88.0.1", "fd88::1")
# By what a guest's QEMU calls the host, whatever its addresses are.
QEMUS = {"QEMU's host": "10.0.2.2", "QEMU's host 6": "fec0::2"}

# argv: port, other port, and whether it is a name server that says 198.51.100.1 whatever it is asked.
_SERVER = """
import selectors, socket, sys
ready = selectors.DefaultSelector()
def listen(family, kind, port):
    server = socket.socket(family, kind)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if kind == socket.SOCK_DGRAM and family == socket.AF_INET:
        server.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    if kind == socket.SOCK_DGRAM and family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", port))
    if kind == socket.SOCK_STREAM:
        server.listen(100)
    ready.register(server, selectors.EVENT_READ, kind)
    return server
for port in (int(sys.argv[1]), int(sys.argv[2])):
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listen(family, kind, port)
names = listen(socket.AF_INET, socket.SOCK_DGRAM, 53) if sys.argv[3] == "names" else None
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        server = key.fileobj
        try:
            if key.data == socket.SOCK_STREAM:
                connection, _ = server.accept()
                connection.sendall(b"here\\n")
                connection.close()
                continue
            query, about, _, sender = server.recvmsg(512, 200)
            answer = b"here\\n"
            if server is names:
                end = query.index(0, 12) + 5
                is_a = query[end - 4:end - 2] == b"\\0\\1"
                record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + bytes((198, 51, 100, 1))
                counts = b"\\0\\1\\0" + bytes([is_a]) + b"\\0\\0\\0\\0"
                answer = query[:2] + b"\\x81\\x80" + counts + query[12:end] + record * is_a
            # From the address that was asked, or a firewall does not know it.
            server.sendmsg([answer], about, 0, sender)
        except OSError:
            pass
"""


@dataclass(frozen=True, kw_only=True)
class World:
    """Namespaces by name; QEMU's host is `host`."""

    host: str
    peers: str
    resolv_conf: Path

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """What this thread starts meanwhile is on that host."""
        with entered(self.host):
            yield

    def make_tap(self, name: str) -> None:
        """Make a tap for the guest, where the host has the addresses AT_GUESTS."""
        run_ip("-n", self.host, "tuntap", "add", "dev", name, "mode", "tap")
        self._bring_up(name)

    def make_bridge(self, name: str) -> None:
        """Make a bridge for guests, where the host has the addresses AT_GUESTS."""
        # Else its address is that of whichever tap came last, as with no bridge that has a card.
        run_ip("-n", self.host, "link", "add", name, "address", "02:00:00:00:88:01", "type", "bridge")
        self._bring_up(name)

    def delete(self, name: str) -> None:
        run_ip("-n", self.host, "link", "delete", name)

    def _bring_up(self, name: str) -> None:
        run_ip("-n", self.host, "link", "set", name, "up")
        for address in AT_GUESTS:
            _add_address(self.host, name, address, size=64 if ":" in address else 24)

    @staticmethod
    def connects(namespace: str, address: str, port: int) -> bool:
        """Whether a program there gets a TCP connection."""
        with entered(namespace), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
            one.settimeout(1)
            try:
                one.connect((address, port))
            except OSError:
                return False
            return True


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    names = f"qs-host-{os.getpid()}", f"qs-peers-{os.getpid()}"
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text(f"nameserver 127.0.0.53\nnameserver {_NAME_SERVER}\n")
    with contextlib.ExitStack() as stack:
        for name in names:
            run_ip("netns", "add", name)
            stack.callback(run_ip, "netns", "delete", name)
            run_ip("-n", name, "link", "set", "lo", "up")
        host, peers = names
        run_ip("-n", host, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", peers)
        for name in names:
            run_ip("-n", name, "link", "set", "lan", "up")
        for address in HOST.values():
            if address not in ("127.0.0.1", "::1"):
                _add_address(host, "lan", address, size=64 if ":" in address else 24)
        on_lan = ("gateway", "LAN")
        for name, address in (*PEERS.items(), ("name server", _NAME_SERVER)):
            near = name.startswith(on_lan) or name == "name server"
            size = (64 if ":" in address else 24) if near else (128 if ":" in address else 32)
            _add_address(peers, "lan" if near else "lo", address, size=size)
        run_ip("-n", host, "route", "add", "default", "via", PEERS["gateway"])
        _add_address(peers, "lan", _ROUTER_6, size=64)
        run_ip("-n", host, "-6", "route", "add", "default", "via", _ROUTER_6, "dev", "lan")
        for name, kind in ((host, ""), (peers, "names")):
            command = [sys.executable, "-c", _SERVER, str(PORT), str(OTHER_PORT), kind]
            server = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{name}", "--", *command], stdout=subprocess.PIPE
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
            assert server.stdout is not None
            stack.callback(server.stdout.close)
            assert server.stdout.readline() == b"ready\n"
        yield World(host=host, peers=peers, resolv_conf=resolv_conf)


def _add_address(namespace: str, device: str, address: str, *, size: int) -> None:
    words = ["nodad"] if ":" in address else []
    run_ip("-n", namespace, "address", "add", f"{address}/{size}", "dev", device, *words)


def run_ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def make_bridge_helper(folder: Path, *, allowed: Sequence[str]) -> Path:
    """QEMU's own helper, which finds a bridge.conf of the test's: these bridges are allowed."""
    real = find_bridge_helper()
    assert real is not None
    config = folder / "qemu" / "bridge.conf"
    config.parent.mkdir()
    config.write_text("".join(f"allow {name}\n" for name in allowed))
    # /etc/qemu need not be there: all of /etc is another one for the helper.
    script = f'mount --bind {folder} /etc && exec {real} "$@"'
    wrapper = folder / "helper"
    wrapper.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{script}' sh \"$@\"\n")
    wrapper.chmod(0o755)
    return wrapper


@contextlib.contextmanager
def entered(namespace: str) -> Iterator[None]:
    """What this thread starts and opens meanwhile is in that namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _set(libc, other)
        yield
    finally:
        _set(libc, own)
        os.close(own)
        os.close(other)


def _set(libc: ctypes.CDLL, namespace: int) -> None:
    """os.setns() is not in Python 3.11."""
    if libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
