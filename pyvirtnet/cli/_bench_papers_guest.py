"""What tools/bench papers runs in the guest: both experiments, their variants in turn."""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyvirtnet

from ..errors import Error
from ._bench_papers_peer import order
from ._bench_testpmd import huge_pages
from ._vm_machine import bdf

NIC = bdf(0)
RING = 256
BURST = 256  # frames that a call may bring
WARM = 0.2
LATE = 0.005  # seconds between the calls of a driver that has other things to do
HOLD_ROUNDS = 3  # a peer that is held up fills no ring
QUIET = 0.1  # seconds without a frame, after which no more come
PATIENCE = 20.0
PIECES = 17  # pages of a buffer for the largest frame
HUGE_PAGES = 32

_RECEIVE = ("+guest_csum", "+guest_tso4", "-ring_packed")
RECEIVE: dict[str, tuple[str, ...]] = {
    "mergeable": (*_RECEIVE, "-indirect_desc"),
    "big": (*_RECEIVE, "-mrg_rxbuf", "-indirect_desc"),
    "big, indirect": (*_RECEIVE, "-mrg_rxbuf"),
}
RECLAIM = ("lazy", "every call", "interrupts")
Row = tuple[str, dict[str, Any]]


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


# ---- mergeable buffers against big ones


def receive(name: str, size: int, seconds: float) -> dict[str, Any]:
    """How many frames a ring holds that nobody looks after, and what passes where somebody does."""
    pages = PIECES * RING + 3 * RING
    with pyvirtnet.open(NIC, features=RECEIVE[name], pages=pages, ring_size=RING) as port:
        _drain(port)
        holds = max(_holds(port, size) for _ in range(HOLD_ROUNDS))
        _ask(port, order(size))
        try:
            _take(port, WARM)
            rate, late = (_rate(port, size, seconds, pause) for pause in (0.0, LATE))
        finally:
            _ask(port, order(0))
        mode = port.info()["receive_mode"]
    if mode != name.partition(",")[0]:
        raise Error(f"{name} was not measured", f"it is {mode}")
    return {"holds": holds, "pps": rate, "late_pps": late}


def _rate(port: pyvirtnet.Port, size: int, seconds: float, pause: float) -> float:
    """Frames a second, with so much time between calls."""
    before, start = port.stats, time.perf_counter()
    _take(port, seconds, pause)
    after, taken = port.stats, time.perf_counter() - start
    frames, octets = after.rx_frames - before.rx_frames, after.rx_bytes - before.rx_bytes
    if not frames or octets != frames * size:
        raise Error("received something else", f"{frames} frames, {octets} bytes")
    return frames / taken


def _holds(port: pyvirtnet.Port, size: int) -> int:
    """Nothing is received, so nothing is posted anew, until the ring must be full."""
    _ask(port, order(size, 2 * RING))
    time.sleep(0.5)
    holds = len(port.recv_burst(2 * RING))
    _drain(port)
    return holds


def _ask(port: pyvirtnet.Port, frame: bytes) -> None:
    """Until the device has sent it: a port that is closed meanwhile takes it along."""
    end = time.monotonic() + PATIENCE
    if port.send_burst([frame]) != 1:
        raise Error(f"{port.name} sends nothing", "its transmit ring is full")
    while port.tx_pending:
        port.reclaim()
        if time.monotonic() > end:
            raise Error(f"{port.name} sends nothing", f"the device took no frame in {PATIENCE} s")


def _take(port: pyvirtnet.Port, seconds: float, pause: float = 0.0) -> None:
    recv, end = port.recv_burst, time.perf_counter() + seconds
    while time.perf_counter() < end:
        recv(BURST)
        if pause:
            time.sleep(pause)


def _drain(port: pyvirtnet.Port) -> None:
    end = time.monotonic() + PATIENCE
    while len(port.recv_burst(BURST, timeout=QUIET)):
        if time.monotonic() > end:
            raise Error(f"frames do not end on {port.name}", "nobody asked for them")


