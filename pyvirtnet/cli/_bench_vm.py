"""tools/bench vm: in a guest, on a cable: pyvirtnet, DPDK, AF_PACKET, scapy and pcapy-ng."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import Error
from ._bench_report import count, machine, progress, seconds
from ._vm_guest import Guest
from ._vm_image import cache, find_program, image
from ._vm_machine import Machine
from ._vm_package import payload

HELP = "in a guest, on a cable: pyvirtnet, DPDK, AF_PACKET from Python, scapy, pcapy-ng"
SIZES = (60, 1514, 9014)
PCAPY = "pcapy-ng"
TOOLS = {
    "pyvirtnet": "pyvirtnet (vfio-pci)",
    "dpdk": "DPDK testpmd (vfio-pci)",
    "af_packet": "AF_PACKET from Python",
    "scapy": "scapy",
    "pcapy": PCAPY,
}
TIMEOUT = 300.0  # seconds of a round
# Of polling drivers: QEMU's first thread is the device, and like hardware waits for nobody. Its
# other threads are the guest's processors, which never rest and would keep it from a core.
HARDWARE = ["chrt", "--reset-on-fork", "--rr", "1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pairs", type=count, default=3, metavar="N", help="rounds of all tools in turn (3)")
    add("--seconds", type=seconds, default=1.0, metavar="S", help="that each one sends (1)")
    add("--sizes", type=_sizes, default=list(SIZES), metavar="N,…", help="60,1514,9014")


def _sizes(text: str) -> list[int]:
    sizes = [count(part) for part in text.split(",")]
    if not all(60 <= size <= 9014 for size in sizes):
        raise argparse.ArgumentTypeError("sizes lie between 60 and 9014")
    return sizes


def run(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pyvirtnet-bench-") as name:
        _install_pcapy(Path(name))
        polling = _measure("vfio", options, Path(name), hardware())
        kernel = _measure("kernel", options, Path(name), [])
    rounds = [a + b for a, b in zip(polling["rounds"], kernel["rounds"], strict=True)]
    where = machine({"qemu": qemu_version(), **kernel["versions"], **polling["versions"]})
    facts = {"pairs": options.pairs, "seconds": options.seconds, "machine": where}
    return {"rows": rows(rounds, options.sizes), **facts}


def _measure(kind: str, options: argparse.Namespace, share: Path, prefix: list[str]) -> Any:
    """What a guest finds with the tools of one kind."""
    system = image("bench")
    words = ["env", "PYTHONPATH=/mnt/share", "python3", "-P", "-m"]
    words += [f"{__package__}._bench_vm_guest", kind, "--rounds", str(options.pairs)]
    words += ["--seconds", str(options.seconds), "--sizes", ",".join(map(str, options.sizes))]
    output = bytearray()
    with Guest(
        system,
        payload(system),
        Machine(memory=2048),
        words,
        stdout=output.extend,
        stderr=lambda data: print(data.decode(errors="replace"), end="", file=sys.stderr),
        timeout=options.pairs * TIMEOUT,
        share=share,
        prefix=prefix,
    ) as guest:
        await_end(guest)
    return json.loads(output)


def await_end(guest: Guest) -> None:
    progress("the guest boots")
    while guest.status is None:
        guest.pump()
    if guest.status:
        raise Error("the guest did not measure", guest.failure or f"status {guest.status}")


def hardware() -> list[str]:
    if subprocess.run([*HARDWARE, "true"], check=False, capture_output=True).returncode == 0:
        return HARDWARE
    progress("the device competes with its guest for cores: run this with sudo for steady figures")
    return []


def qemu_version() -> str:
    command = [find_program("qemu-system-x86_64", "qemu-system-x86"), "--version"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return text.splitlines()[0].removeprefix("QEMU emulator version ")


def _install_pcapy(folder: Path) -> None:
    """For the guest's Python, which is this one's version; kept for the next time."""
    wheels = cache() / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    words = ["--no-deps", "--only-binary=:all:", PCAPY]
    if not list(wheels.glob("pcapy_ng-*.whl")):
        _run([*pip, "download", "--dest", str(wheels), *words])
    words = ["--no-index", "--find-links", str(wheels), "--target", str(folder)]
    _run([*pip, "install", "--root-user-action=ignore", "--no-deps", *words, PCAPY])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Error(f"cannot install {PCAPY}", done.stderr[-800:], "see that pip finds its index")


def rows(rounds: list[list[Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Medians for each size and tool; ours over theirs is the median of the rounds' own."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for one in rounds:
        for tool, size, row in one:
            found.setdefault((tool, size), []).append(row)
    return [_row(tool, size, found) for size in sizes for tool in TOOLS if (tool, size) in found]


def _row(tool: str, size: int, found: dict[tuple[str, int], list[dict[str, float]]]) -> Any:
    theirs, ours = found[tool, size], found["pyvirtnet", size]
    rate = statistics.median(row["pps"] for row in theirs)
    ratios = [a["pps"] / b["pps"] for a, b in zip(ours, theirs, strict=True) if b["pps"]]
    return {
        "size": size,
        "tool": tool,
        "pps": round(rate),
        "gbps": round(rate * size * 8 / 1e9, 3),
        "sent": sum(int(row["sent"]) for row in theirs),
        "received": sum(int(row["received"]) for row in theirs),
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "rounds": [round(row["pps"]) for row in theirs],
    }


def lines(result: dict[str, Any]) -> list[str]:
    text = [
        f"{'size':>6}  {'':24} {'pps':>9} {'of rounds':>17} {'Gb/s':>7} {'lost':>6}  pyvirtnet is"
    ]
    for row in result["rows"]:
        lost = 1 - row["received"] / row["sent"] if row["sent"] else 0.0
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f} x"
        spread = f"{min(row['rounds'])} to {max(row['rounds'])}"
        text.append(
            f"{row['size']:6}  {TOOLS[row['tool']]:24} {row['pps']:9} {spread:>17} "
            f"{row['gbps']:7.3f} {lost:6.1%}  {ratio:>12}"
        )
    return [*text, "received rates, medians of rounds in a guest, a process at each end"]
