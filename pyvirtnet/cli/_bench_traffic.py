"""The loops that are measured: what a user of the package would write, one for each mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from .._headers import swap_macs
from ..errors import DeviceTimeout
from ..port import Port

CALLS = 64  # of the driver, between two looks at the clock
STALL = 10.0  # seconds that a device may take no frame

# dst, src, IPv4, UDP: the headers that testpmd's txonly writes, of the same lengths
_HEADERS = bytes.fromhex(
    "020000000000 020000000001 08004500003200000000401166b9c6120001c612000200090009001e0000"
)

Step = Callable[[], int]  # makes CALLS calls or so; how many frames went


def frame_of(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A UDP frame of `size` bytes."""
    return np.frombuffer(_HEADERS.ljust(size, b"\0")[:size], np.uint8)


def receive(port: Port, burst: int) -> Step:
    """Receive, and let go of what came."""
    recv = port.recv_burst

    def step() -> int:
        frames = 0
        for _ in range(CALLS):
            frames += len(recv(burst))
        return frames

    return step


def forward(port: Port, burst: int, calls: int = CALLS) -> Step:
    """Receive and send back untouched."""
    recv, send = port.recv_burst, port.send_burst

    def step() -> int:
        frames = 0
        for _ in range(calls):
            got = recv(burst)
            if len(got):
                frames += send(got)
        return frames

    return step


def macswap(port: Port, burst: int, calls: int = CALLS) -> Step:
    """Receive, swap the MAC addresses and send back."""
    recv, send = port.recv_burst, port.send_burst

    def step() -> int:
        frames = 0
        for _ in range(calls):
            got = recv(burst)
            if len(got):
                swap_macs(got)
                frames += send(got)
        return frames

    return step


def resend(port: Port, burst: int, size: int) -> Step:
    """Send one burst again and again, written once."""
    tx = port.alloc_burst(burst, size)
    tx.data[:] = frame_of(size)
    send = port.send_burst

    def step() -> int:
        frames = 0
        for _ in range(CALLS):
            frames += send(tx)
        return frames

    return step


def transmit(port: Port, burst: int, size: int) -> Step:
    """Write every frame anew, all of it, before it is sent.

    The bursts go round; one comes up again when the device must be done with it, because the ring
    has taken more frames since than it has entries.
    """
    send, template = port.send_burst, frame_of(size).view(f"V{size}")
    ring_size = port.info()["ring_sizes"][1]
    bursts = [port.alloc_burst(burst, size) for _ in range(ring_size // burst + 2)]
    rows = [tx.data.view(f"V{size}") for tx in bursts]  # a row as one item: copied in one go

    def step() -> int:
        for tx, row in zip(bursts, rows, strict=True):
            row[:] = template
            sent = send(tx)
            if sent < burst:
                _send_rest(port, tx, sent)
        return burst * len(bursts)

    return step


def _send_rest(port: Port, tx: object, sent: int) -> None:
    deadline = 0.0
    while rest := tx[sent:]:  # type: ignore[index]
        taken = port.send_burst(rest)
        sent += taken
        now = time.monotonic()
        deadline = now + STALL if taken or not deadline else deadline
        if now > deadline:
            raise DeviceTimeout(f"{port.name} has taken no frame for {STALL:g} s")


def keep_going(step: Step, done: Callable[[], bool]) -> int:
    frames = step()
    while not done():
        frames += step()
    return frames


def timed(step: Step, seconds: float) -> float:
    """Frames a second over about `seconds`."""
    clock = time.perf_counter
    start = clock()
    frames = keep_going(step, lambda: clock() - start >= seconds)
    return frames / (clock() - start)


def drain(port: Port) -> Iterator[bytes]:
    """Takes what has arrived, until nothing more does; yields the first 12 bytes of each frame."""
    idle = 0
    while idle < 100:
        got = port.recv_burst(256)
        idle = 0 if len(got) else idle + 1
        for head in got.heads[:, :12]:
            yield head.tobytes()
