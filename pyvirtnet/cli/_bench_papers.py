"""tools/bench papers: the two changes to Linux's virtio_net that this driver is named after, again.

Mergeable receive buffers (2008) against buffers for the largest frame, and reclaiming on the next
send (2009) against interrupts for it: in a guest, on QEMU's device and a tap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import Error
from ._bench_papers_peer import HEADERS, SEGMENT
from ._bench_report import count, machine, progress, seconds
from ._bench_vm import await_end, hardware, qemu_version
from ._vm_guest import Guest
from ._vm_image import image
from ._vm_link import TapNamespace
from ._vm_machine import Machine
from ._vm_package import payload

HELP = "mergeable against big buffers, lazy reclaim against interrupts: a table and a plot"
SEGMENTS = (1, 4, 11, 22, 44)  # of the frames received: 1514 bytes to almost 64 KiB
SIZES = (60, *(HEADERS + SEGMENT * n for n in SEGMENTS))
BURSTS = (1, 32)
TIMEOUT = 600.0
BASES = {"receive": "big", "transmit": "interrupts"}  # what the ratios are of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("."), metavar="DIR", help="for papers.svg (.)")
    add("--rounds", type=count, default=3, metavar="N", help="of all variants in turn (3)")
    add("--seconds", type=seconds, default=0.5, metavar="S", help="of each measurement (0.5)")
    add("--quick", action="store_true", help="frames of 1514 bytes, and bursts of 32, only")


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes, bursts = ((SIZES[1],), (BURSTS[-1],)) if options.quick else (SIZES, BURSTS)
    found = _measure(sizes, bursts, options)
    result: dict[str, Any] = {kind: rows(found["rounds"], kind) for kind in BASES}
    options.out.mkdir(parents=True, exist_ok=True)
    files = plot(result, options.out / "papers.svg")
    return {
        **result,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "files": [path.name for path in files],
        "machine": machine({"qemu": qemu_version(), **found["versions"]}),
    }


def _measure(sizes: tuple[int, ...], bursts: tuple[int, ...], options: argparse.Namespace) -> Any:
    system, output = image(), bytearray()
    words = ["python3", "-P", "-m", f"{__package__}._bench_papers_guest"]
    words += ["--rounds", str(options.rounds), "--seconds", str(options.seconds)]
    words += ["--sizes", ",".join(map(str, sizes)), "--bursts", ",".join(map(str, bursts))]
    with (
        TapNamespace(1) as namespace,
        _peer(namespace.prefix),
        Guest(
            system,
            payload(system),
            Machine(ports=1, link="tap"),
            words,
            stdout=output.extend,
            stderr=lambda data: print(data.decode(errors="replace"), end="", file=sys.stderr),
            timeout=options.rounds * TIMEOUT,
            prefix=[*hardware(), *namespace.prefix],
        ) as guest,
    ):
        await_end(guest)
    return json.loads(output)


@contextmanager
def _peer(prefix: list[str]) -> Iterator[None]:
    command = [*prefix, sys.executable, "-P", "-m", f"{__package__}._bench_papers_peer", "tap0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as peer:
        try:
            assert peer.stdout is not None
            if peer.stdout.readline() != b"ready\n":
                raise Error("nobody sends on the tap", f"status {peer.wait()}")
            yield
        finally:
            peer.kill()


def rows(rounds: list[list[Any]], kind: str) -> list[dict[str, Any]]:
    """Medians for each variant; ratios are medians of the rounds' own."""
    found: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for one in rounds:
        for what, row in one:
            if what == kind:
                place = row["size"], row.get("burst", 0), row["mode"]
                found.setdefault(place, []).append(row)
    return [_row(place, found, BASES[kind]) for place in found]


def _row(place: tuple[int, int, str], found: dict[Any, list[dict[str, Any]]], base: str) -> Any:
    size, burst, mode = place
    mine, theirs = found[place], found[size, burst, base]
    row: dict[str, Any] = {"mode": mode, "size": size}
    if burst:
        row["burst"] = burst
    for key in mine[0].keys() - {"mode", "size", "burst"}:
        row[key] = round(statistics.median(one[key] for one in mine))
    row["gbps"] = round(row["pps"] * size * 8 / 1e9, 3)
    for prefix in ("", "late_") if "late_pps" in row else ("",):
        pairs = [(a[f"{prefix}pps"], b[f"{prefix}pps"]) for a, b in zip(mine, theirs, strict=True)]
        row[f"{prefix}ratio"] = round(statistics.median(a / b for a, b in pairs), 2)
    row["rounds"] = [round(one["pps"]) for one in mine]
    return row


def plot(result: dict[str, Any], path: Path) -> list[Path]:
    """The files written: none without matplotlib, which is said."""
    try:
        matplotlib = import_module("matplotlib.figure")
    except ImportError:
        progress("no plot: matplotlib is not installed (pip install 'pyvirtnet[plot]')")
        return []
    figure = matplotlib.Figure(figsize=(16, 4), layout="constrained")
    rates, late, holds, sends = figure.subplots(1, 4)
    _lines_of(rates, result["receive"], lambda row: row["gbps"])
    rates.set(xscale="log", ylabel="Gb/s", title="received, polling", ylim=(0, None))
    _lines_of(late, result["receive"], lambda row: row["late_pps"] / 1e3)
    late.set(xscale="log", yscale="log", ylabel="kpps", title="received, a call each 5 ms")
    _lines_of(holds, result["receive"], lambda row: row["holds"])
    holds.set(xscale="log", yscale="log", ylabel="frames", title="a ring of 256 holds")
    for axis in (rates, late, holds):
        axis.set_xlabel("bytes of a frame")
        axis.legend(*axis.get_legend_handles_labels())
        axis.grid(alpha=0.3)
    names = [f"{row['mode']}\n{row['burst']} a call" for row in result["transmit"]]
    sends.barh(names[::-1], [row["pps"] / 1e3 for row in result["transmit"]][::-1])
    sends.set(xlabel="kpps", title="sent, 60 bytes")
    figure.savefig(path)
    return [path]


def _lines_of(axis: Any, found: list[dict[str, Any]], value: Callable[[Any], float]) -> None:
    for mode in dict.fromkeys(row["mode"] for row in found):
        chosen = [row for row in found if row["mode"] == mode]
        axis.plot([row["size"] for row in chosen], [*map(value, chosen)], "o-", label=mode)


def lines(result: dict[str, Any]) -> list[str]:
    title = f"{'received':>14} {'bytes':>6} {'ring holds':>10} {'pps':>8} {'Gb/s':>7} {'':>7}"
    text = [f"{title} {'5 ms apart':>12}"]
    for row in result["receive"]:
        text.append("{mode:>14} {size:6} {holds:10} {pps:8} {gbps:7.3f}".format(**row))
        text[-1] += f" {row['ratio']:5.2f} x {row['late_pps']:10} {row['late_ratio']:5.2f} x"
    text.append(f"{'sent':>14} {'a call':>6} {'interrupts':>10} {'pps':>8} {'kicks':>7} {'':>7}")
    for row in result["transmit"]:
        text.append("{mode:>14} {burst:6} {interrupts:10} {pps:8} {kicks:7}".format(**row))
        text[-1] += f" {row['ratio']:5.2f} x"
    return [*text, "interrupts and kicks a second; x: times big buffers, times interrupts"]
