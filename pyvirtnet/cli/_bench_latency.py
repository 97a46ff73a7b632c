"""tools/bench latency: the round trip of one frame in flight, polled; beside AF_PACKET."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyvirtnet

from ..errors import Error
from ._bench_af_packet import PATIENCE, Cable, round_trips
from ._bench_report import count, machine, pinned, progress, seconds
from ._bench_testpmd import Testpmd, backend, cores, huge_pages
from ._bench_traffic import drain, frame_of

HELP = "round trip of one frame in flight, polled, beside AF_PACKET over a veth pair"
SIZE = 64
WAYS = {
    "pyvirtnet, testpmd io": "io",
    "pyvirtnet, testpmd macswap": "macswap",
}
AF_PACKET = "AF_PACKET, veth, AF_PACKET"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--seconds", type=seconds, default=2.0, metavar="S", help="of each run (2)")
    add("--runs", type=count, default=5, metavar="N", help="of each way, in turn (5)")


def run(options: argparse.Namespace) -> dict[str, Any]:
    samples: dict[str, list[int]] = {name: [] for name in (*WAYS, AF_PACKET)}
    with ExitStack() as stack:
        stack.enter_context(huge_pages())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyvirtnet-bench-")))
        device = stack.enter_context(backend(folder, 1))
        port = stack.enter_context(pyvirtnet.open(f"vhost-user:{folder / '0'}"))
        cable = stack.enter_context(Cable())
        for number in range(options.runs):
            for name, mode in WAYS.items():
                progress(f"run {number + 1} of {options.runs}: {name}")
                samples[name] += _ours(port, device, mode, options.seconds)
            progress(f"run {number + 1} of {options.runs}: {AF_PACKET}")
            samples[AF_PACKET] += _af_packet(cable, options.seconds)
        return {
            "frame_size": SIZE,
            "round_trip": {name: percentiles(taken) for name, taken in samples.items()},
            "machine": machine({"dpdk": device.version}),
        }


def _ours(port: pyvirtnet.Port, device: Testpmd, mode: str, seconds: float) -> list[int]:
    device.command(f"set fwd {mode}")
    device.command("start")
    tx = port.alloc_burst(1, SIZE)
    tx.data[:] = frame_of(SIZE)
    send, receive = port.send_burst, port.recv_burst
    with pinned(cores()[0]):
        taken = round_trips(lambda: send(tx), lambda: len(receive(1)), seconds)
    device.command("stop")
    if left := len(list(drain(port))):
        raise Error("round trips cannot be told apart", f"{left} frames came more than was sent")
    return taken


def _af_packet(cable: Cable, seconds: float) -> list[int]:
    driver_core, peer_core = cores()
    echo = subprocess.Popen(cable.command(1, peer_core, "echo", "cable0"), process_group=0)
    try:
        command = cable.command(0, driver_core, "ping", "cable0", str(SIZE), str(seconds))
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=seconds + 6 * PATIENCE
        )
    finally:
        echo.kill()
        echo.wait()
    if done.returncode:
        raise Error("AF_PACKET cannot be measured", done.stderr[-800:])
    taken: list[int] = json.loads(done.stdout)
    return taken


def percentiles(taken: Sequence[int]) -> dict[str, float]:
    ordered = sorted(taken)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 3)

    points = {"p50_us": 0.5, "p99_us": 0.99, "p99.9_us": 0.999}
    row = {name: at(share) for name, share in points.items()}
    return {"round_trips": len(ordered), "least_us": at(0.0), **row}


def lines(result: dict[str, Any]) -> list[str]:
    rows = result["round_trip"]
    columns = list(next(iter(rows.values())))
    text = [f"round trip of one {result['frame_size']}-byte frame in flight, polled at both ends"]
    text.append(f"{'':28}" + "".join(f"{name:>13}" for name in columns))
    for name, row in rows.items():
        text.append(f"{name:28}" + "".join(f"{row[column]:>13}" for column in columns))
    return text
