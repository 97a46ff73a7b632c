"""What pktgen says: a row for each size, a live line while it runs, one JSON object at the end."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TextIO

from .._meter import Meter
from ..errors import Error
from ..nic import Stats
from ._command import first_line
from ._live import Live

_COLUMNS = {  # heading: (width, what of a row, its format)
    "size": (6, "mix", "s"),
    "asked pps": (10, "asked_pps", ".0f"),
    "sent": (10, "sent", "d"),
    "received": (10, "received", "d"),
    "lost": (7, "lost", "d"),
    "damaged": (7, "corrupt", "d"),
    "pps": (10, "pps", ".0f"),
    "Gb/s": (8, "gbps", ".3f"),
    "buffers/frame": (13, "buffers_per_frame", ".2f"),
    "p50 us": (8, "p50_us", ".1f"),
    "p99 us": (8, "p99_us", ".1f"),
    "limit": (7, "limit", "s"),
}
PERCENTILES = (50, 90, 99, 99.9, 99.99)
KEPT = 0.99  # of a rate that was asked for: then it was the limit
FULL = 5.0  # percent of calls that find the ring full: then the device was the limit
_ODDITIES = ("duplicated", "reordered")


@dataclass
class Row:
    """What became of the frames of one size. None: this command does not see it.

    seconds    from the first send or arrival to the last arrival (tx: to the last send done)
    pps        of what was received (tx: sent) in that time; sent_pps: while sending went on
    ring_full  percent of attempts to send that found the transmit ring full
    astray     foreign frames that are pktgen's, of another run
    limit      what held it back: rate (the one asked for), device (it took frames no faster),
               program (this one made or took them no faster), sender (the other end)
    stalled    the device took no more, or nothing more came, before the row was done
    rx, tx     the driver's counters, of this row alone
    """

    size: int | None = None
    mix: str | None = None
    asked_pps: float | None = None
    sent_pps: float | None = None
    sent: int | None = None
    received: int | None = None
    lost: int | None = None
    corrupt: int | None = None
    duplicated: int | None = None
    reordered: int | None = None
    foreign: int | None = None
    astray: int | None = None
    seconds: float = 0.0
    pps: float = 0.0
    gbps: float = 0.0
    buffers_per_frame: float | None = None
    latency_us: dict[str, float] = field(default_factory=dict)
    limit: str | None = None
    ring_full: float | None = None
    stalled: bool = False
    tx: dict[str, int] = field(default_factory=dict)
    rx: dict[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Frames went, and none was lost, damaged or doubled. Who only listens takes any frames."""
        frames = self.sent if self.received is None else self.received
        if self.sent is None:
            frames = (frames or 0) + (self.foreign or 0)
        failed = self.lost or self.corrupt or self.duplicated or self.stalled
        return bool(frames) and not failed

    @property
    def p50_us(self) -> float | None:
        return self.latency_us.get("p50")

    @property
    def p99_us(self) -> float | None:
        return self.latency_us.get("p99")

    def rate(self, frames: int, octets: int) -> None:
        if self.seconds > 0:
            self.pps = round(frames / self.seconds, 1)
            self.gbps = round(octets * 8 / self.seconds / 1e9, 6)

    def as_json(self) -> dict[str, Any]:
        found = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        return {**found, "seconds": round(self.seconds, 6)}


def _remarks(row: Row) -> list[str]:
    """What the table has no column for."""
    odd = [f"{number} {name}" for name in _ODDITIES if (number := getattr(row, name))]
    said = [f"of these frames: {', '.join(odd)}"] if odd else []
    others = _others(row)
    if row.sent is None and not row.received and not row.corrupt:
        return [f"{others} arrived, none of pktgen's" if others else "nothing arrived"]
    return [*said, f"besides: {others}"] if others else said


def _others(row: Row) -> str:
    astray = row.astray or 0
    kinds = {
        "of another run of pktgen": astray,
        "of other protocols": (row.foreign or 0) - astray,
    }
    told = [f"{n} frame{'s' if n != 1 else ''} {kind}" for kind, n in kinds.items() if n]
    return ", ".join(told)


def latency(row: Row, meter: Meter) -> None:
    """In microseconds."""
    found = meter.latency
    if not found.count:
        return
    nanoseconds = {"min": found.minimum, "mean": found.mean, "max": found.maximum}
    nanoseconds |= {f"p{percent:g}": found.percentile(percent) for percent in PERCENTILES}
    nanoseconds["jitter"] = meter.jitter
    row.latency_us = {name: round(value / 1000, 3) for name, value in nanoseconds.items()}


def limit_of(asked: float | None, sent: float, ring_full: float) -> str:
    """What held a sender back."""
    if asked is not None and sent >= KEPT * asked:
        return "rate"
    return "device" if ring_full >= FULL else "program"


def change(after: Stats, before: Stats, prefix: str) -> dict[str, int]:
    """One direction's counters since `before`."""
    names = [one.name for one in fields(Stats) if one.name.startswith(prefix)]
    return {name: getattr(after, name) - getattr(before, name) for name in names}


class Report:
    """Rows as they are done, on stdout; with `as_json` on stderr, and JSON on stdout."""

    def __init__(self, as_json: bool, about: dict[str, Any]) -> None:
        self._json, self._about = as_json, about
        self._out: TextIO = sys.stderr if as_json else sys.stdout
        self._live = Live()
        self._columns: list[str] = []
        self.rows: list[Row] = []

    @property
    def whole(self) -> bool:
        return bool(self.rows) and all(row.whole for row in self.rows)

    def tell(self, **more: Any) -> None:
        """More of what the JSON says of all rows."""
        self._about |= more

    def live(self, now: float, figures: dict[str, int], pps: float) -> None:
        """How far the row is."""
        cells = {name: str(value) for name, value in figures.items()} | {"pps": f"{pps:.0f}"}
        self._live.show(", ".join(f"{value} {name}" for name, value in cells.items()), cells)

    def due(self, now: float) -> bool:
        return self._live.due()

    def add(self, row: Row) -> None:
        """A size is done: its line of the table."""
        self._live.clear()
        if not self.rows:
            self._columns = [
                name for name, (_, key, _) in _COLUMNS.items() if getattr(row, key) is not None
            ]
            print(
                "  ".join(f"{name:>{_COLUMNS[name][0]}}" for name in self._columns), file=self._out
            )
        self.rows.append(row)
        print("  ".join(self._cell(row, name) for name in self._columns), file=self._out)
        for remark in _remarks(row):
            print(f"        {remark}", file=self._out)
        self._out.flush()

    def note(self, text: str) -> None:
        self._live.clear()
        print(f"pktgen: {text}", file=sys.stderr, flush=True)

    def end(self, interrupted: bool, error: Error | None = None) -> None:
        self._live.clear()
        if self._json:
            rows = [row.as_json() for row in self.rows]
            well = self.whole and not interrupted and error is None
            state: dict[str, Any] = {"ok": well, "interrupted": interrupted}
            if error is not None:
                state["error"] = first_line(error)
            print(json.dumps({**self._about, "rows": rows, **state}), flush=True)

    def _cell(self, row: Row, name: str) -> str:
        width, key, form = _COLUMNS[name]
        value = getattr(row, key)
        return f"{'-' if value is None else format(value, form):>{width}}"
