"""pktgen: sends numbered frames, receives and verifies them, or both at once."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from math import inf
from typing import TypeAlias

import pyvirtnet

from .._stamp import ETHERTYPE
from ..errors import Error
from ..port import Port
from ..spec import MAX_FRAME
from ._command import (
    FAILED,
    OK,
    Parser,
    WrongUsage,
    mac,
    number,
    program,
    run,
    seconds,
    watchable,
)
from ._pktgen_frames import GRAMMAR, Template, build, dump, from_scapy
from ._pktgen_options import FIELDS, Mix, line, rates, sizes, vary
from ._pktgen_pace import Pace
from ._pktgen_prebuilt import PLAIN_TYPE, Plain, Recorded, recorded
from ._pktgen_report import Report, Row
from ._pktgen_sender import Sender, Stream
from ._pktgen_traffic import PATIENCE, Bounds, Run, Stop, check_sizes, loop, receive, send

MAX_BURST = 1024
SECONDS = 10.0  # of a row, where neither --count nor --time says anything
SILENCE = 10.0  # of rx
NOBODY = "02:00:00:00:00:02"  # an address of nobody's, for tx without --dst
SHOWN = 4  # frames of --dry-run
DRY_BURST = 16  # of them at a time: a simulated ring takes as many of any size
Source: TypeAlias = Stream | Plain | Recorded

_PORT = "0000:00:04.0 (bound to vfio-pci), vhost-user:/run/x.sock, or sim:loopback"


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
    about = f"end after S seconds idle ({SILENCE:g}; never, where --time ends it)"
    rx.add_argument("--timeout", type=seconds, metavar="S", help=about)
    about = "tell latency: the sender is on this machine, and has the same clock"
    rx.add_argument("--latency", action="store_true", help=about)
    for command in (tx, rx, both):
        _common(command)
    return made


def _sending(command: argparse.ArgumentParser, destination: str) -> None:
    add = command.add_argument
    about = "bytes of a frame, several for a row each: 60,128-1514:256, rfc2544, imix, 60*7+590*4"
    add("--size", type=sizes, default=None, metavar="N,…", help=f"{about} (60, or the smallest)")
    about = "frames, bits or share of the line a second, a row each: 100k, 1.5Gbps, 10%%, max"
    add("--rate", type=rates, default=[None], metavar="R,…", help=f"{about} (max)")
    add("--line", type=line, metavar="BITS", help="the line's rate, for shares: 10G (the port's)")
    add("--dst", type=mac, metavar="MAC", help=f"destination ({destination}, or --scapy's)")
    add("--src", type=mac, metavar="MAC", help="source (the sending port's, or --scapy's)")
    frame = command.add_mutually_exclusive_group()
    frame.add_argument("--frame", metavar="LAYERS", help=f"headers: {GRAMMAR} (Ethernet alone)")
    frame.add_argument("--scapy", metavar="EXPRESSION", help="headers of the frame it makes")
    if command.prog.endswith(" tx"):
        about = "frames of this file, pcap or pcapng, as they are, round and round"
        frame.add_argument("--pcap", metavar="FILE", help=about)
        add("--plain", action="store_true", help="prebuilt frames, unnumbered: the fastest")
    about = "a field's values, frame by frame: src-ip=10.0.0.1-10.0.0.99, vlan=5,7, "
    about += f"src-port=1-65535/random; of {', '.join(FIELDS)}; may be repeated"
    add("--vary", type=vary, action="append", default=[], metavar="FIELD=VALUES", help=about)
    about = "print the first frames, send nothing"
    add("--dry-run", nargs="?", type=number(1, 1000), const=SHOWN, metavar="N", help=about)


def _common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--count", type=number(1, 10**12), metavar="N", help="end after N frames, of each row")
    add("--time", type=seconds, metavar="S", help="end after S seconds, for each row")
    about = "frames a call (64); with --rate, so many go together (1)"
    add("--burst", type=number(1, MAX_BURST), metavar="N", help=about)
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    args = made.parse_args(argv)
    return run("pktgen", lambda: _work(args))


def _work(args: argparse.Namespace) -> int:
    if getattr(args, "pcap", None):
        _check_as_they_are(args)
    return _dry_run(args) if getattr(args, "dry_run", 0) else _run(args)


def _check_as_they_are(args: argparse.Namespace) -> None:
    """Raises WrongUsage for options that mean nothing to frames of a file."""
    if vain := [f"--{name}" for name in ("size", "dst", "src", "vary") if getattr(args, name)]:
        what, why = f"cannot follow {', '.join(vain)}", "frames of --pcap are sent as they are"
        raise WrongUsage(what, why, "leave that out, or --pcap")


def _run(args: argparse.Namespace) -> int:
    named = {role: getattr(args, role) for role in ("tx", "rx") if hasattr(args, role)}
    about = {"mode": args.command, **named}
    with ExitStack() as stack:
        stack.enter_context(watchable())
        ports = {
            name: stack.enter_context(pyvirtnet.open(name))
            for name in dict.fromkeys(named.values())
        }
        report = Report(args.json, about)
        try:
            with Stop() as stop:
                _traffic(args, ports, stop, report)
        except Error as error:
            if report.rows:  # they were done, and are worth having
                report.end(False, error)
            raise
        report.end(bool(stop.signal))
        if stop.signal:
            return 128 + stop.signal
        return OK if report.whole else FAILED


def _traffic(args: argparse.Namespace, ports: dict[str, Port], stop: Stop, report: Report) -> None:
    """A row for each size and rate; the frames of all rows are one stream."""
    if args.command == "rx":
        _receive(args, ports[args.rx], stop, report)
        return
    tx, rx = ports[args.tx], ports.get(getattr(args, "rx", ""))
    job = Job(args, tx, rx, _source(args, tx, rx), stop, report)
    for mix, pps in _plan(job):
        report.add(_row(job, mix, pps))
        if stop.signal:
            return


def _receive(args: argparse.Namespace, port: Port, stop: Stop, report: Report) -> None:
    patience = args.timeout or (inf if args.time else SILENCE)
    run = Run(Bounds(args.count, args.time, args.burst or 64, patience), stop, report)
    row = receive(port, run, args.latency)
    if run.error is not None:
        report.add(row)
        raise run.error
    if args.count and (row.received or 0) + (row.corrupt or 0) < args.count and not stop.signal:
        row.stalled = True
        why = f"nothing more arrives; gave up after {patience:g} s"
        report.note(why if run.stalled() else f"not all of {args.count} frames came in that time")
    report.add(row)


@dataclass(frozen=True)
class Job:
    """What the rows of a command share."""

    args: argparse.Namespace
    tx: Port
    rx: Port | None
    source: Source
    stop: Stop
    report: Report


def _source(args: argparse.Namespace, tx: Port | None, rx: Port | None) -> Source:
    """What is sent: a stream of probes, or frames as they are."""
    if getattr(args, "pcap", None):
        return recorded(args.pcap, tx.max_frame if tx else MAX_FRAME)
    if getattr(args, "plain", False):
        return Plain(_header(args, tx, rx, PLAIN_TYPE), args.vary)
    header = _header(args, tx, rx, ETHERTYPE)
    return Stream(header, number=secrets.randbelow(1 << 16), varies=args.vary)


def _header(args: argparse.Namespace, tx: Port | None, rx: Port | None, kind: int) -> bytes:
    if args.scapy:
        made = from_scapy(args.scapy)
        return (args.dst or made[:6]) + (args.src or made[6:12]) + made[12:]
    dst = args.dst or (rx.mac if rx else mac(NOBODY))
    src = args.src or (tx.mac if tx else mac("02:00:00:00:00:01"))
    return build(args.frame or "", dst, src, kind)


def _mixes(args: argparse.Namespace, source: Source) -> list[Mix]:
    if isinstance(source, Recorded):
        return [Mix("file", tuple(map(len, source.contents)))]
    return args.size or [Mix.of(max(60, Template(source.header).least))]


def _plan(job: Job) -> list[tuple[Mix, float | None]]:
    """The rows: sizes, and frames a second. What cannot be sent is an error before the first."""
    args, source = job.args, job.source
    mixes = _mixes(args, source)
    for mix in mixes:
        check_sizes(list(mix.sizes), job.tx, job.rx)
        if isinstance(source, Plain):
            source.check(mix)
        elif isinstance(source, Stream):
            Template(source.header).check(mix.sizes)
    line_rate = args.line or ((job.tx.link.speed or 0) * 1e6 or None)
    rows = [
        (mix, rate.pps(mix.mean, line_rate) if rate else None)
        for mix in mixes
        for rate in args.rate
    ]
    if not isinstance(source, Stream):
        _tell(source, mixes, job.report)
    return rows


def _tell(source: Plain | Recorded, mixes: list[Mix], report: Report) -> None:
    """What of prebuilt frames is not sent."""
    if isinstance(source, Recorded):
        report.tell(unfit=source.unfit, cut=source.cut, truncated=source.truncated)
    for mix in mixes:
        for remark in source.remarks(mix):
            report.note(remark)


def _row(job: Job, mix: Mix, pps: float | None) -> Row:
    args, tx, rx = job.args, job.tx, job.rx
    seconds = SECONDS if args.time is None and args.count is None else args.time
    pace = Pace(pps, args.burst or 1) if pps else Pace()
    run = Run(Bounds(args.count, seconds, args.burst or 64, PATIENCE), job.stop, job.report, pace)
    if rx is not None and isinstance(job.source, Stream):
        what = "nothing more arrives"
        row = loop(tx, rx, mix, job.source, run)
    else:
        what = "the device takes no more frames"
        frames = job.source if isinstance(job.source, Stream) else job.source.frames(mix)
        row = send(tx, mix, frames, run)
    if run.stalled() and not job.stop.signal and (pps is None or rx is None):
        row.stalled = True
        job.report.note(f"{mix.label} bytes: {what}; gave up after {run.bounds.patience:g} s")
    return row


def _dry_run(args: argparse.Namespace) -> int:
    """Frames as they would be sent; ports are not opened, addresses may stand in for theirs."""
    source = _source(args, None, None)
    mix, *_ = _mixes(args, source)
    if isinstance(source, Stream):
        frames = _first_probes(mix, source, args.dry_run)
    else:
        frames = list(islice(cycle(source.frames(mix)), args.dry_run))
    print(json.dumps({"frames": [one.hex() for one in frames]}) if args.json else dump(frames))
    return OK


def _first_probes(mix: Mix, stream: Stream, count: int) -> list[bytes]:
    frames: list[bytes] = []
    with pyvirtnet.open("sim:loopback") as port:
        sender = Sender(port, mix, stream, DRY_BURST, DRY_BURST)
        while len(frames) < count:
            sender.send(count - len(frames))
            frames += [bytes(frame) for frame in port.recv_burst(DRY_BURST)]
    return frames


if __name__ == "__main__":
    sys.exit(main())
