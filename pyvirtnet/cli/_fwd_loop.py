"""The loop of fwd: from each port to the other, with what is counted on the way."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence

from .._burst import RxBurst
from .._echo import answer_pings
from .._headers import swap_flows, swap_macs
from ..errors import FeatureMissing
from ..nic import Stats
from ..port import Port
from ._pktgen_traffic import Stop

Change = Callable[[RxBurst], RxBurst]  # a burst as it came, and what of it goes on

IDLE = 1000  # rounds that find nothing before the loop sleeps
NAP = 0.05  # seconds on the receive interrupts, at the most: Ctrl-C is heard then
SHORT_NAP = 0.001  # where there are no interrupts
DRAIN = 0.5  # seconds, at the most


def _io(burst: RxBurst) -> RxBurst:
    return burst


def _macswap(burst: RxBurst) -> RxBurst:
    swap_macs(burst)
    return burst


def _5tswap(burst: RxBurst) -> RxBurst:
    swap_flows(burst)
    return burst


def _drop(burst: RxBurst) -> RxBurst:
    return burst[:0]


def _echo(port: Port, addresses: Sequence[str] | None) -> Change:
    mac = port.mac

    def change(burst: RxBurst) -> RxBurst:
        return burst[answer_pings(burst, mac, addresses)]

    return change


_CHANGES: dict[str, Change] = {"io": _io, "macswap": _macswap, "5tswap": _5tswap, "drop": _drop}
MODES = (*_CHANGES, "icmp-echo")


class Lane:
    """One direction: what comes by `rx` leaves by `tx`, or by neither.

    received  frames; kept: those that the mode lets go on
    sent      frames that `tx` took; unsent: those it would not take within `retry` seconds
    too_long  those it never takes
    bursts    how many bursts had 1 frame, 2 to 3, 4 to 7 …: by the length of their size in bits
    empty     calls that found nothing
    """

    def __init__(
        self,
        rx: Port,
        tx: Port,
        mode: str,
        *,
        burst: int = 64,
        retry: float = 0.0,
        addresses: Sequence[str] | None = None,
    ) -> None:
        self.rx, self.tx, self._most, self._retry = rx, tx, burst, retry
        self._change = _CHANGES.get(mode) or _echo(rx, addresses)
        self.received = self.kept = self.sent = self.unsent = self.too_long = self.empty = 0
        self.bursts = [0] * (burst.bit_length() + 1)

    def step(self, most: int | None) -> int:
        """One burst, of `most` frames at the most; how many came."""
        n = self._most if most is None else min(self._most, most)
        burst = self.rx.recv_burst(n)
        came = len(burst)
        if came == 0:
            self.empty += 1
            return 0
        self.bursts[came.bit_length()] += 1
        self.received += came
        self._send(self._change(burst))
        return came

    def _send(self, burst: RxBurst) -> None:
        kept = len(burst)
        self.kept += kept
        if kept == 0:
            return
        try:
            sent = self.tx.send_burst(burst)
        except ValueError:  # for a frame longer than the port sends, nothing was sent
            burst = burst[burst.lengths <= self.tx.max_frame]
            self.too_long += kept - len(burst)
            kept, sent = len(burst), self.tx.send_burst(burst)
        if sent < kept:
            sent += self._insist(burst[sent:])
        self.sent += sent
        self.unsent += kept - sent

    def _insist(self, burst: RxBurst) -> int:
        """Frames that a full port takes after all."""
        taken, end = 0, time.monotonic() + self._retry
        while taken < len(burst) and time.monotonic() < end:
            taken += self.tx.send_burst(burst[taken:])
        return taken


class Forwarder:
    """All lanes in turn, and the clock: `seconds` in all, `busy` in rounds that moved a frame."""

    def __init__(self, lanes: Sequence[Lane], stop: Stop, *, poll: bool) -> None:
        self.lanes, self.stop, self._poll = lanes, stop, poll
        self.ports = list(dict.fromkeys(lane.rx for lane in lanes))
        self.before: list[Stats] = [port.stats for port in self.ports]
        self.seconds = self.busy = 0.0

    @property
    def received(self) -> int:
        return sum(lane.received for lane in self.lanes)

    def run(self, count: int | None, seconds: float | None, live: Callable[[float], None]) -> None:
        """Until `count` frames were received, `seconds` are over, or the user stops it."""
        began = now = time.perf_counter()
        end = float("inf") if seconds is None else began + seconds
        idle = 0
        while not self.stop.signal and now < end and (count is None or count > 0):
            if idle >= IDLE and not self._poll:
                self._sleep()
                now = time.perf_counter()  # sleep is no work
            came = self._round(count)
            then, now = now, time.perf_counter()
            if came:
                count = None if count is None else count - came
                self.busy, idle = self.busy + now - then, 0
            else:
                idle += 1
            self.seconds = now - began
            live(now)

        self._drain()

    def _sleep(self) -> None:
        """Until one of the ports may have something."""
        try:
            select.select(self.ports, [], [], NAP)
        except FeatureMissing:
            time.sleep(SHORT_NAP)

    def _drain(self) -> None:
        """What was sent leaves before the ports are closed, unless its device has stopped."""
        end = time.monotonic() + DRAIN
        while any(port.tx_pending for port in self.ports) and time.monotonic() < end:
            for port in self.ports:
                port.reclaim()

    def _round(self, count: int | None) -> int:
        came = 0
        for lane in self.lanes:
            if count is None or came < count:
                came += lane.step(None if count is None else count - came)
        return came
