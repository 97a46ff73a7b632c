"""fwd: what arrives goes on, changed or not: io, macswap, 5tswap, drop, icmp-echo."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import pyvirtnet

from ..errors import Error
from ._command import OK, Parser, number, program, run, seconds, watchable
from ._fwd_loop import MODES, Forwarder, Lane
from ._fwd_report import Report
from ._pktgen_traffic import Stop

MAX_BURST = 1024
RETRY = 1000  # microseconds

_PORT = "0000:00:04.0 (bound to vfio-pci), vhost-user:/run/x.sock, or sim:loopback"
_ABOUT = {
    "io": "untouched",
    "macswap": "source and destination MAC address swapped",
    "5tswap": "MAC addresses, IP addresses and ports swapped",
    "drop": "received and dropped",
    "icmp-echo": "answers ARP, pings and IPv6 neighbours on the port they came by",
}


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> Parser:
    made = Parser(prog=program("fwd"), description=__doc__)
    add = made.add_argument
    add("port", metavar="PORT", help=_PORT)
    add("other", metavar="OTHER", nargs="?", help="what comes by PORT leaves here, and vice versa")
    modes = "; ".join(f"{mode}: {about}" for mode, about in _ABOUT.items())
    add("--mode", choices=MODES, default="io", metavar="MODE", help=f"{modes} (io)")
    add(
        "--address",
        type=_address,
        action="append",
        metavar="IP",
        help="icmp-echo: answer for this address alone, may be repeated (for any)",
    )
    add("--count", type=number(1, 10**12), metavar="N", help="end after N frames received")
    add("--time", type=seconds, metavar="S", help="end after S seconds")
    add("--burst", type=number(1, MAX_BURST), default=64, metavar="N", help="frames a call (64)")
    add(
        "--retry",
        type=number(0, 10**6),
        default=RETRY,
        metavar="US",
        help=f"microseconds until what a full port does not take is dropped ({RETRY})",
    )
    add("--poll", action="store_true", help="never sleep: a processor's whole time for the ports")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    args = made.parse_args(argv)
    if args.address and args.mode != "icmp-echo":
        made.error("--address is for --mode icmp-echo")
    if args.other == args.port:
        args.other = None  # a port that is its own other end
    return run("fwd", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        stack.enter_context(watchable())
        names = [name for name in (args.port, args.other) if name is not None]
        ports = [stack.enter_context(pyvirtnet.open(name)) for name in names]
        others = ports if args.mode == "icmp-echo" else ports[::-1]
        lanes = [
            Lane(
                rx,
                tx,
                args.mode,
                burst=args.burst,
                retry=args.retry / 1e6,
                addresses=args.address,
            )
            for rx, tx in zip(ports, others, strict=True)
        ]
        with Stop() as stop:
            forwarder = Forwarder(lanes, stop, poll=args.poll)
            report = Report(args.mode, forwarder, args.json)
            try:
                forwarder.run(args.count, args.time, report.live)
            except Error as error:  # what was counted before is worth having
                report.end(error)
                raise
        report.end()
        return 128 + stop.signal if stop.signal else OK


if __name__ == "__main__":
    sys.exit(main())
