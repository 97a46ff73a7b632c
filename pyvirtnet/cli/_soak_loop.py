"""A closed loop with a device that gives back what it takes: every frame numbered and verified."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._burst import TxBurst
from .._stamp import Checker, in_flight, stamp
from ..errors import Error
from ..negotiate import largest_frame
from ..port import Port
from ..spec import PAGE

HEADER = 12
MIX = (60,) * 13 + (1514,) * 2 + (9014,)  # frame sizes of the bursts, in turn
SILENCE = 10.0  # seconds without a frame, while some are on the way: they are lost
CALLS = 256  # between two looks at the clock
PATIENCE = 256  # calls that find nothing, before the device is let run where it lacks a core


@dataclass(frozen=True)
class Burst:
    """Frames to be sent, and how many buffers of the receive ring they take when they come back."""

    frames: TxBurst
    buffers: int


def room(port: Port) -> int:
    """Buffers of the receive ring; what is not posted yet, an eighth of the ring, is no room."""
    entries: int = port.info()["ring_sizes"][0]
    return entries * 3 // 4


def fitting(port: Port, asked: Sequence[int] | None) -> Sequence[int]:
    """The sizes that are asked for, or those of the MIX that a port sends and takes back.

    Raises Error where one that is asked for is too large.
    """
    most = min(port.max_frame, largest_frame(port.features.negotiated, room(port), None))
    sizes = asked or [size for size in MIX if size <= most]
    if max(sizes) > most:
        what = f"{port.name} cannot send {max(sizes)} bytes and take them back"
        why = f"its MTU and its receive buffers allow for {most}"
        raise Error(what, why, f"--sizes {most} or less")
    return sizes


class Loop:
    """Sends up to `frames` frames, never more at a time than the receive ring has room for."""

    def __init__(self, port: Port, frames: int, burst: int, sizes: Sequence[int]) -> None:
        self.checker = Checker(0)
        self.sent = self.seen = 0
        self.silent = False  # what is on the way did not come
        self._port, self._frames, self._size = port, frames, burst
        self._room = room(port)
        self._bursts = self._allocate(sizes)
        self._turn = self._idle = 0
        self._heard = time.monotonic()
        self._rest: TxBurst | None = None
        self._away: deque[tuple[int, int]] = deque()  # (number after the last one, buffers)
        self._buffers = 0  # of what is away

    def _allocate(self, sizes: Sequence[int]) -> list[Burst]:
        """So many that one that comes up again has long been received: all sizes, again and again
        until they fill the ring twice."""
        bursts: list[Burst] = []
        while len(bursts) < len(sizes) or sum(each.buffers for each in bursts) <= 2 * self._room:
            size = sizes[len(bursts) % len(sizes)]
            frame = -(-(HEADER + size) // PAGE)
            count = max(1, min(self._size, self._room // frame))
            bursts.append(Burst(self._port.alloc_burst(count, size), count * frame))
        return bursts

    @property
    def done(self) -> bool:
        """All has been sent and has come back, or what has not come is lost."""
        return self.silent or (self.sent >= self._frames and self.seen >= self.sent)

    def run(self, seconds: float) -> None:
        """Frames round and round for about so long, or until all is done."""
        now = time.monotonic()
        end = now + seconds
        while not self.done and now < end:
            before = self.seen
            self._exchange()
            now = time.monotonic()
            if self.seen != before or self.seen == self.sent:
                self._heard = now
            elif now - self._heard > SILENCE:
                self.silent = True

    def drain(self) -> None:
        """No more is sent; what is on the way comes back."""
        self._frames = self.sent
        self.run(2 * SILENCE)

    def _exchange(self) -> None:
        """For a while, or until all is back that was sent."""
        receive, check = self._port.recv_burst, self.checker.check
        for _ in range(CALLS):
            if self.sent < self._frames:
                self._send()
            self._idle += 1
            got = receive(64) if self._idle < PATIENCE else receive(64, timeout=0.1)
            if len(got):
                self._idle = 0
                check(got)
                self.seen += len(got)
            elif self.seen == self.sent or self._idle >= PATIENCE:
                return

    def _send(self) -> None:
        away = self._away
        while away and away[0][0] <= self.seen:
            self._buffers -= away.popleft()[1]
        if self._rest is None:
            burst = self._bursts[self._turn]
            if self._buffers + burst.buffers > self._room or in_flight(burst.frames):
                self._port.reclaim()
                return
            self._turn = (self._turn + 1) % len(self._bursts)
            stamp(burst.frames, self.sent)
            self._buffers += burst.buffers
            away.append((self.sent + len(burst.frames), burst.buffers))
            self._rest = burst.frames
        taken = self._port.send_burst(self._rest)
        self.sent += taken
        self._rest = self._rest[taken:] if taken < len(self._rest) else None


def resident() -> int:
    """KiB of memory that this process occupies, huge pages included."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return sum(int(rows[name].split()[0]) for name in ("VmRSS", "HugetlbPages") if name in rows)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
