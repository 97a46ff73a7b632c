"""tools/bench vs-dpdk: this driver and DPDK's own, in turn, on one and the same device process."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pyvirtnet

from ..errors import Error
from . import _bench_traffic as traffic
from ._bench_proof import prove
from ._bench_report import count, machine, pinned, progress, seconds
from ._bench_testpmd import (
    SEED_BURST,
    Counters,
    Testpmd,
    backend,
    cores,
    huge_pages,
    parse_stats,
    peer,
    show,
)

HELP = "this driver and DPDK's virtio-user driver in turn, on one DPDK vhost back end"
SIZE = 64
SEED = 4  # bursts of frames set going round by the device: half of a ring
TURNS = 6  # of either side within one measurement: hosts change their pace from second to second
WARM = 0.05  # seconds before a turn is measured
SETTLE = 2.0  # seconds that either side may take for one more frame
ATTEMPTS = 10  # a busy machine may give one side no processor for a whole turn
MODES = {  # mode: (what the device does, what DPDK's driver does)
    "rx": ("txonly", "rxonly"),
    "tx": ("rxonly", "txonly"),
    "txresend": ("rxonly", "txonly"),
    "io": ("io", "io"),
    "macswap": ("macswap", "macswap"),
}
ROUND = ("io", "macswap")  # the same frames go round all the time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--packed", action="store_true", help="packed rings on both sides")
    add("--pairs", type=count, default=5, metavar="N", help="measurements of each side (5)")
    add("--seconds", type=seconds, default=1.0, metavar="S", help="length of one (1), in turns")
    add("--burst", type=count, default=64, metavar="N", help="frames a call of ours (64)")
    add("--dpdk-burst", type=count, default=32, metavar="N", help="of DPDK's driver (32, its own)")
    add("--ring", type=count, default=256, metavar="N", help="entries of every ring (256)")
    add("--modes", type=_modes, default=list(MODES), metavar="M,…", help=",".join(MODES))


def _modes(text: str) -> list[str]:
    modes = text.split(",")
    for mode in modes:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is none of {', '.join(MODES)}")
    return modes


class Driver(Protocol):
    """One of the two sides. `port` is the back end's port that it is at."""

    port: int

    def begin(self, mode: str) -> None: ...
    def spend(self, seconds: float) -> None: ...
    def until_answer(self, device: Testpmd) -> str: ...
    def finish(self, mode: str, received: int = 0) -> None:
        """Stop; where the device is silent, not before all that it sent, `received` since ever."""

    def counts(self) -> tuple[int, int, int, int]:
        """Frames received and sent, bytes received and sent, since ever."""


class Ours:
    """This package, in this process."""

    port = 0

    def __init__(self, socket: Path, options: argparse.Namespace) -> None:
        features = [] if options.packed else ["-ring_packed"]
        self.nic = pyvirtnet.open(f"vhost-user:{socket}", ring_size=options.ring, features=features)
        burst, nic = options.burst, self.nic
        self._steps = {
            "rx": traffic.receive(nic, burst),
            "tx": traffic.transmit(nic, burst, SIZE),
            "txresend": traffic.resend(nic, burst, SIZE),
            "io": traffic.forward(nic, burst),
            "macswap": traffic.macswap(nic, burst),
        }

    def begin(self, mode: str) -> None:
        self._step = self._steps[mode]

    def spend(self, seconds: float) -> None:
        traffic.timed(self._step, seconds)

    def until_answer(self, device: Testpmd) -> str:
        text: list[str] = []

        def answered() -> bool:
            answer = device.answer()
            text.extend([] if answer is None else [answer])
            return answer is not None

        traffic.keep_going(self._step, answered)
        return text[0]

    def finish(self, mode: str, received: int = 0) -> None:
        if mode in ROUND or mode == "rx":
            while self._step():
                continue

    def counts(self) -> tuple[int, int, int, int]:
        stats = self.nic.stats
        return stats.rx_frames, stats.tx_frames, stats.rx_bytes, stats.tx_bytes


class Dpdk:
    """DPDK's virtio-user driver, in a testpmd of its own."""

    port = 1

    def __init__(self, process: Testpmd) -> None:
        self._process = process

    def begin(self, mode: str) -> None:
        self._process.command(f"set fwd {MODES[mode][1]}")
        self._process.command("start")

    def spend(self, seconds: float) -> None:
        time.sleep(seconds)

    def until_answer(self, device: Testpmd) -> str:
        return device.wait_answer()

    def finish(self, mode: str, received: int = 0) -> None:
        await_count(lambda: self._process.stats().rx, received)
        self._process.command("stop")

    def counts(self) -> tuple[int, int, int, int]:
        stats = self._process.stats()
        return stats.rx, stats.tx, stats.rx_bytes, stats.tx_bytes


