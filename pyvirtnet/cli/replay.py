"""replay: sends the frames of a capture, as they came, at a rate, or as fast as the port takes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyvirtnet

from ..bpf import Filter
from ..errors import Error
from ..pcap import Reader
from ._command import FAILED, OK, Parser, number, program, run, seconds, watchable
from ._filter_words import add_filter, filter_of
from ._pktgen_traffic import Stop
from ._replay_frames import Recording
from ._replay_loop import Pace, Replay

_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_PORT = "0000:00:04.0 (bound to vfio-pci), vhost-user:/run/x.sock, or sim:loopback"


def _amount(text: str) -> float:
    """A rate or a factor: 2.5, 10k, 1M, 1G."""
    digits = text.rstrip("kMG")
    try:
        value = float(digits) * _UNITS[text[len(digits) :]]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 < value < 1e15:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 2.5, 10k, 1M or 1G")
    return value


def parser() -> Parser:
    made = Parser(prog=program("replay"), description=__doc__)
    add = made.add_argument
    add("file", metavar="FILE", help="pcap or pcapng, compressed by gzip or not; - for stdin")
    add("port", metavar="PORT", help=_PORT)
    add_filter(made)
    pace = made.add_mutually_exclusive_group()
    pace.add_argument("--speed", type=_amount, metavar="X", help="times the recorded speed (1)")
    pace.add_argument("--rate", type=_amount, metavar="PPS", help="frames a second: 10k, 1M")
    pace.add_argument("--bits", type=_amount, metavar="BPS", help="bits a second: 100M, 1G")
    pace.add_argument("--fast", action="store_true", help="as fast as the port takes them")
    add("--loop", type=number(0, 10**9), default=1, metavar="N", help="N passes; 0: for ever (1)")
    add("--count", type=number(1, 10**12), metavar="N", help="end after N frames")
    add("--time", type=seconds, metavar="S", help="end after S seconds")
    add("--burst", type=number(1, 1024), default=64, metavar="N", help="frames a call (64)")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    made = parser()
    args = made.parse_intermixed_args(argv)
    return run("replay", lambda: _run(args, filter_of(made, args.filter)))


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Error(f"cannot read {path}", str(error.strerror or error), "name a capture") from None


def _run(args: argparse.Namespace, wanted: Filter | None) -> int:
    reader = Reader(args.file)
    speed = args.speed or (None if args.rate or args.bits or args.fast else 1.0)
    with (
        _reading(args.file),
        watchable(),
        pyvirtnet.open(args.port) as port,
        Stop() as stop,
    ):
        recording = Recording(reader, port, args.burst, wanted)
        recording.load()
        replay = Replay(port, Pace(args.rate, args.bits, speed), stop)
        replay.run(recording, args.loop, args.count, args.time)
    figures = {"file": args.file, "port": port.name} | _figures(args, replay)
    left_out = {key: getattr(recording, key) for key in ("refused", "unfit", "cut")}
    figures |= left_out | {"truncated": reader.truncated, "interrupted": bool(stop.signal)}
    for line in _lines(figures):
        print(line, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(figures), flush=True)
    if stop.signal:
        return 128 + stop.signal
    return FAILED if replay.stalled else OK


def _figures(args: argparse.Namespace, replay: Replay) -> dict[str, Any]:
    spent = replay.spent or None
    asked = {key: value for key in ("speed", "rate", "bits") if (value := getattr(args, key))}
    return {
        "asked": asked or {"fast": True} if args.fast or asked else {"speed": 1.0},
        "frames": replay.frames,
        "octets": replay.octets,
        "passes": replay.passes,
        "seconds": round(replay.seconds, 6),
        "pps": round(replay.frames / spent, 1) if spent else None,
        "bps": round(replay.octets * 8 / spent) if spent else None,
        "latest_ms": round(replay.late * 1e3, 3),
        "full": replay.full,
        "stalled": replay.stalled,
    }


def _lines(figures: dict[str, Any]) -> list[str]:
    rate = f", {figures['pps']:.0f} pps, {figures['bps'] / 1e9:.3f} Gb/s" if figures["pps"] else ""
    octets = f"{figures['octets']} bytes in {figures['seconds']:.3f} s{rate}"
    lines = [f"{figures['frames']} frames sent, {octets}"]
    if "fast" not in figures["asked"]:
        ((key, value),) = figures["asked"].items()
        lines.append(f"asked: {key} {value:g}; the latest frame {figures['latest_ms']:g} ms late")
    if figures["full"]:
        lines.append(f"the port was full {figures['full']} times: its device is the limit")
    remarks = {
        "refused": "left out by the filter",
        "unfit": "not sent: too short or too long for the port",
        "cut": "sent without the bytes that were not captured",
    }
    lines += [f"{figures[key]} frames {said}" for key, said in remarks.items() if figures[key]]
    if figures["truncated"]:
        lines.append("the file ends in the middle of a packet, or is damaged")
    if figures["stalled"]:
        lines.append("the device takes no more frames; gave up")
    return lines


if __name__ == "__main__":
    sys.exit(main())
