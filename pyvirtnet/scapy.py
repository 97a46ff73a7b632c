"""Ports for scapy: a socket and an interface, so that sniff, sendp and srp work on a port."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from select import select
from typing import Any

try:
    from scapy.interfaces import InterfaceProvider, NetworkInterface
    from scapy.layers.l2 import Ether
    from scapy.supersocket import SuperSocket
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "scapy":
        raise
    mend = f"{sys.executable} -m pip install scapy"
    raise ModuleNotFoundError(f"pyvirtnet.scapy needs scapy: {mend}", name=error.name) from error

from ._burst import Frame
from .bpf import Filter
from .port import Port, open

BURST = 64
PATIENCE = 1.0  # seconds until a port that stays full is an error
_MOST_WAIT = 0.05  # seconds: scapy looks between waits whether it should stop


class PortSocket(SuperSocket):
    """scapy's socket on a port, or on the NIC at an address, which it then opens and closes.

    `PortSocket(port).sr1(packet)`, `sniff(opened_socket=PortSocket(port))`, `sendp(packet,
    socket=...)`. `filter` is an expression of tcpdump's. A packet's time is its burst's.
    """

    desc = "frames of a pyvirtnet port"
    nonblocking_socket = True  # scapy: ask again soon, in place of one wait without end

    def __init__(
        self,
        port: Port | str | None = None,
        *,
        iface: PortInterface | None = None,
        filter: str | None = None,
        **ignored: Any,  # what scapy gives every socket: promisc, type, nofilter, …
    ) -> None:
        if port is None and iface is not None:
            port = iface.port
        if not isinstance(port, (Port, str)):
            raise TypeError("PortSocket takes a port, or the address of one")
        self._wanted = Filter(filter) if filter else None
        self._owned = isinstance(port, str)
        self.port = open(port) if isinstance(port, str) else port
        self._frames: deque[Frame] = deque()
        self._came = 0.0

    def send(self, x: Any) -> int:
        """Send a packet, or bytes; how many bytes. TimeoutError where the port stays full."""
        data = bytes(x)
        end = time.monotonic() + PATIENCE
        while self.port.send_burst([data]) == 0:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.port.name} takes no more frames")
        if hasattr(x, "sent_time"):
            x.sent_time = time.time()
        return len(data)

    def recv_raw(self, x: int = 65535) -> tuple[Any, bytes | None, float | None]:
        """scapy's: the class of a packet, its bytes, its time; None where none came."""
        if not self._frames:
            self._receive(0.0)
        if not self._frames:
            return Ether, None, None
        return Ether, bytes(self._frames.popleft())[:x], self._came

    def _receive(self, wait: float) -> bool:
        """Whether there are frames to be taken, after waiting for them."""
        if not self._frames:
            burst = self.port.recv_burst(BURST, timeout=wait)
            if self._wanted is not None:
                burst = burst[self._wanted(burst)]
            self._frames += burst
            self._came = time.time()
        return bool(self._frames)

    @staticmethod
    def select(sockets: Sequence[Any], remain: float | None = None) -> list[Any]:
        """scapy's: those of the sockets that have something, after a short wait at the most."""
        wait = _MOST_WAIT if remain is None else max(0.0, min(remain, _MOST_WAIT))
        ports = [one for one in sockets if isinstance(one, PortSocket)]
        others = [one for one in sockets if one not in ports]
        ready = [one for one in ports if one._receive(0.0)]
        if others:
            ready += select(others, [], [], 0.0)[0]
        if not ready and ports:
            ready = [one for one in ports if one._receive(wait / len(ports))]
        return ready

    def fileno(self) -> int:
        """The port's, see `Port.fileno`; frames that were received already do not show there."""
        return self.port.fileno()

    def close(self) -> None:
        """Close the port too if this socket opened it."""
        if not self.closed:
            self.closed = True
            if getattr(self, "_owned", False) and hasattr(self, "port"):
                self.port.close()


class _Ports(InterfaceProvider):
    """Tells scapy which socket a port's interface has."""

    name = "pyvirtnet"

    def load(self) -> dict[str, NetworkInterface]:
        return {}

    def _l2socket(self, dev: NetworkInterface) -> type[SuperSocket]:
        return PortSocket

    _l2listen = _l2socket

    def l2socket(self) -> type[SuperSocket]:  # what scapy 2.5 asks
        return PortSocket

    l2listen = l2socket


class PortInterface(NetworkInterface):
    """A port as scapy's interface: `srp(packet, iface=PortInterface(port))`, and so for sniff."""

    def __init__(self, port: Port) -> None:
        if not isinstance(port, Port):
            raise TypeError("PortInterface takes a port: PortInterface(pyvirtnet.open(address))")
        super().__init__(_Ports(), {"name": port.name, "mac": str(port.mac)})
        self.network_name = self.description = port.name
        self.port = port
