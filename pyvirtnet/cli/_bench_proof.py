"""Before anything is timed: the measured loops do to the frames' contents what they say they do."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import Error
from ..port import Port
from . import _bench_traffic as traffic
from ._bench_testpmd import Testpmd

PATIENCE = 10.0


def prove(device: Testpmd, port: Port, burst: int, size: int) -> None:
    """`device` forwards this port alone. Raises Error if a frame is not what it should be."""
    frame = bytes(traffic.frame_of(size))
    swapped = frame[6:12] + frame[:6] + frame[12:]
    device.command("set fwd macswap")
    device.command("start")
    for loop, expected in ((traffic.forward, frame), (traffic.macswap, swapped)):
        port.send_burst([frame])
        _until(loop(port, burst, 1))
        _compare(loop.__name__, [_one(port)], expected)
    device.command("stop")
    device.command("set fwd io")
    device.command("start")
    for step in (traffic.transmit(port, burst, size), traffic.resend(port, burst, size)):
        step()
        _compare("transmit", _all(port), frame)
    device.command("stop")


def _compare(what: str, frames: list[bytes], expected: bytes) -> None:
    wrong = [frame for frame in frames if frame != expected]
    if wrong or not frames:
        seen = wrong[0].hex() if wrong else "nothing"
        raise Error(f"{what} does not do its work", f"{seen} came, not {expected.hex()}")


def _until(step: Callable[[], int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not step():
        if time.monotonic() > deadline:
            raise Error("the frame sent to DPDK has not come back", f"within {PATIENCE:g} s")


def _one(port: Port) -> bytes:
    got = port.recv_burst(1, timeout=PATIENCE)
    return bytes(got[0]) if len(got) else b""


def _all(port: Port) -> list[bytes]:
    """What comes, until nothing has come for a while."""
    frames: list[bytes] = []
    while len(got := port.recv_burst(256, timeout=0.2)):
        frames += [bytes(frame) for frame in got]
    return frames
