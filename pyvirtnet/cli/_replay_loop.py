"""The loop of replay: when each frame is due, and sending it then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._burst import TxBurst
from ..port import Port
from ._live import Live
from ._pktgen_traffic import Stop
from ._replay_frames import Part, Recording

Times: TypeAlias = NDArray[np.floating[Any]]

PATIENCE = 5.0  # seconds without any progress after which a run gives up
_COARSE = 0.002  # seconds that a sleep may take too long; the rest is waited for awake
_NAP = 0.05  # seconds of sleep at the most, for Ctrl-C


@dataclass
class Pace:
    """When frames are due, in seconds from the start. None of the three: all of them at once.

    rate   frames a second
    bits   bits a second, of frames as they are captured
    speed  times the recorded one; each pass follows the last at once
    """

    rate: float | None = None
    bits: float | None = None
    speed: float | None = None
    _next: float = 0.0
    _first: int | None = None  # stamp of a pass

    def begin_pass(self) -> None:
        self._first = None

    def times(self, part: Part) -> Times | None:
        """float64[n], rising: when the frames of the next part are due."""
        n = len(part.burst)
        if self.rate is not None:
            steps: Times = np.full(n, 1 / self.rate)
        elif self.bits is not None:
            steps = part.burst.lengths * (8 / self.bits)
        elif self.speed is not None:
            return self._recorded(np.array(part.stamps, np.int64), self.speed)
        else:
            return None
        ends: Times = self._next + np.cumsum(steps)
        self._next = float(ends[-1])
        return ends - steps

    def span(self, frames: int, octets: int) -> float:
        """Seconds that so many frames have, the last one as well; recorded, nobody knows."""
        if self.rate is not None:
            return frames / self.rate
        return octets * 8 / self.bits if self.bits is not None else 0.0

    def _recorded(self, stamps: NDArray[np.int64], speed: float) -> Times:
        if self._first is None:
            self._first, self._start = int(stamps[0]), self._next
        times = self._start + (stamps - self._first) / (speed * 1e9)
        times = np.maximum.accumulate(np.maximum(times, self._next))
        self._next = float(times[-1])
        return times


class Replay:
    """Sends a recording on a port: what was sent, how late, how often the port was full.

    seconds  from the start until the last frame went, or until the wait for the next was ended
    """

    def __init__(self, port: Port, pace: Pace, stop: Stop) -> None:
        self._port, self._pace, self._stop, self._live = port, pace, stop, Live()
        self.frames = self.octets = self.full = self.passes = 0
        self.late = self.seconds = 0.0
        self.stalled = False

    def run(self, recording: Recording, passes: int, most: int | None, limit: float | None) -> None:
        """So many passes (0: for ever), frames or seconds."""
        self._began = self._moved = time.perf_counter()
        self._end = float("inf") if limit is None else self._began + limit
        self._left: int | None = most
        for number in count(1):
            self._pace.begin_pass()
            if not all(self._send(part, part is recording.last) for part in recording):
                break
            self.passes = number
            if number == passes or self._left == 0:
                break
        self._drain()
        self.seconds = self._moved - self._began
        self._live.clear()

    @property
    def spent(self) -> float:
        """Seconds, with what is left of the last frame's at a pace: for rates."""
        return max(self.seconds, self._pace.span(self.frames, self.octets))

    def _send(self, part: Part, last: bool) -> bool:
        """A part's frames when they are due; False if the end comes before that of the pass."""
        times, burst, at = self._pace.times(part), part.burst, 0
        while at < len(burst):
            now = time.perf_counter()
            if self._stop.signal or now >= self._end or self._left == 0 or self.stalled:
                return False
            due = len(burst)
            if times is not None:
                late = now - self._began - times
                due = int(np.searchsorted(-late, 0.0, "right"))
                if due <= at:
                    self._wait(-float(late[at]), self._end - now)
                    continue
                self.late = max(self.late, float(late[at]))
            if self._left is not None:
                due = min(due, at + self._left)
            at += self._put(burst[at:due])
        return last or self._left != 0

    def _put(self, burst: TxBurst) -> int:
        """Send; how many frames the port took."""
        taken = self._port.send_burst(burst)
        now = time.perf_counter()
        if taken:
            self._moved = now
            self.octets += int(burst.lengths[:taken].sum())
            self.frames += taken
            self._left = None if self._left is None else self._left - taken
        else:
            self.full += 1
            self.stalled = now - self._moved > PATIENCE
        if self._live.due():
            rate = self.frames / (now - self._began)
            self._live.show(f"{self.frames} sent, {rate:.0f} pps, {self.passes} passes done")
        return taken

    def _wait(self, seconds: float, left: float) -> None:
        """Until about then."""
        self._moved = time.perf_counter()  # nothing was due
        if seconds > _COARSE:
            time.sleep(min(seconds - _COARSE / 2, _NAP, max(left, 0.0)))

    def _drain(self) -> None:
        """What was sent leaves before the port is closed, unless its device has stopped."""
        end = time.perf_counter() + 0.5
        while self._port.tx_pending and time.perf_counter() < end:
            if self._port.reclaim():
                self._moved = time.perf_counter()