def run(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(huge_pages())
        folder = Path(enter(tempfile.TemporaryDirectory(prefix="pyvirtnet-bench-")))
        device = enter(backend(folder, 2))
        ours = Ours(folder / "0", options)
        enter(ours.nic)
        dpdk = Dpdk(enter(peer(folder / "1", options.ring, options.packed, options.dpdk_burst)))
        prepare(device, ours.port)
        prove(device, ours.nic, options.burst, SIZE)
        enter(pinned(cores()[0]))
        pairs: dict[str, list[list[float]]] = {mode: [] for mode in options.modes}
        for number in range(options.pairs):
            for mode in options.modes:
                a, b = pair(device, (ours, dpdk), mode, options.seconds)
                pairs[mode].append([a, b])
                progress(f"pair {number + 1} of {options.pairs}: {mode} {a:.2f} {b:.2f} Mpps")
        return {
            "modes": {mode: summary(pairs[mode]) for mode in options.modes},
            "ring_format": ours.nic.info()["ring_format"],
            "ring_size": options.ring,
            "frame_size": SIZE,
            "burst": options.burst,
            "dpdk_burst": options.dpdk_burst,
            "seconds": options.seconds,
            "machine": machine({"dpdk": device.version}),
        }


def summary(pairs: list[list[float]]) -> dict[str, Any]:
    """Medians of either side; the ratio is the median of the pairs' own."""
    ours, theirs = zip(*pairs, strict=True)
    ratios = [a / b for a, b in pairs]
    return {
        "pyvirtnet_mpps": round(statistics.median(ours), 3),
        "dpdk_mpps": round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        "pairs": [[round(a, 3), round(b, 3)] for a, b in pairs],
    }


def pair(device: Testpmd, sides: tuple[Driver, Driver], mode: str, seconds: float) -> list[float]:
    """Mpps of both sides, each the mean of its turns; who goes first changes from turn to turn."""
    rates: dict[int, list[float]] = {side.port: [] for side in sides}
    for turn in range(TURNS):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            rates[side.port].append(measure(device, side, mode, seconds / TURNS))
    return [statistics.fmean(rates[side.port]) for side in sides]


def measure(device: Testpmd, driver: Driver, mode: str, seconds: float) -> float:
    """Mpps by the device's own counters and clock; both sides are judged by the same."""
    problem = ""
    for _ in range(ATTEMPTS):
        rate, problem = _measure(device, driver, mode, seconds)
        if not problem:
            return rate
        progress(f"{mode}: {problem}; once more")
    raise Error(f"{mode} cannot be compared", problem, "run it again on a quieter machine")


def _measure(device: Testpmd, driver: Driver, mode: str, seconds: float) -> tuple[float, str]:
    prepare(device, driver.port)
    before = driver.counts()
    device.command(f"set fwd {MODES[mode][0]}")
    driver.begin(mode)
    if mode in ROUND:
        device.command(f"start tx_first {SEED}")
    else:
        device.command("start")
    driver.spend(WARM)
    device.ask(show(driver.port))
    driver.until_answer(device)
    driver.spend(seconds)
    device.ask(show(driver.port))
    window = parse_stats(driver.until_answer(device))
    if mode.startswith("tx"):  # the sender first, so that the device sees all that was sent
        driver.finish(mode)
        went = since(driver, before)
        await_count(lambda: device.stats(driver.port).rx, went[1])
        device.command("stop")
    else:
        device.command("stop")
        driver.finish(mode, before[0] + device.stats(driver.port).tx)
        went = since(driver, before)
    rate = window.tx_pps if mode == "rx" else window.rx_pps
    problem = unequal(mode, went, device.stats(driver.port))
    return rate / 1e6, problem or ("" if rate else "nothing went within the time")


def since(driver: Driver, before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(driver.counts(), before, strict=True))


def await_count(count: Callable[[], int], frames: int) -> None:
    """Until a counter has come to `frames`, or moves no more."""
    seen, deadline = -1, 0.0
    while (now := time.monotonic()) < deadline or seen < 0:
        taken = count()
        if taken >= frames:
            return
        if taken != seen:
            seen, deadline = taken, now + SETTLE


def prepare(device: Testpmd, port: int) -> None:
    """Empty rings and counters: the device takes what is still on its way."""
    device.command(f"set portlist {port}")
    device.command("set fwd rxonly")
    device.command("start")
    device.command("stop")
    device.command("clear port stats all")


def unequal(mode: str, went: tuple[int, ...], device: Counters) -> str:
    """What is wrong with the work done, by driver and device; empty if all of it is accounted for.

    Every frame that one sent the other received, whole, but for those that were going round when
    the device stopped: they lie in its ring, as many as it had set going.
    """
    received, sent, received_bytes, sent_bytes = went
    seed = SEED * SEED_BURST if mode in ROUND else 0
    if device.tx != received:
        return f"the device sent {device.tx} frames, and {received} arrived"
    if device.rx + seed != sent:
        return f"{sent} frames were sent, and {device.rx} arrived, {seed} are going round"
    for frames, octets in ((received, received_bytes), (sent, sent_bytes)):
        if octets != frames * SIZE:
            return f"{frames} frames of {SIZE} bytes have {octets} bytes"
    return "" if received or sent else "no frame went"


def lines(result: dict[str, Any]) -> list[str]:
    title = f"{result['frame_size']}-byte frames, {result['ring_format']} rings of "
    title += f"{result['ring_size']}, bursts of {result['burst']} (DPDK: {result['dpdk_burst']})"
    text = [title, f"{'mode':>10} {'pyvirtnet':>10} {'DPDK':>8} {'ratio':>7}  pairs"]
    for mode, row in result["modes"].items():
        low, high = row["ratios"]
        text.append(
            f"{mode:>10} {row['pyvirtnet_mpps']:10.2f} {row['dpdk_mpps']:8.2f} "
            f"{row['ratio']:7.2f}  {low:.2f} to {high:.2f}"
        )
    return [*text, "Mpps by the device's own counters; medians of pairs measured in turn"]
