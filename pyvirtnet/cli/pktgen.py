"""pktgen: sends numbered frames, receives and verifies them, or both at once."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import pyvirtnet

from .._stamp import ETHERTYPE, MIN_STAMPED, STREAM
from ..port import Port
from ..spec import MAX_FRAME
from ._command import FAILED, OK, Parser, mac, number, program, run, seconds
from ._pktgen_report import Report, Row
from ._pktgen_traffic import PATIENCE, Bounds, Run, Stop, Stream, check_sizes, loop, receive, send

MAX_BURST = 1024
SECONDS = 10.0  # of a size, where neither --count nor --time says anything
SILENCE = 10.0  # of rx
NOBODY = "02:00:00:00:00:02"  # an address of nobody's, for tx without --dst

_PORT = "0000:00:04.0 (bound to vfio-pci), or sim:loopback"


def _sizes(text: str) -> list[int]:
    return [number(MIN_STAMPED, MAX_FRAME)(part.strip()) for part in text.split(",")]


def parser() -> Parser:
    made = Parser(prog=program("pktgen"), description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="tx|rx|loop")
    tx = commands.add_parser("tx", help="send on a port")
    tx.add_argument("tx", metavar="PORT", help=_PORT)
    rx = commands.add_parser("rx", help="receive and verify on a port")
    rx.add_argument("rx", metavar="PORT", help=_PORT)
    both = commands.add_parser("loop", help="send on one port, receive and verify on another")
    both.add_argument("tx", metavar="TXPORT", help=_PORT)
    both.add_argument("rx", metavar="RXPORT", help="the other end; may be the same port")
    for command in (tx, both):
        _sending(command, "the receiving port's" if command is both else NOBODY)
    rx.add_argument(
        "--timeout", type=seconds, default=SILENCE, metavar="S", help="end after S seconds idle"
    )
    for command in (tx, rx, both):
        _common(command)
    return made


def _sending(command: argparse.ArgumentParser, destination: str) -> None:
    command.add_argument(
        "--size", type=_sizes, default=[60], metavar="N[,N…]", help="bytes of a frame (60)"
    )
    command.add_argument("--dst", type=mac, metavar="MAC", help=f"destination ({destination})")
    command.add_argument("--src", type=mac, metavar="MAC", help="source (the sending port's)")


def _common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--count", type=number(1, 10**12), metavar="N", help="end after N frames, of each size")
    add("--time", type=seconds, metavar="S", help="end after S seconds, for each size")
    add("--burst", type=number(1, MAX_BURST), default=64, metavar="N", help="frames a call (64)")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("pktgen", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    names = [getattr(args, role, None) for role in ("tx", "rx")]
    about = {"mode": args.command}
    about |= {role: name for role, name in zip(("tx", "rx"), names, strict=True) if name}
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(pyvirtnet.open(name)) for name in dict.fromkeys(names) if name
        }
        report = Report(args.json, about)
        with Stop() as stop:
            _traffic(args, ports, stop, report)
        report.end(bool(stop.signal))
        if stop.signal:
            return 128 + stop.signal
        return OK if report.whole else FAILED


def _traffic(args: argparse.Namespace, ports: dict[str, Port], stop: Stop, report: Report) -> None:
    """A row for each size; the frames of all sizes are one stream."""
    if args.command == "rx":
        run = Run(Bounds(args.count, args.time, args.burst, args.timeout), stop, report)
        report.add(receive(ports[args.rx], run))
        return
    tx, rx = ports[args.tx], ports.get(getattr(args, "rx", ""))
    check_sizes(args.size, tx, rx)
    seconds = SECONDS if args.time is None and args.count is None else args.time
    bounds = Bounds(args.count, seconds, args.burst, PATIENCE)
    addresses = (args.dst or (rx.mac if rx else mac(NOBODY))) + (args.src or tx.mac)
    stream = Stream(addresses + ETHERTYPE.to_bytes(2, "big"), secrets.randbelow(1 << 16) * STREAM)
    for size in args.size:
        report.add(_size(tx, rx, size, stream, Run(bounds, stop, report)))
        if stop.signal:
            break


def _size(tx: Port, rx: Port | None, size: int, stream: Stream, run: Run) -> Row:
    row = send(tx, size, stream, run) if rx is None else loop(tx, rx, size, stream, run)
    if run.stalled() and not run.stop.signal:
        what = "the device takes no more frames" if rx is None else "nothing more arrives"
        run.report.note(f"{size} bytes: {what}; gave up after {run.bounds.patience:g} s")
    return row


if __name__ == "__main__":
    sys.exit(main())
