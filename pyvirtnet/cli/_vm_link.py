"""A network namespace with a tap for each port, for guests whose peer is the host's kernel."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Self

from ..errors import NoPermission
from ._vm_image import find_program

_NO_IPV6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"


def address(port: int) -> str:
    """The host's address at the other end of `port`'s cable."""
    return f"10.99.{port}.1"


class TapNamespace:
    """tap0, tap1, … in a namespace of their own; the context's end removes it.

    `prefix` runs a command inside it.
    """

    def __init__(self, ports: int, queues: int = 1) -> None:
        self.name = f"pyvirtnet-{os.getpid()}"
        self._ports, self._queues = ports, queues

    @property
    def prefix(self) -> list[str]:
        return [find_program("ip", "iproute2"), "netns", "exec", self.name]

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoPermission(
                "cannot make taps", "a network namespace needs root", "run it with sudo"
            )
        _run("ip", "netns", "add", self.name)
        try:
            # the kernel's own chatter (router solicitations, …) stays off the cable
            _run(*self.prefix, "sh", "-c", f"[ ! -e {_NO_IPV6} ] || echo 1 >{_NO_IPV6}")
            queues = ["multi_queue"] if self._queues > 1 else []
            for port in range(self._ports):
                tap = f"tap{port}"
                _run(*self.prefix, "ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr", *queues)
                _run(*self.prefix, "ip", "address", "add", f"{address(port)}/24", "dev", tap)
                _run(*self.prefix, "ip", "link", "set", tap, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        _run("ip", "netns", "delete", self.name)


def _run(*command: str) -> None:
    subprocess.run([find_program(command[0], "iproute2"), *command[1:]], check=True)
