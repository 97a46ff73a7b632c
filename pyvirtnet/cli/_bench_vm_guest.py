"""What tools/bench vm runs in the guest: every tool in turn on the same cable, round by round."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from ..errors import Error
from ._bench_testpmd import Counters, Testpmd, huge_pages, parse_stats, show
from ._vm_machine import bdf

NICS = (bdf(0), bdf(1))  # the sending end, the receiving end
KERNEL = ("af_packet", "scapy", "pcapy")  # what uses the guest kernel's own driver
MTU = 9000
MBUF = 9728
PATIENCE = 120.0
QUIET = 0.5  # seconds without a frame, after which no more come
VERSIONS = {"guest kernel": os.uname().release}  # of what took part; more as it does

Row = tuple[str, int, dict[str, float]]  # tool, size, what came of it


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def both_ends(tool: str, nics: Sequence[str], size: int, seconds: float) -> dict[str, float]:
    """A receiver, then a sender, each a process on a processor of its own."""

    def start(role: str, nic: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-m", f"{__package__}._bench_vm_end"]
        command += [role, tool, nic, str(size), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("receive", nics[1]) as receiver:
        try:
            assert receiver.stdout is not None
            if receiver.stdout.readline() != "ready\n":
                raise Error(f"{tool} does not receive", f"status {receiver.wait()}")
            with start("send", nics[0]) as sender:
                sent = json.loads(sender.communicate(timeout=PATIENCE)[0] or "{}")
            received = json.loads(receiver.communicate(timeout=PATIENCE)[0] or "{}")
        finally:
            receiver.kill()
    if "frames" not in sent or not received.get("frames"):
        raise Error(f"{tool} moved no frames of {size} bytes", f"sent {sent}, received {received}")
    return {"sent": sent["frames"], "received": received["frames"], "pps": received["pps"]}


def with_kernel(sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    names = [_interface(nic) for nic in NICS]
    for name in names:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        _ip("link", "set", name, "mtu", str(MTU), "up")
    for name in names:
        _await(lambda name=name: _carrier(name), f"carrier of {name}")  # type: ignore[misc]
    VERSIONS.update({name: version(name) for name in ("scapy", "pcapy-ng")})
    for size in sizes:
        for tool in KERNEL:
            yield tool, size, both_ends(tool, names, size, seconds)
    for name in names:
        _ip("link", "set", name, "down")


def with_vfio(sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    """Both have huge pages: the virtual IOMMU is quicker with them."""
    options = [f"--mbuf-size={MBUF}", f"--max-pkt-len={MTU + 18}", "--total-num-mbufs=2048"]
    with bound(), huge_pages():
        for size in sizes:
            yield "pyvirtnet", size, both_ends("pyvirtnet", NICS, size, seconds)
        with Testpmd(0, 1, ["-a", NICS[1]], options) as receiver:
            with Testpmd(1, 0, ["-a", NICS[0]], options) as sender:
                VERSIONS["dpdk"] = sender.version
                for size in sizes:
                    yield "dpdk", size, _dpdk(sender, receiver, size, seconds)


def _dpdk(sender: Testpmd, receiver: Testpmd, size: int, seconds: float) -> dict[str, float]:
    for end, mode in ((receiver, "rxonly"), (sender, "txonly")):
        end.command("clear port stats all")
        end.command(f"set fwd {mode}")
    sender.command(f"set txpkts {size}")
    receiver.command("start")
    sender.command("start")
    receiver.command(show(0))
    time.sleep(seconds)
    window = parse_stats(receiver.command(show(0)))
    sender.command("stop")
    sent = sender.stats()
    received = _all_received(receiver, sent.tx)
    receiver.command("stop")
    if received.rx_bytes != received.rx * size:
        raise Error("DPDK received other frames", f"{received.rx} have {received.rx_bytes} bytes")
    return {"sent": sent.tx, "received": received.rx, "pps": float(window.rx_pps)}


def _all_received(receiver: Testpmd, sent: int) -> Counters:
    """What has come once all has, or nothing more does."""
    before = receiver.stats()
    while before.rx < sent:
        time.sleep(QUIET)
        now = receiver.stats()
        if now.rx == before.rx:
            break
        before = now
    return before


@contextmanager
def bound() -> Iterator[None]:
    """Both NICs with vfio-pci."""
    _bind("bind")
    try:
        yield
    finally:
        _bind("restore")


def _bind(action: str) -> None:
    command = [sys.executable, "-P", "-m", f"{__package__}.bind", action, *NICS]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _interface(nic: str) -> str:
    def names() -> list[Path]:
        return list(Path(f"/sys/bus/pci/devices/{nic}").glob("virtio*/net/*"))

    _await(lambda: bool(names()), f"an interface of {nic}")
    return names()[0].name


def _carrier(name: str) -> bool:
    return Path(f"/sys/class/net/{name}/carrier").read_text() == "1\n"


def _await(done: Callable[[], bool], what: str, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise Error(f"waited for {what} in vain", f"for {patience:g} s")
        time.sleep(0.05)


KINDS = {"vfio": with_vfio, "kernel": with_kernel}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.sizes.split(",")]
    rounds: list[list[Row]] = []
    try:
        for number in range(options.rounds):
            rounds.append([])
            for tool, size, row in KINDS[options.kind](sizes, options.seconds):
                _say(f"round {number + 1}: {tool} {size} bytes {row['pps']:.0f} pps")
                rounds[-1].append((tool, size, row))
    except (Error, subprocess.SubprocessError) as error:
        _say(str(error))
        return 1
    print(json.dumps({"rounds": rounds, "versions": VERSIONS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
