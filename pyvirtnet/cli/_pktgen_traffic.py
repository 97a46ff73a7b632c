"""Traffic of numbered frames: a sender, and the three runs made of it: send, receive, both."""

from __future__ import annotations

import signal
import time
from collections import deque
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import numpy as np

from .._burst import TxBurst, tx_stride
from .._stamp import Checker, in_flight, stamp
from ..bringup import NET_HEADER
from ..errors import Error
from ..port import Port
from ..spec import PAGE
from ._pktgen_report import Report, Row, change

PATIENCE = 5.0  # seconds without any progress after which a run gives up
LAST_CALL = 0.5  # the same, once the user has asked for the end
WAIT = 0.05  # seconds of sleep on the receive interrupt, at the most
SEND_MEMORY = 4 << 20  # bytes of frames to be sent, where the ring could take more
UNPUBLISHED = 32  # receive buffers that the driver may hold back, to publish many at once


@dataclass(frozen=True)
class Bounds:
    """When a run ends: after so many frames, so many seconds, or so many of silence."""

    count: int | None
    seconds: float | None
    burst: int
    patience: float = PATIENCE


@dataclass
class Stream:
    """What all frames of a command share: the header, and numbers that go on from size to size."""

    header: bytes
    next: int


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


class Sender:
    """Sends numbered frames of one size, from a ring of bursts that the sender goes round.

    A burst is written again only when no send of it is under way. The ring holds `most` frames
    and a burst more, so that there is one to write while the others are on their way.
    """

    def __init__(self, port: Port, size: int, stream: Stream, burst: int, most: int) -> None:
        self.port, self.stream, self.sent = port, stream, 0
        self._ring: deque[TxBurst] = deque()
        for _ in range(-(-most // burst) + 1):
            frames = port.alloc_burst(burst, size)
            frames.data[:, : len(stream.header)] = np.frombuffer(stream.header, np.uint8)
            self._ring.append(frames)
        self._ready = self._ring[0][:0]  # stamped and not taken yet

    def send(self, most: int) -> int:
        """Send up to `most` frames, a burst at the most; how many the port took."""
        if not len(self._ready):
            self._prepare(most)
        taken = self.port.send_burst(self._ready[:most])
        self._ready = self._ready[taken:]
        self.sent += taken
        self.stream.next += taken
        return taken

    def _prepare(self, most: int) -> None:
        burst = self._ring[0]
        if in_flight(burst) and (self.port.reclaim() == 0 or in_flight(burst)):
            return
        self._ring.rotate(-1)
        self._ready = burst[:most]
        stamp(self._ready, self.stream.next)


def buffers(size: int) -> int:
    """Receive buffers of a frame: pages that its virtio header and content fill (5.1.6.4)."""
    return -(-(NET_HEADER + size) // PAGE)


def check_sizes(sizes: list[int], tx: Port, rx: Port | None) -> None:
    largest = max(sizes)
    if largest > tx.max_frame:
        why = f"it sends up to {tx.max_frame} bytes, for its MTU is {tx.mtu}"
        raise Error(f"{tx.name} cannot send {largest} bytes", why, f"--size {tx.max_frame} or less")
    if rx is not None and rx.info()["receive_mode"] != "mergeable" and buffers(largest) > 1:
        why = "its device does not merge receive buffers (MRG_RXBUF), a frame must fit into one"
        mend = f"--size {PAGE - NET_HEADER} or less"
        raise Error(f"{rx.name} cannot receive {largest} bytes", why, mend)


def send_room(port: Port, size: int) -> int:
    """Frames that are worth having in flight: what the ring takes, within SEND_MEMORY."""
    entries: int = port.info()["ring_sizes"][1]
    return max(1, min(entries, SEND_MEMORY // tx_stride(size)))


def receive_room(port: Port, size: int) -> int:
    """Frames on their way that surely find receive buffers, wherever they are."""
    entries: int = port.info()["ring_sizes"][0]
    return max(1, (entries - min(UNPUBLISHED, entries // 8)) // buffers(size))


class Run:
    """One size on its way: the clock, the bounds, the row at the end."""

    def __init__(self, bounds: Bounds, stop: Stop, report: Report) -> None:
        self.bounds, self.stop, self.report = bounds, stop, report
        self.start()

    def start(self) -> None:
        """The clock runs from here."""
        self.started = self.moved = self.now = time.monotonic()

    def tick(self, progress: object) -> None:
        self.now = time.monotonic()
        if progress:
            self.moved = self.now

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
        """Frames of the next burst."""
        left = self.bounds.burst
        return left if self.bounds.count is None else min(left, self.bounds.count - done)

    def live(self, sent: int | None, checker: Checker | None) -> None:
        if not self.report.due(self.now):
            return
        parts = [] if sent is None else [f"{sent} sent"]
        frames = sent or 0
        if checker is not None:
            frames = checker.received
            parts += [f"{frames} received", f"{checker.lost()} lost", f"{checker.corrupt} damaged"]
        rate = frames / max(1e-9, self.now - self.started)
        self.report.live(self.now, f"{', '.join(parts)}, {rate:.0f} pps")


def send(port: Port, size: int, stream: Stream, run: Run) -> Row:
    """Send only. The row is done when the device is."""
    before, room = port.stats, send_room(port, size)
    sender = Sender(port, size, stream, min(run.bounds.burst, room), room)
    run.start()
    while run.sending(sender.sent):
        run.tick(sender.send(run.room(sender.sent)))
        run.live(sender.sent, None)
    while port.tx_pending and not run.stalled():
        run.tick(port.reclaim())
    row = Row(size=size, sent=sender.sent, seconds=run.moved - run.started)
    row.tx = change(port.stats, before, "tx_")
    row.rate(sender.sent, sender.sent * size)
    return row


def receive(port: Port, run: Run) -> Row:
    """Receive and verify what comes, from the first intact frame's stream."""
    before, checker = port.stats, Checker()
    while run.sending(checker.received + checker.corrupt):
        burst = port.recv_burst(run.bounds.burst, timeout=WAIT)
        intact = checker.check(burst)
        run.tick(len(burst))
        if intact and checker.received == intact:
            run.started = run.now  # the clock of the rate runs from the first frame on
        run.live(None, checker)
    row = Row(seconds=run.moved - run.started)
    count(row, checker, port, before)
    row.lost = checker.lost()
    return row


def loop(tx: Port, rx: Port, size: int, stream: Stream, run: Run) -> Row:
    """Send on one port, receive and verify on the other, with no more on the way than fits."""
    before = tx.stats, rx.stats
    limit = min(receive_room(rx, size), send_room(tx, size))
    burst = min(run.bounds.burst, max(1, limit // 2))
    sender, checker = Sender(tx, size, stream, burst, limit), Checker(stream.next)
    run.start()
    while run.sending(sender.sent):
        room = min(run.room(sender.sent), limit - (sender.sent - checker.passed))
        sent = sender.send(room) if room > 0 else 0
        run.tick(take(rx, checker, run.bounds.burst, 0.0 if sent else WAIT) + sent)
        run.live(sender.sent, checker)
    while checker.lost(sender.sent) and not run.stalled():
        run.tick(take(rx, checker, run.bounds.burst, WAIT))
    row = Row(size=size, sent=sender.sent, seconds=run.moved - run.started)
    count(row, checker, rx, before[1])
    row.lost, row.tx = checker.lost(sender.sent), change(tx.stats, before[0], "tx_")
    return row


def take(port: Port, checker: Checker, burst: int, wait: float) -> int:
    """Receive and verify a burst; how many of its frames are test frames."""
    damaged = checker.corrupt
    return checker.check(port.recv_burst(burst, timeout=wait)) + checker.corrupt - damaged


def count(row: Row, checker: Checker, port: Port, before: Any) -> None:
    """What the receiving side saw."""
    row.received, row.corrupt = checker.received, checker.corrupt
    row.duplicated, row.reordered = checker.duplicated, checker.reordered
    row.foreign, row.rx = checker.foreign, change(port.stats, before, "rx_")
    row.rate(checker.received, checker.bytes)
    if row.rx["rx_frames"]:
        row.buffers_per_frame = round(row.rx["rx_buffers"] / row.rx["rx_frames"], 3)
