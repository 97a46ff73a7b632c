"""What fwd says: a live line, testpmd's figures for each port, bursts and time for each frame."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..errors import Error
from ..nic import Stats
from ..port import Port
from ._command import first_line
from ._fwd_loop import Forwarder, Lane
from ._live import Live
from ._pktgen_report import change

_LOOK = 4096  # rounds between looks at whether the live line is due

_ROW = "{:<28}{:>12}{:>12}{:>10}{:>10}{:>10}"


class Report:
    """The figures of a forwarder on stdout; with `as_json` on stderr, and JSON on stdout."""

    def __init__(self, mode: str, forwarder: Forwarder, as_json: bool) -> None:
        self._mode, self._forwarder, self._json = mode, forwarder, as_json
        self._out: TextIO = sys.stderr if as_json else sys.stdout
        self._live, self._rounds = Live(), 0
        self._shown = (0, 0.0)

    def live(self, now: float) -> None:
        """After every round."""
        self._rounds += 1
        if self._rounds % _LOOK == 0 and self._live.due():
            frames, before = self._forwarder.received, self._shown
            self._shown = frames, now
            rate = (frames - before[0]) / (now - before[1]) if before[1] else 0.0
            sent = sum(lane.sent for lane in self._forwarder.lanes)
            self._live.show(f"{self._mode}: {frames} received, {sent} sent, {rate:.0f} pps")

    def end(self, error: Error | None = None) -> None:
        """All figures, once the loop has ended, or an error has ended it."""
        self._live.clear()
        figures = self._figures()
        if error is not None:
            figures["error"] = first_line(error)
        for line in _lines(figures):
            print(line, file=self._out)
        self._out.flush()
        if self._json:
            print(json.dumps(figures), flush=True)

    def _figures(self) -> dict[str, Any]:
        forwarder = self._forwarder
        seconds, frames = forwarder.seconds, forwarder.received
        before = zip(forwarder.ports, forwarder.before, strict=True)
        return {
            "mode": self._mode,
            "seconds": round(seconds, 6),
            "frames": frames,
            "pps": round(frames / seconds, 1) if seconds else 0.0,
            "ns_per_frame": round(forwarder.busy / frames * 1e9, 1) if frames else None,
            "ports": [_port(port, stats, forwarder.lanes) for port, stats in before],
            "bursts": _histogram(forwarder.lanes),
            "empty_polls": sum(lane.empty for lane in forwarder.lanes),
            "interrupted": bool(forwarder.stop.signal),
        }


def _port(port: Port, before: Stats, lanes: Sequence[Lane]) -> dict[str, Any]:
    """A port's counters since the loop began, and what the loop did not pass on."""
    rx, tx = change(port.stats, before, "rx_"), change(port.stats, before, "tx_")
    (incoming,) = (lane for lane in lanes if lane.rx is port)
    outgoing = [lane for lane in lanes if lane.tx is port]
    return {
        "name": port.name,
        **rx,
        **tx,
        "rx_filtered": incoming.received - incoming.kept,
        "tx_dropped": sum(lane.unsent for lane in outgoing),
        "tx_too_long": sum(lane.too_long for lane in outgoing),
    }


def _histogram(lanes: Sequence[Lane]) -> dict[str, int]:
    """Bursts by their size: "1", "2-3", "4-7" …; only sizes that came."""
    sums = [sum(column) for column in zip(*(lane.bursts for lane in lanes), strict=True)]
    found = {}
    for bits, number in enumerate(sums):
        low, high = 1 << bits >> 1, (1 << bits) - 1
        if number:
            found[str(low) if low == high else f"{low}-{high}"] = number
    return found


def _lines(figures: dict[str, Any]) -> list[str]:
    lines = [_ROW.format("port", "received", "sent", "filtered", "dropped", "too long")]
    for port in figures["ports"]:
        keys = ("name", "rx_frames", "tx_frames", "rx_filtered", "tx_dropped", "tx_too_long")
        lines.append(_ROW.format(*(port[key] for key in keys)))
    bursts = figures["bursts"]
    parts = [f"{100 * n / sum(bursts.values()):.0f} % of {size}" for size, n in bursts.items()]
    said = ", ".join(parts) or "none"
    lines.append(f"bursts: {said}; {figures['empty_polls']} polls found nothing")
    cost = figures["ns_per_frame"]
    spent = "" if cost is None else f", {cost:g} ns a frame in rounds that found some"
    rate = f"{figures['pps']:.0f} pps over {figures['seconds']:.3f} s"
    return [*lines, f"{figures['mode']}: {figures['frames']} frames, {rate}{spent}"]
