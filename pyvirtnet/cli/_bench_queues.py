"""A thread for each queue pair, against devices in memory: what pairs gain beside a GIL."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ._bench_core_loop import Bed
from ._bench_report import machine, progress

HELP = "frames a second with a thread for each of several queue pairs"
PAIRS = (1, 2, 4)
BURSTS = (64, 256)
MODES = ("receive", "transmit", "forward")
ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time", type=float, default=0.3, metavar="S", help="seconds of each run (default 0.3)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[tuple[str, int, int], list[float]] = {}
    for turn in range(ROUNDS):
        progress(f"round {turn + 1} of {ROUNDS}")
        for pairs in PAIRS:
            bed = Bed(pairs=pairs)
            for mode in MODES:
                for burst in BURSTS:
                    rate = _together(bed, mode, burst, options.time)
                    rates.setdefault((mode, burst, pairs), []).append(rate)
            bed.port.close()
    rows = [
        {
            "mode": mode,
            "burst": burst,
            "pairs": pairs,
            "mpps": round(statistics.median(found), 3),
            "times_one": round(
                statistics.median(
                    many / one for many, one in zip(found, rates[mode, burst, 1], strict=True)
                ),
                2,
            ),
        }
        for (mode, burst, pairs), found in sorted(rates.items())
    ]
    return {"gil": getattr(sys, "_is_gil_enabled", lambda: True)(), "rows": rows,
            "machine": machine({})}  # fmt: skip


def _together(bed: Bed, mode: str, burst: int, seconds: float) -> float:
    """Millions of frames a second of all pairs, each with a thread."""
    steps = [bed.call(mode, burst, pair) for pair in range(len(bed.port.queues))]
    before = bed.counted(mode)
    start = threading.Barrier(len(steps) + 1)
    end = threading.Event()
    threads = [threading.Thread(target=_work, args=(step, start, end)) for step in steps]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    return (bed.counted(mode) - before) / (time.perf_counter() - begun) / 1e6


def _work(
    steps: tuple[Callable[[], object], ...], start: threading.Barrier, end: threading.Event
) -> None:
    device, driver, after = steps
    start.wait()
    while True:
        for _ in range(50):
            device()
            driver()
            after()
        if end.is_set():  # on a busy machine that may be before anything was done
            return


def lines(result: dict[str, Any]) -> list[str]:
    text = [
        f"{'mode':>10} {'burst':>6} {'pairs':>6} {'Mpps':>8} {'of one pair':>12}",
        *(
            f"{row['mode']:>10} {row['burst']:>6} {row['pairs']:>6} {row['mpps']:8.2f}"
            f" {row['times_one']:11.2f}x"
            for row in result["rows"]
        ),
    ]
    gil = "This Python has a GIL" if result["gil"] else "This Python has no GIL"
    return [*text, f"{gil}; the rate includes the devices' share, in the same threads."]
