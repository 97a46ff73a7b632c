"""Traffic of numbered frames: the three runs made of a sender and a meter: send, receive, both."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

from .._meter import Meter
from .._stamp import Checker
from ..errors import Error
from ..port import Port
from ..spec import NET_HEADER, PAGE
from ._pktgen_options import Mix
from ._pktgen_pace import Pace
from ._pktgen_report import Report, Row, change, latency, limit_of
from ._pktgen_sender import Player, Sender, Stream, send_room

PATIENCE = 5.0  # seconds without any progress after which a run gives up
LAST_CALL = 0.5  # the same, once the user has asked for the end
SETTLING = 1.0  # seconds for stragglers, of a run that may lose frames
WAIT = 0.05  # seconds of sleep on the receive interrupt, at the most
UNPUBLISHED = 32  # receive buffers that the driver may hold back, to publish many at once


@dataclass(frozen=True)
class Bounds:
    """When a run ends: after so many frames, so many seconds, or so many of silence."""

    count: int | None
    seconds: float | None
    burst: int
    patience: float = PATIENCE


class Stop:
    """Ctrl-C and SIGTERM ask for an orderly end; a second one ends at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._restore()

    def _asked(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def buffers(size: int) -> int:
    """Receive buffers of a frame: pages that its virtio header and content fill (5.1.6.4)."""
    return -(-(NET_HEADER + size) // PAGE)


def check_sizes(sizes: list[int], tx: Port, rx: Port | None) -> None:
    largest = max(sizes)
    if largest > tx.max_frame:
        why = f"it sends up to {tx.max_frame} bytes, for its MTU is {tx.mtu}"
        raise Error(f"{tx.name} cannot send {largest} bytes", why, f"--size {tx.max_frame} or less")
    if rx is not None and rx.info()["receive_mode"] == "small" and buffers(largest) > 1:
        why = "its device does not merge receive buffers (MRG_RXBUF), a frame must fit into one"
        mend = f"--size {PAGE - NET_HEADER} or less"
        raise Error(f"{rx.name} cannot receive {largest} bytes", why, mend)


def receive_room(port: Port, size: int) -> int:
    """Frames on their way that surely find receive buffers, wherever they are."""
    entries: int = port.info()["ring_sizes"][0]
    return max(1, (entries - min(UNPUBLISHED, entries // 8)) // buffers(size))


@dataclass
class Run:
    """One row on its way: the clock, the bounds, the pace."""

    bounds: Bounds
    stop: Stop
    report: Report
    pace: Pace = field(default_factory=Pace)
    error: Error | None = None  # that ended it

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The clocks run from here: that of the bounds, and that of the rate."""
        self.started = self.began = self.moved = self.left = self.now = time.monotonic()
        self.pace.start(self.now)

    def tick(self, progress: object, sent: int = 0) -> None:
        self.now = time.monotonic()
        if sent:
            self.left = self.now
        if progress:
            self.moved = self.now

    def lasted(self, end: float, sent: int) -> float:
        """Seconds until `end`; at a rate the last frame's interval is one of them as well."""
        interval = 1 / self.pace.pps if self.pace.pps and sent > 1 else 0.0
        return max(end, self.left + interval) - self.started

    def sending(self, done: int) -> bool:
        """Whether the bounds leave more to do."""
        count, seconds = self.bounds.count, self.bounds.seconds
        if self.stop.signal or self.stalled():
            return False
        if count is not None and done >= count:
            return False
        return seconds is None or self.now - self.started < seconds

    def stalled(self) -> bool:
        patience = self.bounds.patience
        return self.now - self.moved > (min(patience, LAST_CALL) if self.stop.signal else patience)

    def room(self, done: int) -> int:
        """Frames of the next burst: the bounds', and no more than are due."""
        left = min(self.bounds.burst, self.pace.due(self.now, done))
        return left if self.bounds.count is None else min(left, self.bounds.count - done)

    def pause(self, done: int) -> float:
        """Seconds to sleep where no frame is due."""
        return min(WAIT, self.pace.wait(self.now, done))

    def live(self, sent: int | None, checker: Checker | None) -> None:
        if not self.report.due(self.now):
            return
        figures = {} if sent is None else {"sent": sent}
        frames = sent or 0
        if checker is not None:
            frames = checker.received
            figures |= {"received": frames, "lost": checker.lost(), "damaged": checker.corrupt}
        self.report.live(self.now, figures, frames / max(1e-9, self.now - self.began))


def send(port: Port, mix: Mix, source: Stream | list[bytes], run: Run) -> Row:
    """Send only: probes of a stream, or frames as they are. Done when the device is."""
    before, room = port.stats, send_room(port, max(mix.sizes))
    burst = min(run.bounds.burst, room)
    sender: Sender | Player = (
        Sender(port, mix, source, burst, room)
        if isinstance(source, Stream)
        else Player(port, source, burst)
    )
    run.start()
    while run.sending(sender.sent):
        room = run.room(sender.sent)
        sent = sender.send(room) if room > 0 else 0
        if room <= 0 and (pause := run.pause(sender.sent)):
            time.sleep(pause)
        run.tick(sent or room <= 0, sent)
        run.live(sender.sent, None)
    sending = run.lasted(run.now, sender.sent)
    while port.tx_pending and not run.stalled():
        run.tick(port.reclaim())
    seconds = run.lasted(run.moved, sender.sent)
    row = Row(size=round(mix.mean), mix=mix.label, sent=sender.sent, seconds=seconds)
    row.tx = change(port.stats, before, "tx_")
    row.rate(sender.sent, row.tx["tx_bytes"])
    _paced(row, run, sender, sending)
    return row


def receive(port: Port, run: Run, timed: bool = False) -> Row:
    """Receive and verify what comes, from the first intact frame's stream; until `run.error`."""
    before, meter = port.stats, Meter()
    polls = full = 0
    last = run.began
    while run.sending(meter.received + meter.corrupt):
        try:
            burst = port.recv_burst(run.bounds.burst, timeout=WAIT)
        except Error as error:
            run.error = error
            break
        intact = meter.check(burst)
        run.tick(len(burst))
        polls += 1
        full += len(burst) == run.bounds.burst
        if intact:  # the clock of the rate runs from the first of the stream to the last
            last = run.now
            run.began = last if meter.received == intact else run.began
        run.live(None, meter)
    row = Row(seconds=last - run.began)
    count(row, meter, port, before)
    row.lost = meter.lost()
    row.limit = "program" if 2 * full > polls else "sender"
    if timed:
        latency(row, meter)
    return row


def loop(tx: Port, rx: Port, mix: Mix, stream: Stream, run: Run) -> Row:
    """Send on one port, receive and verify on the other.

    At a rate, whatever becomes of them; without one, with no more on the way than fits.
    """
    before = tx.stats, rx.stats
    largest, free = max(mix.sizes), run.pace.pps is None
    limit = min(receive_room(rx, largest), send_room(tx, largest))
    burst = min(run.bounds.burst, max(1, limit // 2) if free else send_room(tx, largest))
    sender = Sender(tx, mix, stream, burst, limit if free else send_room(tx, largest))
    meter = Meter(stream.first)
    run.start()
    waits = 0
    while run.sending(sender.sent):
        room = due = run.room(sender.sent)
        if free:
            room = min(due, limit - (sender.sent - meter.passed))
            waits += room <= 0
        sent = sender.send(room) if room > 0 else 0
        wait = 0.0 if sent else WAIT if free else run.pause(sender.sent)
        run.tick(take(rx, meter, run.bounds.burst, wait) + sent or due <= 0, sent)
        run.live(sender.sent, meter)
    sending = run.lasted(run.now, sender.sent)
    if not free:
        run.bounds = Bounds(None, None, run.bounds.burst, min(SETTLING, run.bounds.patience))
    while meter.lost(sender.sent) and not run.stalled():
        run.tick(take(rx, meter, run.bounds.burst, WAIT))
    seconds = run.lasted(run.moved, sender.sent)
    row = Row(size=round(mix.mean), mix=mix.label, sent=sender.sent, seconds=seconds)
    count(row, meter, rx, before[1])
    row.lost, row.tx = meter.lost(sender.sent), change(tx.stats, before[0], "tx_")
    latency(row, meter)
    _paced(row, run, sender, sending, waits)
    return row


def take(port: Port, checker: Checker, burst: int, wait: float) -> int:
    """Receive and verify a burst; how many of its frames are test frames."""
    damaged = checker.corrupt
    return checker.check(port.recv_burst(burst, timeout=wait)) + checker.corrupt - damaged


def count(row: Row, checker: Checker, port: Port, before: Any) -> None:
    """What the receiving side saw."""
    row.received, row.corrupt = checker.received, checker.corrupt
    row.duplicated, row.reordered = checker.duplicated, checker.reordered
    row.foreign, row.astray = checker.foreign, checker.astray
    row.rx = change(port.stats, before, "rx_")
    row.rate(checker.received, checker.bytes)
    if row.rx["rx_frames"]:
        row.buffers_per_frame = round(row.rx["rx_buffers"] / row.rx["rx_frames"], 3)


def _paced(row: Row, run: Run, sender: Sender | Player, seconds: float, waits: int = 0) -> None:
    """How fast it was to go, how fast it went, and what held it back."""
    row.asked_pps = None if run.pace.pps is None else round(run.pace.pps, 1)
    row.sent_pps = round(sender.sent / seconds, 1) if seconds > 0 else 0.0
    tries = sender.calls + waits
    row.ring_full = round(100 * (sender.full + waits) / tries, 1) if tries else 0.0
    row.limit = limit_of(row.asked_pps, row.sent_pps, row.ring_full)
