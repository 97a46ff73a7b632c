"""Frames of a capture, ready to be sent, and the times at which they are due."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from .._burst import TxBurst, tx_stride
from ..bpf import Filter
from ..errors import Error
from ..pcap import Packet, Reader
from ..port import Port
from ..spec import MIN_FRAME

ROOM = 64 << 20  # bytes of frames that are laid out in advance


@dataclass
class Part:
    """Frames that lie together, and their stamps in nanoseconds."""

    burst: TxBurst
    stamps: list[int]


class Recording:
    """The packets of a file as parts of up to `burst` frames, in their order; a pass an iteration.

    `load()` lays out what fits into ROOM, to be sent from there, again and again; of a longer file
    the rest is laid out when its turn comes, and from the second pass on all of it.
    Of the last pass: frames that the filter `refused`, that the port does not send (`unfit`), and
    those that are sent `cut`: with fewer bytes than they had on the wire.
    """

    def __init__(
        self, reader: Reader, port: Port, burst: int, wanted: Filter | None = None
    ) -> None:
        self._reader, self._port, self._burst, self._wanted = reader, port, burst, wanted
        self.unfit = self.cut = self.refused = 0
        self._ready: list[Part] = []
        self._rest: Iterator[Part] | None = None  # of the first pass, where ROOM was not enough

    def load(self) -> None:
        """Raises Error where nothing can be sent, or for what is no capture."""
        room = ROOM
        self._rest = self._read()
        for part in self._rest:
            self._ready.append(part)
            room -= len(part.stamps) * tx_stride(part.burst.data.shape[1])
            if room < 0:
                return
        self._rest = None
        if not self._ready:
            why = f"of its frames {self.refused} are refused by the filter, {self.unfit} unfit"
            why = why if self.refused or self.unfit else "it has no frames"
            mend = "choose another file, or another filter"
            raise Error(f"nothing of {self._reader.name} can be sent", why, mend)

    @property
    def last(self) -> Part | None:
        """Of each pass; None where that is not known before it is read."""
        return self._ready[-1] if self._rest is None and self._ready else None

    def __iter__(self) -> Iterator[Part]:
        if self._rest is None:
            yield from self._ready
        elif self._ready:
            yield from self._ready
            self._ready.clear()
            yield from self._rest
        elif self._reader.name == "-":
            why = f"it comes by the standard input, and is longer than {ROOM >> 20} MiB"
            raise Error("cannot begin again", why, "give a file's name, or no --loop")
        else:
            self.unfit = self.cut = self.refused = 0
            yield from self._read()

    def _read(self) -> Iterator[Part]:
        packets = iter(self._reader)
        while batch := list(islice(packets, self._burst)):
            if part := self._part(batch):
                yield part

    def _part(self, batch: list[Packet]) -> Part | None:
        fits = [one for one in batch if MIN_FRAME <= len(one.data) <= self._port.max_frame]
        self.unfit += len(batch) - len(fits)
        if not fits:
            return None
        lengths = [len(one.data) for one in fits]
        burst = self._port.alloc_burst(len(fits), max(lengths))
        for row, one in zip(burst.data, fits, strict=True):
            row[: len(one.data)] = np.frombuffer(one.data, np.uint8)
        burst.set_lengths(lengths)
        stamps = [one.stamp for one in fits]
        if self._wanted is not None:
            chosen = np.flatnonzero(self._wanted(burst))
            self.refused += len(fits) - len(chosen)
            if not len(chosen):
                return None
            burst = burst[chosen]
            stamps, fits = [stamps[i] for i in chosen], [fits[i] for i in chosen]
        self.cut += sum(one.length > len(one.data) for one in fits)
        return Part(burst, stamps)
