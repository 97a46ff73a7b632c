"""capture: writes what arrives to a file, pcap or pcapng, for tcpdump, Wireshark and their like."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import pyvirtnet

from ..bpf import Filter
from ..errors import Error
from ..pcap import SNAPLEN
from ..port import Port
from ._capture_files import Files
from ._command import OK, Parser, first_line, number, program, run, seconds, watchable
from ._filter_words import add_filter, filter_of
from ._live import Live
from ._pktgen_report import change
from ._pktgen_traffic import Stop

MIB = 1 << 20
WAIT = 0.05  # seconds on the receive interrupt, at the most
FLUSH = 0.25  # seconds until what was captured can be read, at the most

_PORT = "0000:00:04.0 (bound to vfio-pci), vhost-user:/run/x.sock, or sim:loopback"


def parser() -> Parser:
    made = Parser(prog=program("capture"), description=__doc__)
    add = made.add_argument
    add("port", metavar="PORT", help=_PORT)
    add_filter(made)
    add("-w", "--write", metavar="FILE", required=True, help="to it, or - : | tcpdump -r -")
    add("--format", choices=["pcap", "pcapng"], help="(as FILE ends, else pcap)")
    add(
        "-s",
        "--snaplen",
        type=number(1, SNAPLEN),
        default=SNAPLEN,
        metavar="N",
        help="bytes to keep of a frame (all)",
    )
    add("-c", "--count", type=number(1, 10**12), metavar="N", help="end after N frames written")
    add("--time", type=seconds, metavar="S", help="end after S seconds")
    add("--rotate-size", type=number(1, 1 << 20), metavar="MIB", help="begin a new file after MIB")
    add("--rotate-time", type=seconds, metavar="S", help="begin a new file after S seconds")
    add("--files", type=number(1, 10**6), metavar="N", help="keep the last N files of these")
    add("--burst", type=number(1, 1024), default=64, metavar="N", help="frames a call (64)")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    args = made.parse_intermixed_args(argv)
    rotates = args.rotate_size or args.rotate_time
    if args.write == "-" and (args.json or rotates):
        made.error("with --write - stdout is the capture: no --json, --rotate-size, --rotate-time")
    if args.files and not rotates:
        made.error("--files goes with --rotate-size or --rotate-time")
    return run("capture", lambda: _run(args, filter_of(made, args.filter)))


def _run(args: argparse.Namespace, wanted: Filter | None) -> int:
    with (
        watchable(),
        pyvirtnet.open(args.port) as port,  # first: without it, no file is emptied
        Stop() as stop,
    ):
        capture, gone = Capture(port, _files(args), wanted), None
        try:
            capture.run(args, stop)
        except Error as error:  # what came before it was written, and is worth telling
            gone = error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            why = str(error.strerror)
            raise Error(f"cannot write {args.write}", why, "make room, or rotate files") from None
        figures = capture.figures(bool(stop.signal))
    if gone is not None:
        figures["error"] = first_line(gone)
    _say(figures)
    if args.json:
        print(json.dumps(figures), flush=True)
    if gone is not None:
        raise gone
    return 128 + stop.signal if stop.signal else OK


def _files(args: argparse.Namespace) -> Files:
    return Files(
        args.write,
        ng=args.format == "pcapng" or (not args.format and args.write.endswith(".pcapng")),
        snaplen=args.snaplen,
        interface=args.port,
        size=args.rotate_size and args.rotate_size * MIB,
        seconds=args.rotate_time,
        keep=args.files,
    )


class Capture:
    """Frames from a port, through a filter, to files; the stamp of a frame is its burst's."""

    def __init__(self, port: Port, files: Files, wanted: Filter | None) -> None:
        self._port, self._files, self._wanted = port, files, wanted
        self._before, self._live = port.stats, Live()
        self.received = self.written = 0
        self.seconds = 0.0

    def run(self, args: argparse.Namespace, stop: Stop) -> None:
        """Until the count is reached, the time is over or the user stops it."""
        began = time.monotonic()
        try:
            self._run(args, stop, began)
        finally:
            self.seconds = time.monotonic() - began
            self._live.clear()
            counts = change(self._port.stats, self._before, "rx_")
            self._files.close(time.time_ns(), counts["rx_frames"], counts["rx_lost"])

    def _run(self, args: argparse.Namespace, stop: Stop, began: float) -> None:
        end = began + args.time if args.time else float("inf")
        left, flush = args.count or float("inf"), began
        while left > self.written and not stop.signal and (now := time.monotonic()) < end:
            burst = self._port.recv_burst(args.burst, timeout=min(WAIT, args.time or WAIT))
            if len(burst) == 0 or now >= flush:
                self._files.flush()
                flush = now + FLUSH
            if len(burst):
                stamp = time.time_ns()
                self.received += len(burst)
                if self._wanted is not None:
                    burst = burst[self._wanted(burst)]
                if len(burst) > left - self.written:
                    burst = burst[: int(left) - self.written]
                self._files.write(burst, stamp)
                self.written += len(burst)
            if self._live.due():
                self._live.show(f"{self.received} received, {self.written} written")

    def figures(self, interrupted: bool) -> dict[str, Any]:
        counts = change(self._port.stats, self._before, "rx_")
        return {
            "port": self._port.name,
            "received": self.received,
            "written": self.written,
            "octets": self._files.octets,
            "files": self._files.names,
            "seconds": round(self.seconds, 6),
            **counts,
            "interrupted": interrupted,
        }


def _say(figures: dict[str, Any]) -> None:
    words = f"{figures['received']} frames received, {figures['written']} written to"
    files = figures["files"]
    where = files[0] if len(files) == 1 else f"{len(files)} files, the last {files[-1]}"
    print(f"{words} {where}", file=sys.stderr)
    if figures["rx_no_pages"]:
        why = "calls found no free page: the device may have dropped frames"
        print(f"{figures['rx_no_pages']} {why}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
