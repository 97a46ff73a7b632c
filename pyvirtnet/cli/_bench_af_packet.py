"""One end of a veth cable, with a polled AF_PACKET socket: sends a frame to and fro, or echoes.

Run in a network namespace: `ping IFACE SIZE SECONDS` prints its round trips (ns) as JSON, `echo
IFACE` sends back all it gets until it is ended.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from ..errors import DeviceTimeout, NoPermission
from ._vm_image import find_program

ETHERTYPE = 0x88B5  # local experimental
PATIENCE = 10.0
POLLS = 20_000_000  # in vain, some seconds of them: the frame is lost


class Cable:
    """Two network namespaces, `names`, joined by a veth pair: cable0 in each."""

    def __init__(self) -> None:
        self.names = [f"pyvirtnet-{os.getpid()}-{end}" for end in "ab"]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise NoPermission(
                "cannot make a veth pair", "a network namespace needs root", "run it with sudo"
            )
        with self._stack as stack:
            for name in self.names:
                run("ip", "netns", "add", name)
                stack.callback(run, "ip", "netns", "delete", name)
                quiet = "[ ! -e $0 ] || echo 1 >$0"
                path = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
                run("ip", "netns", "exec", name, "sh", "-c", quiet, path)
            a, b = self.names
            peer = ["peer", "name", "cable0", "netns", b]
            run("ip", "-n", a, "link", "add", "cable0", "type", "veth", *peer)
            for name in self.names:
                run("ip", "-n", name, "link", "set", "cable0", "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stack.close()

    def command(self, end: int, core: int, *words: str) -> list[str]:
        """What runs this module at an end of the cable, on a core."""
        place = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.names[end]]
        place += ["taskset", "-c", str(core)]
        return [*place, sys.executable, "-P", "-m", __name__, *words]


def _open(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until it is bound
    end.bind((interface, ETHERTYPE))
    end.setblocking(False)
    return end


def echo(end: socket.socket) -> None:
    receive, send = end.recv, end.send
    while True:
        with suppress(BlockingIOError):
            send(receive(65536))


def ping(end: socket.socket, size: int, seconds: float) -> list[int]:
    frame = bytes(12) + ETHERTYPE.to_bytes(2, "big") + bytes(size - 14)
    receive = end.recv

    def arrived() -> bool:
        # MSG_OUTGOING copies of what this socket sent do not come to it
        try:
            return bool(receive(65536))
        except BlockingIOError:
            return False

    _first_answer(end, frame, arrived)
    return round_trips(lambda: end.send(frame), arrived, seconds)


def _first_answer(end: socket.socket, frame: bytes, arrived: Callable[[], bool]) -> None:
    """The other end may not be there yet: ask it again and again, then let it become quiet."""
    deadline = time.monotonic() + PATIENCE
    answered = False
    while not answered:
        if time.monotonic() > deadline:
            raise DeviceTimeout("nobody answers at the other end of the veth cable")
        end.send(frame)
        answered = _within(0.05, arrived)
    while _within(0.2, arrived):
        continue


def _within(seconds: float, arrived: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if arrived():
            return True
    return False


def round_trips(
    send: Callable[[], object], arrived: Callable[[], object], seconds: float
) -> list[int]:
    """Nanoseconds that one frame in flight took, to and fro, one after the other."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    now = clock()
    end = now + int(seconds * 1e9)
    while now < end:
        start = clock()
        send()
        polls = 0
        while not arrived():
            polls += 1
            if polls > POLLS:
                raise DeviceTimeout(f"the frame did not come back after {len(samples)} that did")
        now = clock()
        samples.append(now - start)
    return samples


def run(*command: str) -> None:
    subprocess.run([find_program(command[0], "iproute2"), *command[1:]], check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    role, interface, *rest = sys.argv[1:] if arguments is None else arguments
    with _open(interface) as end:
        if role == "echo":
            echo(end)
        print(json.dumps(ping(end, int(rest[0]), float(rest[1]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
