"""The ports that a machine declares: connections to what listens there in the guest.

QEMU forwards a port of the loopback in its own network namespace to the guest's, from the first connection
until it ends. Each VM has its own, so nothing of this outlives it.
"""

import asyncio
import os
import socket
from collections.abc import Mapping

from qemuspawner.errors import VmError
from qemuspawner.qemu.inside import make_sockets, open_network
from qemuspawner.qemu.process import QemuProcess
from qemuspawner.texts import Text

# All ports of that namespace are free; below 1024 nobody may listen.
_FIRST_PORT = 10_000
_SOCKETS_AT_A_TIME = 32
# QEMU accepts at once unless it is busy with saving or restoring.
_CONNECT_TIMEOUT_S = 10


class Ports:
    """Of one VM; opened by the first who connects."""

    def __init__(self, qemu: QemuProcess, ports: Mapping[str, int]) -> None:
        """`ports` are the guest's, by name."""
        self._qemu = qemu
        self._ports = ports
        # Where QEMU listens for each, in its own network.
        self.inner = {name: _FIRST_PORT + index for index, name in enumerate(sorted(ports))}
        self._forwarded: set[str] = set()
        self._network: int | None = None
        self._sockets: list[socket.socket] = []
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def connect(self, name: str) -> socket.socket:
        """A connection to the port `name` of the guest; the caller's to close.

        QEMU accepts it before it asks the guest: where nobody listens it is closed at once.

        Raises:
            VmError: The machine cannot be reached.
        """
        while name not in self._forwarded or not self._sockets:
            # Whoever asks may leave meanwhile; what QEMU was told it does all the same.
            await asyncio.shield(asyncio.ensure_future(self._open(name)))
        connection = self._sockets.pop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.inner[name]))
        except BaseException as exc:
            connection.close()
            if isinstance(exc, OSError):
                raise VmError(
                    Text("The machine does not take connections."), hint=Text("Is it still running?")
                ) from exc
            raise
        return connection

    def close(self) -> None:
        """Let go of the VM's network; connections that are open end with the VM."""
        self._is_closed = True
        for unused in self._sockets:
            unused.close()
        self._sockets.clear()
        if self._network is not None:
            os.close(self._network)
            self._network = None

    async def _open(self, name: str) -> None:
        async with self._opening:
            if self._is_closed:
                raise VmError(Text("The machine is not running."), hint=Text("Start it again from the hub."))
            if self._network is None:
                # QEMU answers below, so until then no other process had its process id.
                self._network = open_network(self._qemu.pid)
            if name not in self._forwarded:
                await self._qemu.forward_port(inner=self.inner[name], port=self._ports[name])
                self._forwarded.add(name)
            if not self._sockets:
                await self._make_sockets()

    async def _make_sockets(self) -> None:
        if self._network is None:  # closed meanwhile
            return
        network = os.dup(self._network)
        try:
            made = await asyncio.to_thread(make_sockets, network, _SOCKETS_AT_A_TIME)
        finally:
            os.close(network)
        self._sockets += made
