"""rfc2544: throughput, latency, loss and bursts, between two ports, through what is tested."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyvirtnet

from ..errors import Error
from ..port import Port
from ._command import FAILED, OK, Parser, mac, number, program, run, seconds, watchable
from ._live import Live
from ._pktgen_frames import GRAMMAR, Template, build
from ._pktgen_options import RFC2544, Mix, Rate, line, rate, sizes
from ._pktgen_pace import Pace
from ._pktgen_report import Report, Row
from ._pktgen_sender import Stream
from ._pktgen_traffic import Bounds, Run, Stop, check_sizes, loop
from ._rfc2544_report import line as figures
from ._rfc2544_report import prepare, write
from ._rfc2544_search import Interrupted, Longest, back_to_back, loss, loss_curve, throughput

TESTS = ("throughput", "latency", "loss", "back-to-back")
FLAT_OUT = 1e9  # frames a second: as fast as the program can
LOADS = (50, 100)  # percent of the throughput, that latency is told at
PROBING = 0.5  # seconds, to find out how fast the sender is


def _tests(text: str) -> list[str]:
    names = text.split(",")
    if strange := [name for name in names if name not in TESTS]:
        raise argparse.ArgumentTypeError(f"no test {strange[0]!r}, but {', '.join(TESTS)}")
    return names


def _percent(text: str) -> float:
    try:
        value = float(text.rstrip("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")
    return value


def _precision(text: str) -> float:
    value = _percent(text)
    if not value:
        raise argparse.ArgumentTypeError("the search would never end at 0 %")
    return value


def parser() -> Parser:
    made = Parser(prog=program("rfc2544"), description=__doc__)
    add = made.add_argument
    add("tx", metavar="TXPORT", help="where frames go out")
    add("rx", metavar="RXPORT", help="where they come back; may be the same port")
    about = f"of {', '.join(TESTS)} (all)"
    add("--tests", type=_tests, default=list(TESTS), metavar="T,…", help=about)
    about = "bytes of a frame, less check sequence (60, or what fits, to 1514 in seven steps)"
    add("--size", type=sizes, metavar="N,…", help=about)
    add("--time", type=seconds, default=2.0, metavar="S", help="of a trial (2; the RFC: 60)")
    add("--rate", type=rate, metavar="R", help="the highest (the line's, or the program's own)")
    add("--line", type=line, metavar="BITS", help="the line's rate: 10G (what the port says)")
    add("--loss", type=_percent, default=0.0, metavar="%", help="that throughput tolerates (0)")
    add("--precision", type=_precision, default=1.0, metavar="%", help="of the highest rate (1)")
    add("--repeat", type=number(1, 100), default=3, metavar="N", help="of each burst length (3)")
    add("--frame", default="ipv4/udp", metavar="LAYERS", help=f"{GRAMMAR} (ipv4/udp)")
    add("--dst", type=mac, metavar="MAC", help="destination (the receiving port's)")
    add("--report", type=Path, metavar="DIR", help="write report.md there, with plots")
    add("--json", action="store_true", help="the figures as JSON, on stdout's last line")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("rfc2544", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.report:
        prepare(args.report)  # rather than find out in the end
    settings = f"{args.frame}, trials of {args.time:g} s, {args.loss:g} % loss tolerated"
    results: dict[str, Any] = {"tx": args.tx, "rx": args.rx, "settings": settings, "sizes": []}
    stop = Stop()
    try:
        _measure(args, stop, results["sizes"])
    except Error as error:
        results["sizes"] = [*filter(_measured, results["sizes"])]
        if results["sizes"]:  # what was found until then stands
            _deliver_with(error, args, results | {"interrupted": bool(stop.signal)})
        raise
    _deliver(args, results | {"interrupted": bool(stop.signal)})
    if stop.signal:
        return 128 + stop.signal
    return OK if all(map(_carried, results["sizes"])) else FAILED


def _measure(args: argparse.Namespace, stop: Stop, rows: list[dict[str, Any]]) -> None:
    """Each size's figures, into `rows` as they are found."""
    out = sys.stderr if args.json else sys.stdout
    with ExitStack() as stack:
        stack.enter_context(watchable())
        names = dict.fromkeys((args.tx, args.rx))
        ports = {name: stack.enter_context(pyvirtnet.open(name)) for name in names}
        stack.enter_context(stop)
        bench = Bench(args, ports[args.tx], ports[args.rx], stop)
        for mix in bench.mixes:
            found: dict[str, Any] = {"size": round(mix.mean), "mix": mix.label}
            rows.append(found)
            try:
                for name, value in bench.size(mix):
                    found[name] = value
            finally:
                bench.live.clear()
                if _measured(found):
                    print(figures(found), file=out, flush=True)
            if stop.signal:
                break


def _measured(found: dict[str, Any]) -> bool:
    return not found.keys().isdisjoint(("throughput", "latency", "loss", "back_to_back"))