# ---- reclaiming on the next send, against the ways that were left for it


def transmit(name: str, burst: int, size: int, seconds: float) -> dict[str, Any]:
    with pyvirtnet.open(NIC, features=["-ring_packed"], ring_size=RING) as port:
        frames = port.alloc_burst(burst, size)
        frames.data[:, :14] = bytearray(order(0)[:12] + b"\x88\xb6")
        interrupts = Interrupts(port)
        step = _step(name, port, frames, interrupts)
        _repeat(step, WARM)
        before, seen, start = port.stats, interrupts.count(), time.perf_counter()
        calls = _repeat(step, seconds)
        after, seen, taken = port.stats, interrupts.count() - seen, time.perf_counter() - start
    sent = after.tx_frames - before.tx_frames
    if not sent:
        raise Error(f"{name} was not measured", "no frame went out")
    kicks = (after.tx_kicks - before.tx_kicks) / taken
    return {"pps": sent / taken, "kicks": kicks, "interrupts": seen / taken, "calls": calls / taken}


def _step(
    name: str, port: pyvirtnet.Port, frames: pyvirtnet.TxBurst, interrupts: Interrupts
) -> Callable[[], object]:
    send, reclaim = port.send_burst, port.reclaim
    if name == "lazy":
        return lambda: send(frames)
    if name == "every call":
        return lambda: (send(frames), reclaim())
    interrupts.ask()
    return lambda: interrupts.serve(send(frames) < len(frames))


class Interrupts:
    """Those of the transmit queue, as drivers used them: each one reclaims, a full ring sleeps."""

    def __init__(self, port: pyvirtnet.Port) -> None:
        self._port, self._seen = port, 0
        self._counted = False  # one that nobody has served
        self._fd = port._transport.interrupt_fd(1)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)

    def ask(self) -> None:
        """What was sent just before asking interrupts nobody: reclaim it, and ask again (2.7.7)."""
        self._port.queues[0]._interrupt_on_transmit(True)
        while self._port.reclaim():
            self._port.queues[0]._interrupt_on_transmit(True)

    def serve(self, full: bool) -> None:
        if self._counted or self._poller.poll(100 if full else 0):
            self.count()
            self._counted = False
            self._port.reclaim()
            self.ask()

    def count(self) -> int:
        with suppress(BlockingIOError):
            self._seen += os.eventfd_read(self._fd)
            self._counted = True
        return self._seen


def _repeat(step: Callable[[], object], seconds: float) -> int:
    calls, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        step()
        calls += 1
    return calls


# ---- both


def one_round(sizes: Sequence[int], bursts: Sequence[int], seconds: float) -> Iterator[Row]:
    for size in sizes:
        for name in RECEIVE:
            yield "receive", {"mode": name, "size": size, **receive(name, size, seconds)}
    for burst in bursts:
        for name in RECLAIM:
            row = transmit(name, burst, 60, seconds)
            yield "transmit", {"mode": name, "burst": burst, "size": 60, **row}


@contextmanager
def _bound() -> Iterator[None]:
    command = [sys.executable, "-P", "-m", f"{__package__}.bind"]
    subprocess.run([*command, "bind", NIC], check=True, stdout=sys.stderr)
    try:
        yield
    finally:
        subprocess.run([*command, "restore", NIC], check=True, stdout=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--bursts", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    sizes, bursts = ([int(n) for n in text.split(",")] for text in (options.sizes, options.bursts))
    rounds: list[list[Row]] = []
    try:
        with _bound(), huge_pages(HUGE_PAGES, dpdk=False):
            for number in range(options.rounds):
                rounds.append([])
                for kind, row in one_round(sizes, bursts, options.seconds):
                    _say(f"round {number + 1}: {kind} {row}")
                    rounds[-1].append((kind, row))
    except (Error, subprocess.SubprocessError) as error:
        _say(str(error))
        return 1
    print(json.dumps({"rounds": rounds, "versions": {"guest kernel": os.uname().release}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
