"""What the judges share: what was measured on, options' types, how a run says how far it is."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

OTHERS = 0.05  # of the processors, that may go elsewhere while something is measured


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def warn_if_busy() -> None:
    """Driver and device take turns where others want their cores, a ring full at a time."""
    load = os.getloadavg()[0]
    if load > len(os.sched_getaffinity(0)) / 2:
        progress(f"this machine is busy (load {load:.1f}): the figures will say little")


def watched(judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A judge's result, and what share of the processors others had meanwhile."""
    busy, own, start = _busy(), _own(), time.monotonic()
    result = judge()
    capacity = (time.monotonic() - start) * (os.cpu_count() or 1)
    share = max(0.0, (_busy() - busy) - (_own() - own)) / capacity
    result["machine"]["others"] = f"{share:.0%} of the processors"
    if share > OTHERS:
        progress(f"others had {share:.0%} of the processors: the figures will say little")
    return result


def _busy() -> float:
    """Seconds that all processors have worked, or were kept from it by the machine's host."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of this process and of those it has started and awaited."""
    return sum(os.times()[:4])


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return value


def compiled_with() -> dict[str, str]:
    """Compiler, Cython and Python of the extension modules in use, read out of the modules."""
    file = importlib.import_module("pyvirtnet._queue").__file__
    assert file is not None
    content = Path(file).read_bytes()
    compiler = re.search(rb"(GCC: \([^)]+\) [\d.]+|clang version [\d.]+)", content)
    cython = re.search(rb"_cython_(\d+_\d+_\w+)", content)
    return {
        "architecture": platform.machine(),
        "compiler": compiler.group(1).decode() if compiler else "unknown",
        "cython": cython.group(1).decode().replace("_", ".") if cython else "unknown",
        "python": platform.python_version(),
    }


def machine(versions: dict[str, str]) -> dict[str, Any]:
    """Where and with what a result came about."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "numpy": np.__version__,
        **compiled_with(),
        **versions,
    }


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found.group(1).strip() if found else platform.processor() or "unknown"


def _commit() -> str:
    folder = os.environ.get("PYVIRTNET_PROJECT") or str(Path(__file__).parents[2])
    command = ["git", "-C", folder, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def page(found: dict[str, tuple[str, dict[str, Any], list[str]]]) -> str:
    """docs/benchmarks/README.md: every judge's table, and what it was measured on."""
    text = ["# Benchmarks", "", "Written by `tools/bench all`, which measures it all anew.", ""]
    for name, (about, where, table) in found.items():
        facts = ", ".join(f"{key} {value}" for key, value in where.items())
        title = about.strip().partition(": ")[2]
        text += [f"## {name}", "", title[:1].upper() + title[1:], ""]
        text += ["```", *table, "```", "", f"Measured with: {facts}.", ""]
    return "\n".join(text)
