"""A thread, or a process, for each of several queue pairs, against devices in memory."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..errors import Error
from ._bench_core_loop import MODES, RING_SIZE, Bed, Step
from ._bench_report import machine, progress

HELP = "frames a second with a thread, or a process, for each of several queue pairs"
PAIRS = (1, 2, 4)
BURSTS = (32, 256, 4096)  # in rings of 256, the last one of 4096
ROUNDS = 5
_STEPS = 50  # between looks at the clock
_START_SECONDS = 60  # for every process to be there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time", type=float, default=0.3, metavar="S", help="seconds of each run (default 0.3)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[tuple[str, str, int, int], list[float]] = {}
    for turn in range(ROUNDS):
        progress(f"round {turn + 1} of {ROUNDS}")
        for kind, together in (("threads", _threads), ("processes", _processes)):
            for mode in MODES:
                for burst in BURSTS:
                    for pairs in PAIRS:
                        rate = together(mode, burst, pairs, options.time)
                        rates.setdefault((kind, mode, burst, pairs), []).append(rate)
    rows = [
        {
            "each": kind,
            "mode": mode,
            "burst": burst,
            "pairs": pairs,
            "mpps": round(statistics.median(found), 3),
            "times_one": round(
                statistics.median(
                    many / one for many, one in zip(found, rates[kind, mode, burst, 1], strict=True)
                ),
                2,
            ),
        }
        for (kind, mode, burst, pairs), found in sorted(rates.items())
    ]
    return {"gil": getattr(sys, "_is_gil_enabled", lambda: True)(), "rows": rows,
            "machine": machine({})}  # fmt: skip


def _threads(mode: str, burst: int, pairs: int, seconds: float) -> float:
    """Millions of frames a second of all pairs of a port, each with a thread."""
    bed = Bed(pairs=pairs, ring_size=_ring(burst))
    steps = [bed.call(mode, burst, pair) for pair in range(pairs)]
    start = threading.Barrier(pairs + 1)
    end = threading.Event()

    def work(own: tuple[Step, Step, Step]) -> None:
        start.wait()
        _work(own, end.is_set)

    threads = [threading.Thread(target=work, args=(own,)) for own in steps]
    for thread in threads:
        thread.start()
    before = bed.counted(mode)
    start.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    rate = (bed.counted(mode) - before) / (time.perf_counter() - begun) / 1e6
    bed.port.close()
    return rate


def _processes(mode: str, burst: int, pairs: int, seconds: float) -> float:
    """The same of as many processes, each with a port of one pair."""
    fork = multiprocessing.get_context("fork")
    start, rates = fork.Barrier(pairs), fork.SimpleQueue()

    def work() -> None:
        bed = Bed(ring_size=_ring(burst))
        steps = bed.call(mode, burst)
        start.wait(_START_SECONDS)
        begun = time.perf_counter()
        _work(steps, lambda: time.perf_counter() - begun >= seconds)
        rates.put(bed.counted(mode) / (time.perf_counter() - begun) / 1e6)
        bed.port.close()

    processes = [fork.Process(target=work) for _ in range(pairs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise Error("a process of the benchmark failed", "see above")
    total: float = sum(rates.get() for _ in processes)
    return total


def _ring(burst: int) -> int:
    return max(RING_SIZE, burst)


def _work(steps: tuple[Step, Step, Step], ended: Callable[[], bool]) -> None:
    device, driver, after = steps
    while True:
        for _ in range(_STEPS):
            device()
            driver()
            after()
        if ended():  # on a busy machine that may be before anything was done
            return


def lines(result: dict[str, Any]) -> list[str]:
    text = [
        f"{'each with a':>12} {'mode':>9} {'burst':>6} {'pairs':>6} {'Mpps':>8} {'of one':>8}",
        *(
            f"{_ONE[row['each']]:>12} {row['mode']:>9} {row['burst']:6} {row['pairs']:6}"
            f" {row['mpps']:8.2f} {row['times_one']:7.2f}x"
            for row in result["rows"]
        ),
    ]
    gil = "This Python has a GIL" if result["gil"] else "This Python has no GIL"
    return [*text, f"{gil}; the rate includes the devices' share, in the same threads."]


_ONE = {"threads": "thread", "processes": "process"}
