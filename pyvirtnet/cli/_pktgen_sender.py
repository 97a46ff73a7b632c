"""Senders: of numbered probes, and of prebuilt frames sent again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import lcm

import numpy as np

from .._burst import TxBurst, tx_stride
from .._probe import Probes
from .._stamp import STREAM, in_flight
from ..errors import Error
from ..port import Port
from ._pktgen_frames import Template
from ._pktgen_options import Mix, Vary

SEND_MEMORY = 4 << 20  # bytes of frames to be sent, where the ring could take more
FRAMES_MEMORY = 64 << 20  # bytes of prebuilt frames
TURNS = 4  # times that the ring of bursts may grow, for all sizes of a mix to get their turns


@dataclass
class Stream:
    """What all frames of a command share: headers, and numbers that go on from size to size."""

    header: bytes
    next: int = 0
    number: int = 0  # the stream's
    varies: list[Vary] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The sequence number that a checker expects next."""
        return self.number * STREAM + self.next


def check_memory(octets: int) -> None:
    """Raises Error for more than prebuilt frames may have."""
    if octets > FRAMES_MEMORY:
        why = f"they take more than {FRAMES_MEMORY >> 20} MiB"
        raise Error("cannot hold all frames", why, "tools/replay sends any number")


def send_room(port: Port, size: int) -> int:
    """Frames that are worth having in flight: what the ring takes, within SEND_MEMORY."""
    entries: int = port.info()["ring_sizes"][1]
    return max(1, min(entries, SEND_MEMORY // tx_stride(size)))


class Sender:
    """Sends probes, from a ring of bursts that the sender goes round.

    A burst is written again only when no send of it is under way. The ring holds `most` frames
    and a burst more, so that there is one to write while the others are on their way.

    calls, full  of send_burst, and how many of them found the transmit ring full
    """

    def __init__(self, port: Port, mix: Mix, stream: Stream, burst: int, most: int) -> None:
        template = Template(stream.header)
        template.check(mix.sizes)
        self.port, self.stream = port, stream
        self.sent = self.calls = self.full = 0
        self._probes = Probes(template.tables(mix.sizes, stream.varies), stream.number)
        self._ring: deque[TxBurst] = deque()
        turns, bursts = cycle(mix.sizes), -(-most // burst) + 1
        whole = lcm(burst, len(mix.sizes)) // burst
        if whole <= TURNS * bursts:
            bursts = -(-bursts // whole) * whole
        for number in range(bursts):
            frames = port.alloc_burst(burst, max(mix.sizes))
            frames.set_lengths(list(islice(turns, burst)))
            self._probes.prepare(frames, number * burst)
            self._ring.append(frames)
        self._rest = self._ring[0][:0]  # of a burst, what was not taken yet

    def send(self, most: int) -> int:
        """Send up to `most` frames, a burst at the most; how many the port took."""
        if not len(self._rest) and not self._next():
            return 0
        ready = self._rest[:most] if most < len(self._rest) else self._rest
        self._probes.number(ready, self.stream.next)
        taken = self.port.send_burst(ready)
        self.calls += 1
        self.full += taken < len(ready)
        self._rest = self._rest[taken:]
        self.sent += taken
        self.stream.next += taken
        return taken

    def _next(self) -> bool:
        burst = self._ring[0]
        if in_flight(burst) and (self.port.reclaim() == 0 or in_flight(burst)):
            self.calls += 1
            self.full += 1
            return False
        self._ring.rotate(-1)
        self._rest = burst
        return True


class Player:
    """Sends frames as they are, round and round; nothing is written once they are laid out."""

    def __init__(self, port: Port, frames: Sequence[bytes], burst: int) -> None:
        check_memory(sum(map(len, frames)))
        self.port = port
        self.sent = self.calls = self.full = 0
        # As often as fills bursts: many small ones are slower than one.
        repeated = list(frames) * max(1, burst // max(1, len(frames)))
        self._ring = deque(_bursts(port, repeated, burst))
        self._rest = self._ring[0][:0]

    def send(self, most: int) -> int:
        """Send up to `most` frames, a burst at the most; how many the port took."""
        if not len(self._rest):
            self._rest = self._ring[0]
            self._ring.rotate(-1)
        ready = self._rest[:most] if most < len(self._rest) else self._rest
        taken = self.port.send_burst(ready)
        self.calls += 1
        self.full += taken < len(ready)
        self._rest = self._rest[taken:]
        self.sent += taken
        return taken


def _bursts(port: Port, frames: Sequence[bytes], burst: int) -> list[TxBurst]:
    """In one piece, where that is no waste: a vhost-user back end sees no more than eight."""
    starts = range(0, len(frames), burst)
    if len(frames) * tx_stride(max(map(len, frames))) <= FRAMES_MEMORY:
        whole = _laid_out(port, frames)
        return [whole[at : at + burst] for at in starts]
    return [_laid_out(port, frames[at : at + burst]) for at in starts]


def _laid_out(port: Port, frames: Sequence[bytes]) -> TxBurst:
    burst = port.alloc_burst(len(frames), max(map(len, frames)))
    burst.set_lengths([len(frame) for frame in frames])
    for row, frame in zip(burst.data, frames, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    return burst