def _deliver_with(error: Error, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """`error` is raised afterwards, and not hidden by one of the report's."""
    try:
        _deliver(args, results | {"error": str(error)})
    except Error as other:
        print(other, file=sys.stderr)


def _deliver(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """As JSON first: that is not lost with a report that cannot be written."""
    if args.json:
        print(json.dumps(results), flush=True)
    out = sys.stderr if args.json else sys.stdout
    if args.report:
        for path in write(args.report, results):
            print(f"wrote {path}", file=out)
        if find_spec("matplotlib") is None:
            mend = f"{sys.executable} -m pip install matplotlib"
            print(f"no plots without matplotlib: {mend}", file=out)


class Quiet(Report):
    """Trials are many, and short: a line tells of each, not of what goes on in it."""

    def due(self, now: float) -> bool:
        return False


class Bench:
    """Trials between two ports."""

    def __init__(self, args: argparse.Namespace, tx: Port, rx: Port, stop: Stop) -> None:
        self.args, self.tx, self.rx, self.stop = args, tx, rx, stop
        header = build(args.frame, args.dst or rx.mac, tx.mac)
        self.stream = Stream(header, number=secrets.randbelow(1 << 16))
        self.live, self.report = Live(), Quiet(as_json=True, about={})
        self.speed: float | None = args.line or ((tx.link.speed or 0) * 1e6 or None)
        frame = Template(header)
        own = (max(size, frame.least) for size in RFC2544)
        self.mixes: list[Mix] = args.size or [Mix.of(size) for size in dict.fromkeys(own)]
        for mix in self.mixes:
            self._check(mix, frame)

    def _check(self, mix: Mix, frame: Template) -> None:
        """What would end the run at a later size is known before the first."""
        frame.check(mix.sizes)
        check_sizes(list(mix.sizes), self.tx, self.rx)
        if self.args.rate is not None:
            self.args.rate.pps(mix.mean, self.speed)

    def size(self, mix: Mix) -> Iterator[tuple[str, Any]]:
        """Each test's name and figures; what Ctrl-C comes before is left out."""
        with suppress(Interrupted):
            yield from self._size(mix)

    def _size(self, mix: Mix) -> Iterator[tuple[str, Any]]:
        args = self.args
        top, own = self._top(mix)
        yield "top_pps", round(top, 1)
        rate = top
        if {"throughput", "latency"} & set(args.tests):
            found = throughput(
                lambda pps: self._trial(mix, pps), top, args.loss / 100, args.precision / 100
            )
            rate = found.pps
            by = "sender" if own and found.by == "rate" else found.by
            if found.trials:
                yield "throughput", self._throughput(mix, rate, by, found.trials)
        if "latency" in args.tests and rate and (loads := self._loads(mix, rate)):
            yield "latency", loads
        if "loss" in args.tests and (rows := loss_curve(lambda pps: self._trial(mix, pps), top)):
            yield "loss", [_lost(row) for row in rows]
        if "back-to-back" in args.tests:
            most = max(1, int(top * args.time))
            longest = back_to_back(lambda n: self._burst(mix, n), most, args.repeat)
            if longest.frames or longest.by != "interrupted":
                yield "back_to_back", _longest(longest, most)

    def _loads(self, mix: Mix, rate: float) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with suppress(Interrupted):
            for load in LOADS:
                row = self._trial(mix, rate * load / 100)
                found.append({"load": load, "pps": row.sent_pps, "latency_us": row.latency_us})
        return found

    def _throughput(self, mix: Mix, pps: float, by: str, trials: list[Row]) -> dict[str, Any]:
        bits = pps * mix.mean * 8
        return {
            "pps": round(pps, 1),
            "gbps": round(bits / 1e9, 6),
            "limit": by,
            "trials": [_lost(row) for row in trials],
        }

    def _top(self, mix: Mix) -> tuple[float, bool]:
        """The highest rate: the one asked for, the line's, or, and then true, the program's own."""
        asked: Rate | None = self.args.rate
        speed = self.speed
        if asked is not None:
            return asked.pps(mix.mean, speed), False
        row = self._run(mix, Pace(FLAT_OUT), None, min(PROBING, self.args.time))
        own = max(row.sent_pps or 0.0, 1.0)
        full = Rate("100%", 100, "%").pps(mix.mean, speed) if speed else own
        return min(own, full), own <= full

    def _trial(self, mix: Mix, pps: float) -> Row:
        return self._run(mix, Pace(pps), None, self.args.time)

    def _burst(self, mix: Mix, frames: int) -> Row:
        return self._run(mix, Pace(FLAT_OUT), frames, None)

    def _run(self, mix: Mix, pace: Pace, count: int | None, seconds: float | None) -> Row:
        """Raises Interrupted where Ctrl-C came before its end."""
        if self.live.due():
            self.live.show(f"{mix.label} bytes: a trial of {pace.pps or 0:.0f} frames a second")
        run = Run(Bounds(count, seconds, 64), self.stop, self.report, pace)
        row = loop(self.tx, self.rx, mix, self.stream, run)
        if self.stop.signal:
            raise Interrupted
        return row


def _lost(row: Row) -> dict[str, Any]:
    return {
        "pps": row.asked_pps,
        "sent_pps": row.sent_pps,
        "sent": row.sent,
        "lost": row.lost,
        "loss_percent": round(100 * loss(row), 4),
    }


def _longest(found: Longest, most: int) -> dict[str, Any]:
    trials = len(found.trials)
    return {"frames": found.frames, "most": most, "limit": found.by, "trials": trials}


def _carried(found: dict[str, Any]) -> bool:
    """Whether no test of a size says that none of its frames gets through."""
    return (
        found.get("throughput", {"pps": 1})["pps"] > 0
        and any(row["loss_percent"] < 100 for row in found.get("loss", [{"loss_percent": 0}]))
        and found.get("back_to_back", {"frames": 1})["frames"] > 0
    )


if __name__ == "__main__":
    sys.exit(main())
