"""tools/bench core: what the driver alone costs a frame, against a device in memory."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import Error, NoSuchDevice
from ._bench_report import compiled_with, machine, pinned, progress

HELP = "nanoseconds and instructions a frame of the driver alone, against a device in memory"
# Instructions are counted inside recv_burst and send_burst alone, as Python calls them.
_METHODS = "__pyx_pw_9pyvirtnet_6_queue_9QueuePair_*_burst"
_MARK = "getloadavg"  # the loop's call between its parts; nothing else calls it
_PARTS = 4  # marks a case: the second and the fourth part are rounds, the fourth counts
GROWTH = 1.05  # of the stored figures, by the same compiler and the same Cython
OTHER_COMPILER = 1.25  # by another


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--callgrind", action="store_true", help="count instructions, with valgrind")
    add("--packed", action="store_true", help="packed rings")
    add("--frames", type=int, default=200_000, metavar="N", help="timed in each case (200000)")
    add("--against", type=Path, metavar="FILE", help="fail if instructions have grown over FILE's")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from ._bench_core_loop import CASES, FRAME_SIZE, RING_SIZE, Bed, nanoseconds

    bed = Bed(options.packed)
    with bed.port, pinned(min(os.sched_getaffinity(0))):
        times = [nanoseconds(bed, *case, options.frames) for case in CASES]
    counts = instructions(options.packed) if options.callgrind or options.against else {}
    rows = [
        {"mode": mode, "burst": burst, "ns": round(time, 2)}
        | ({"instructions": counts[mode, burst]} if counts else {})
        for (mode, burst), time in zip(CASES, times, strict=True)
    ]
    result = {
        "frame_size": FRAME_SIZE,
        "ring_size": RING_SIZE,
        "ring_format": "packed" if options.packed else "split",
        "rows": rows,
        "machine": machine({}),
    }
    if options.against:
        grown = growth(result, json.loads(options.against.read_text()))
        if grown:
            mend = f"make it cheaper, or store new figures: tools/bench all (in {options.against})"
            raise Error("a frame costs more instructions", "; ".join(grown), mend)
    return result


def instructions(packed: bool) -> dict[tuple[str, int], float]:
    """Instructions a frame inside recv_burst and send_burst, case by case."""
    from ._bench_core_loop import CASES, FRAMES

    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NoSuchDevice("cannot run valgrind", "it is not installed", "apt-get install valgrind")
    progress("counting instructions (half a minute)")
    with tempfile.TemporaryDirectory(prefix="pyvirtnet-bench-") as folder:
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += ["--collect-atstart=no", f"--dump-before={_MARK}"]
        command += [f"--toggle-collect={_METHODS}"]  # callgrind takes one pattern, not two
        command += [sys.executable, "-P", "-m", f"{__package__}._bench_core_loop"]
        command += ["packed"] if packed else []
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode:
            raise Error("instructions cannot be counted", done.stderr[-1500:])
        parts = [_total(Path(folder, f"out.{_PARTS * i}")) for i in range(1, len(CASES) + 1)]
    return {
        case: round(part / (FRAMES // case[1] * case[1]), 2)
        for case, part in zip(CASES, parts, strict=True)
    }


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)$", dump.read_text(), re.MULTILINE)
    if found is None or found.group(1) == "0":
        raise Error("instructions cannot be counted", f"callgrind counted none in {dump.name}")
    return int(found.group(1))


def growth(result: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """The cases that have become dearer than allowed. Compilers differ a little: the bound is
    closer where the stored figures were made by the same."""
    keys = ("architecture", "compiler", "cython")
    ours, theirs = compiled_with(), stored["machine"]
    same = all(ours[key] == theirs[key] for key in keys)
    same = same and ours["python"].split(".")[:2] == theirs["python"].split(".")[:2]
    factor = GROWTH if same else OTHER_COMPILER
    now = {(row["mode"], row["burst"]): row["instructions"] for row in result["rows"]}
    then = {(row["mode"], row["burst"]): row["instructions"] for row in stored["rows"]}
    if now.keys() != then.keys():
        return ["the cases are others than the stored ones"]
    return [
        f"{mode} at burst {burst}: {now[mode, burst]} instructions, stored {old}"
        for (mode, burst), old in then.items()
        if now[mode, burst] > old * factor
    ]


def lines(result: dict[str, Any]) -> list[str]:
    counted = "instructions" in result["rows"][0]
    title = f"{'mode':>10} {'burst':>6} {'ns/frame':>9}" + counted * f" {'instructions/frame':>19}"
    rings = f"{result['ring_format']} rings of {result['ring_size']}"
    text = [f"{result['frame_size']}-byte frames, {rings}", title]
    for row in result["rows"]:
        line = f"{row['mode']:>10} {row['burst']:6} {row['ns']:9.1f}"
        text.append(line + (f" {row['instructions']:19.1f}" if counted else ""))
    return text
