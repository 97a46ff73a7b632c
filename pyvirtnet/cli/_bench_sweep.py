"""tools/bench sweep: receive and forward rates over burst, frame size and ring size."""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pyvirtnet

from . import _bench_traffic as traffic
from ._bench_report import count, machine, pinned, progress, seconds
from ._bench_testpmd import SEED_BURST, Testpmd, backend, cores, huge_pages

HELP = "receive and forward over burst 1-256, size 60-9014, ring 64-4096: a CSV and a plot"
BURSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIZES = (60, 128, 129, 256, 512, 1024, 1514, 2048, 4084, 4085, 9014)
RINGS = (64, 128, 256, 512, 1024, 2048, 4096)
BURST, SIZE, RING = 64, 60, 256  # what stays when another varies
MODES = {"receive": "txonly", "forward": "io"}
MBUF = 9728  # bytes of a buffer of the device's: a frame of any size lies in one
WARM = 0.05


class Point(NamedTuple):
    mode: str
    varied: str
    burst: int
    size: int
    ring: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("."), metavar="DIR", help="for sweep.csv, sweep.svg (.)")
    add("--rounds", type=count, default=5, metavar="N", help="over all points; medians count (5)")
    add("--seconds", type=seconds, default=0.2, metavar="S", help="of each measurement (0.2)")
    add("--quick", action="store_true", help="the ends of each range only")


def points(quick: bool) -> Iterator[Point]:
    for mode in MODES:
        for burst in BURSTS[:: len(BURSTS) - 1] if quick else BURSTS:
            yield Point(mode, "burst", burst, SIZE, RING)
        for size in SIZES[:: len(SIZES) - 1] if quick else SIZES:
            yield Point(mode, "size", BURST, size, RING)
        for ring in RINGS[:: len(RINGS) - 1] if quick else RINGS:
            yield Point(mode, "ring", BURST, SIZE, ring)


def run(options: argparse.Namespace) -> dict[str, Any]:
    chosen = list(points(options.quick))
    rates: dict[Point, list[float]] = {point: [] for point in chosen}
    with huge_pages(), tempfile.TemporaryDirectory(prefix="pyvirtnet-bench-") as folder:
        with backend(Path(folder), 1, [f"--mbuf-size={MBUF}"]) as device, pinned(cores()[0]):
            for number in range(options.rounds):  # a bad minute is then one of each point's rounds
                progress(f"round {number + 1} of {options.rounds}: {len(chosen)} points")
                for point in chosen:
                    with pyvirtnet.open(f"vhost-user:{folder}/0", ring_size=point.ring) as port:
                        rates[point].append(_rate(device, port, point, options.seconds))
            version = device.version
    rows = [_row(point, rates[point]) for point in chosen]
    options.out.mkdir(parents=True, exist_ok=True)
    files = [write_csv(rows, options.out / "sweep.csv")]
    files += plot(rows, options.out / "sweep.svg")
    progress(f"written: {', '.join(map(str, files))}")
    return {
        "rows": rows,
        "files": [path.name for path in files],
        "machine": machine({"dpdk": version}),
    }


def _row(point: Point, rates: list[float]) -> dict[str, Any]:
    rate = statistics.median(rates)
    return {
        **point._asdict(),
        "mpps": round(rate / 1e6, 4),
        "gbps": round(rate * point.size * 8 / 1e9, 3),
        "least_mpps": round(min(rates) / 1e6, 4),
        "most_mpps": round(max(rates) / 1e6, 4),
    }


def _rate(device: Testpmd, port: pyvirtnet.Port, point: Point, seconds: float) -> float:
    device.command(f"set txpkts {point.size}")
    device.command(f"set fwd {MODES[point.mode]}")
    if point.mode == "receive":
        step = traffic.receive(port, point.burst)
        device.command("start")
    else:
        step = traffic.forward(port, point.burst)
        device.command(f"start tx_first {max(1, point.ring // 2 // SEED_BURST)}")
    before = port.stats
    traffic.timed(step, WARM)
    rate = traffic.timed(step, seconds)
    device.command("stop")
    after = port.stats
    frames, octets = after.rx_frames - before.rx_frames, after.rx_bytes - before.rx_bytes
    if octets != frames * point.size or not frames:
        raise pyvirtnet.Error(f"{point} was not measured", f"{frames} frames, {octets} bytes")
    return rate


def write_csv(rows: list[dict[str, Any]], path: Path) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def plot(rows: list[dict[str, Any]], path: Path) -> list[Path]:
    """The files written: none without matplotlib, which is said."""
    try:
        matplotlib = import_module("matplotlib.figure")
    except ImportError:
        progress("no plot: matplotlib is not installed (pip install 'pyvirtnet[plot]')")
        return []
    figure = matplotlib.Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, varied in zip(axes, ("burst", "size", "ring"), strict=True):
        for mode in MODES:
            chosen = [row for row in rows if (row["mode"], row["varied"]) == (mode, varied)]
            places = [row[varied] for row in chosen]
            axis.plot(places, [row["mpps"] for row in chosen], "o-", label=mode)
            least, most = ([row[key] for row in chosen] for key in ("least_mpps", "most_mpps"))
            axis.fill_between(places, least, most, alpha=0.15)
        axis.set(xscale="log", xlabel=varied, ylabel="Mpps", ylim=(0, None))
        axis.legend()
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"burst {BURST}, {SIZE}-byte frames, ring {RING}, where not varied (median, range)"
    )
    figure.savefig(path)
    return [path]


def lines(result: dict[str, Any]) -> list[str]:
    text = []
    for row in result["rows"]:
        text.append("{mode:>8} {varied:>6} {burst:5} {size:6} {ring:6}".format(**row))
        text[-1] += f" {row['mpps']:9.3f} {row['least_mpps']:9.3f} to {row['most_mpps']:6.3f}"
        text[-1] += f" {row['gbps']:9.3f}"
    title = f"{'mode':>8} {'varied':>6} {'burst':>5} {'size':>6} {'ring':>6}"
    title += f" {'Mpps':>9} {'of rounds':>19} {'Gb/s':>9}"
    return [title, *text, f"Files: {', '.join(result['files'])}"]
