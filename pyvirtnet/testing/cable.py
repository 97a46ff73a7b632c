"""Cables: what one network device transmits, another one, or itself, receives."""

from __future__ import annotations

from collections import deque
from typing import Any

from .layout import MRG_RXBUF
from .net import NetDevice
from .rules import HEADER


class Wire:
    """One direction of one queue pair: frames keep their order, and none is lost.

    A bounded backlog waits for receive buffers; when it is full, frames stay in the sender's
    ring. Only a frame too long for any buffer of an unmerged receiver is dropped, and counted.
    """

    def __init__(self, source: NetDevice, target: NetDevice, pair: int, limit: int) -> None:
        self.source, self.target, self.pair, self.limit = source, target, pair, limit
        self.backlog: deque[bytes] = deque()
        self.carried = self.dropped = 0

    def move(self) -> int:
        """Carry what can be carried; how many frames were."""
        before = self.carried
        while self._collect() | self._hand_over():
            pass
        return self.carried - before

    def _collect(self) -> bool:
        room = self.limit - len(self.backlog)
        if room <= 0 or not self.source.running(2 * self.pair + 1):
            return False
        frames = self.source.take(room, pair=self.pair)
        if frames:
            self.source.complete(pair=self.pair)
            self.backlog.extend(frames)
        return bool(frames)

    def _hand_over(self) -> bool:
        if not self.backlog or not self.target.running(2 * self.pair):
            return False
        self._drop_oversized()
        sent = self.target.deliver_some(self.backlog, pair=self.pair)
        for _ in range(sent):
            self.backlog.popleft()
        self.carried += sent
        return bool(sent)

    def _drop_oversized(self) -> None:
        if self.target.accepted & MRG_RXBUF:
            return
        most = self.target.receive_capacity(self.pair)
        if most is None:
            return
        kept = [frame for frame in self.backlog if HEADER + len(frame) <= most]
        self.dropped += len(self.backlog) - len(kept)
        self.backlog = deque(kept)


class Cable:
    """Two devices joined: what either driver sends, the other receives.

    `left` is one that no driver uses yet; that of `right` may be in the middle of a call.
    """

    def __init__(self, left: NetDevice, right: NetDevice, backlog: int = 1024) -> None:
        pairs = range(min(left.pairs, right.pairs))
        ends = ((left, right), (right, left))
        self.wires = [Wire(a, b, pair, backlog) for a, b in ends for pair in pairs]
        left.lock = right.lock  # one lock: a kick of either may move both
        with right.lock:
            left.on_kick = right.on_kick = self.poll

    def poll(self) -> int:
        """Carry all that can be carried; how many frames were."""
        return sum(wire.move() for wire in self.wires)


class Loopback(NetDevice):
    """A device whose transmitted frames come back as received ones, on every kick."""

    def __init__(self, *args: Any, backlog: int = 1024, **options: Any) -> None:
        super().__init__(*args, **options)
        self.wires = [Wire(self, self, pair, backlog) for pair in range(self.pairs)]
        self.on_kick = self.poll

    def poll(self) -> int:
        """Carry all that can be carried; how many frames were."""
        return sum(wire.move() for wire in self.wires)

    def reset(self) -> None:
        super().reset()
        for wire in self.wires:
            wire.backlog.clear()
