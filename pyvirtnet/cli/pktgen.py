"""tools/pktgen: sends numbered frames, receives and verifies them, or both at once."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import pyvirtnet

from .._stamp import ETHERTYPE, MIN_STAMPED, STREAM
from ..errors import Error
from ..port import Port
from ..spec import MAX_FRAME
from ._pktgen_report import Report, Row
from ._pktgen_traffic import PATIENCE, Bounds, Run, Stop, Stream, check_sizes, loop, receive, send

DONE, FAILED, USAGE = 0, 1, 2
MAX_BURST = 1024
SECONDS = 10.0  # of a size, where neither --count nor --time says anything
SILENCE = 10.0  # of rx
NOBODY = "02:00:00:00:00:02"  # an address of nobody's, for tx without --dst

_PORT = "0000:00:04.0 (bound to vfio-pci: tools/bind), or sim:loopback"
_EPILOG = (
    "exit status: 0 all well (rx: with frames of other protocols too), 1 frames lost, doubled or "
    "damaged, nothing came at all, or an error, 2 wrong usage, 130 Ctrl-C"
)


class _Parser(argparse.ArgumentParser):
    """Takes whole option names only, and answers a wrong one in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message} (--help tells more)\n")


def _number(low: int, high: int) -> Any:
    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return convert


def _sizes(text: str) -> list[int]:
    return [_number(MIN_STAMPED, MAX_FRAME)(part.strip()) for part in text.split(",")]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _mac(text: str) -> bytes:
    parts = text.split(":")
    try:
        if len(parts) == 6 and all(len(part) == 2 for part in parts):
            return bytes.fromhex("".join(parts))
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a MAC address such as {NOBODY}")


def _parser() -> _Parser:
    parser = _Parser(prog="tools/pktgen", description=__doc__, epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="tx|rx|loop")
    tx = commands.add_parser("tx", help="send on a port", epilog=_EPILOG)
    tx.add_argument("tx", metavar="PORT", help=_PORT)
    rx = commands.add_parser("rx", help="receive and verify on a port", epilog=_EPILOG)
    rx.add_argument("rx", metavar="PORT", help=_PORT)
    both = commands.add_parser(
        "loop", help="send on one port, receive and verify on another", epilog=_EPILOG
    )
    both.add_argument("tx", metavar="TXPORT", help=_PORT)
    both.add_argument("rx", metavar="RXPORT", help="the other end; may be the same port")
    for command in (tx, both):
        _sending(command, "the receiving port's" if command is both else NOBODY)
    rx.add_argument(
        "--timeout", type=_seconds, default=SILENCE, metavar="S", help="end after S seconds idle"
    )
    for command in (tx, rx, both):
        _common(command)
    return parser


def _sending(command: argparse.ArgumentParser, destination: str) -> None:
    command.add_argument(
        "--size", type=_sizes, default=[60], metavar="N[,N…]", help="bytes of a frame (60)"
    )
    command.add_argument("--dst", type=_mac, metavar="MAC", help=f"destination ({destination})")
    command.add_argument("--src", type=_mac, metavar="MAC", help="source (the sending port's)")


def _common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--count", type=_number(1, 10**12), metavar="N", help="end after N frames, of each size")
    add("--time", type=_seconds, metavar="S", help="end after S seconds, for each size")
    add("--burst", type=_number(1, MAX_BURST), default=64, metavar="N", help="frames a call (64)")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except Error as error:
        print(f"tools/pktgen: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


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
        return DONE if report.whole else FAILED


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
    addresses = (args.dst or (rx.mac if rx else _mac(NOBODY))) + (args.src or tx.mac)
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
