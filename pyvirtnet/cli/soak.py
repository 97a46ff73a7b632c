"""soak: numbered frames round and round, a hundred million, and what became of them.

None may be lost, doubled, damaged or overtaken, and nothing may grow.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyvirtnet

from .._stamp import MIN_STAMPED
from ..negotiate import parse
from ..port import Port
from ..spec import MAX_FRAME
from ._bench_report import machine, pinned, warn_if_busy
from ._bench_testpmd import Testpmd, backend, cores, huge_pages
from ._command import FAILED, OK, Parser, program, run
from ._pktgen_traffic import Stop
from ._soak_loop import Loop, descriptors, fitting, resident

FRAMES = 100_000_000
SAMPLES = 20  # of the memory, spread over the run
GROWTH_KIB = 256  # that may be noise of the interpreter's allocator
SLICE = 0.25  # seconds between two looks at the progress
LINE_SECONDS = 5.0  # between two lines of it in a file
WRONG = ("lost", "duplicated", "reordered", "corrupt", "foreign")

_DEVICE = "a device that gives back what it takes (a DPDK testpmd of its own, in io mode)"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    return run("soak", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    warn_if_busy()
    with (
        _device(options.device) as (address, device, versions),
        pyvirtnet.open(address, features=options.without) as port,
        Stop() as stop,
    ):
        result = soak(port, options, stop, Progress())
        if device is not None:
            counters = device.stats()
            result["device"] = {"rx": counters.rx, "tx": counters.tx}
    result["machine"] = machine(versions)
    print(json.dumps(result, indent=1) if options.json else "\n".join(lines(result)))
    if stop.signal:
        return 128 + stop.signal
    return OK if result["passed"] else FAILED


def parser() -> Parser:
    made = Parser(prog=program("soak"), description=__doc__)
    add = made.add_argument
    add("--frames", type=_frames, default=FRAMES, metavar="N", help="how many, at least (1e8)")
    add("--burst", type=_number(1, 256), default=32, metavar="N", help="frames of a call (32)")
    mix = "frame sizes of the bursts, in turn (a mix of 60, 1514 and 9014, what fits)"
    add("--sizes", type=_sizes, metavar="N,…", help=mix)
    without = "features of the device not to be used, such as ring_packed"
    add("--without", type=_without, default=[], metavar="F,…", help=without)
    add("--device", metavar="ADDRESS", help=_DEVICE)
    add("--json", action="store_true", help="the result as JSON, on stdout")
    return made


def _number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return convert


def _frames(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1e12")
    return int(value)


def _sizes(text: str) -> list[int]:
    return [_number(MIN_STAMPED, MAX_FRAME)(part) for part in text.split(",")]


def _without(text: str) -> list[str]:
    switches = [f"-{name}" for name in text.split(",")]
    try:
        parse(switches)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return switches


@contextmanager
def _device(address: str | None) -> Iterator[tuple[str, Testpmd | None, dict[str, str]]]:
    """Where the loop is closed: an address, and the testpmd behind it if it is ours."""
    if address is not None:
        yield address, None, {"device": address}
        return
    with ExitStack() as stack:
        stack.enter_context(huge_pages())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvirtnet-soak-")))
        testpmd = stack.enter_context(backend(folder, 1))
        stack.enter_context(pinned(cores()[0]))
        testpmd.command("set fwd io")
        testpmd.command("start")
        yield f"vhost-user:{folder / '0'}", testpmd, {"dpdk": testpmd.version}


def soak(
    port: Port, options: argparse.Namespace, stop: Stop, progress: Callable[[int, int, float], None]
) -> dict[str, Any]:
    """The figures, of what was done until the end or Ctrl-C."""
    frames, sizes = options.frames, fitting(port, options.sizes)
    loop = Loop(port, frames, options.burst, sizes)
    samples: list[int] = []
    port.recv_burst(1, timeout=0.001)  # what a port sleeps with stays open
    opened = descriptors()
    begin = time.monotonic()
    while not loop.done and not stop.signal:
        loop.run(SLICE)
        while len(samples) < SAMPLES and loop.seen >= frames * (len(samples) + 1) // SAMPLES:
            samples.append(resident())
        progress(loop.seen, frames, time.monotonic() - begin)
    seconds = time.monotonic() - begin
    loop.drain()
    port.reclaim()
    port.recv_burst(1)  # pages that nobody holds any more are posted again
    samples.append(resident())
    result = figures(port, loop, samples, descriptors() - opened)
    result["seconds"] = round(seconds, 2)
    result["mpps"] = round(loop.seen / seconds / 1e6, 3)
    result["burst"] = options.burst
    result["sizes"] = {size: list(sizes).count(size) for size in sorted({*sizes})}
    result["interrupted"] = bool(stop.signal)
    result["passed"] &= not stop.signal
    return result


def figures(port: Port, loop: Loop, samples: list[int], opened: int) -> dict[str, Any]:
    """What became of the frames, and what was left behind."""
    checker, info = loop.checker, port.info()
    result: dict[str, Any] = {"frames": loop.sent, "received": checker.received}
    result |= {"lost": checker.lost(loop.sent)}
    result |= {name: getattr(checker, name) for name in WRONG[1:]}
    result["memory_kib"] = {"samples": samples, "growth": samples[-1] - samples[0]}
    result["descriptors_left"] = opened
    result["pages_missing"] = info["pages"] - info["free_pages"] - info["posted_pages"]
    result["counters"] = asdict(port.stats)
    result |= {name: info[name] for name in ("ring_format", "ring_sizes", "features")}
    result["passed"] = (
        0 < result["frames"] == result["received"] == result["counters"]["rx_frames"]
        and not any(result[name] for name in WRONG)
        and result["counters"]["tx_frames"] == result["counters"]["tx_reclaimed"]
        and result["memory_kib"]["growth"] <= GROWTH_KIB
        and not result["descriptors_left"]
        and not result["pages_missing"]
    )
    return result


class Progress:
    """A live line on a terminal, a new one now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._said = -LINE_SECONDS

    def __call__(self, seen: int, frames: int, seconds: float) -> None:
        ends = seen >= frames
        if not self._terminal and not ends and seconds - self._said < LINE_SECONDS:
            return
        self._said = seconds
        text = f"soak: {100 * min(seen, frames) // frames} %, {seen} frames, "
        text += f"{seen / seconds / 1e6:.2f} Mpps, {resident() / 1024:.1f} MiB resident"
        begin, end = ("\r", "\n" if ends else "") if self._terminal else ("", "\n")
        print(f"{begin}{text}", end=end, file=sys.stderr, flush=True)


def lines(result: dict[str, Any]) -> list[str]:
    memory = result["memory_kib"]
    wrong = ", ".join(f"{result[name]} {name}" for name in WRONG)
    return [
        f"{result['frames']} frames sent, {result['received']} came back in {result['seconds']} s: "
        f"{result['mpps']} Mpps, {result['ring_format']} rings",
        wrong,
        "resident KiB: " + " ".join(map(str, memory["samples"])),
        f"growth {memory['growth']} KiB, {result['descriptors_left']} descriptors left open, "
        f"{result['pages_missing']} pages missing",
        _verdict(result),
    ]


def _verdict(result: dict[str, Any]) -> str:
    """An interrupted run does not pass; it has failed where a frame went wrong until then."""
    if result["passed"]:
        return "passed"
    wrong = any(result[name] for name in WRONG)
    return "interrupted" if result["interrupted"] and not wrong else "FAILED"


if __name__ == "__main__":
    sys.exit(main())
