"""The shared memory of a virtqueue, written as no device may."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from .chain import Chain
from .layout import DESC_AVAIL, DESC_USED, DESC_WRITE, DESCRIPTOR, U16, USED_ELEMENT, USED_PART
from .packed import PackedQueue
from .queue import Virtqueue
from .split import SplitQueue

_BIT_16 = tuple(1 << bit for bit in range(16))
_MARKS = DESC_AVAIL | DESC_USED


class Forge(ABC):
    """A hand in one queue's memory that keeps to no rule. The queue's own books are not kept."""

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue

    @property
    @abstractmethod
    def jumps(self) -> tuple[int, ...]:
        """How far the device may advance in a way that cannot be."""

    @abstractmethod
    def use(self, *elements: tuple[int, int], advance: int | None = None) -> None:
        """Write used elements (id, length), then let the driver see `advance` more.

        As many as there are elements if not told otherwise. A packed ring has no index: there
        descriptors that nobody wrote are marked as used.
        """

    @abstractmethod
    def rewrite_descriptors(self, rng: random.Random) -> str:
        """A few descriptors become anything at all, but for what says that they are used."""

    @abstractmethod
    def rewrite_used(self, rng: random.Random) -> str:
        """What the device wrote before, and when it wants kicks, become others."""

    def rewrite_available(self, rng: random.Random) -> str:
        """Words of the driver's area become others: the available ring, its flags and index; in a
        packed ring when the driver wants interrupts."""
        return self._flip(self.queue._driver_area, rng)

    def in_flight(self) -> list[Chain]:
        """Every buffer that the driver has exposed and the device not given back."""
        return list(self.queue.in_flight())

    def not_heads(self) -> tuple[list[int], list[int]]:
        """Numbers that name no buffer: those of descriptors inside chains, and all others."""
        heads = self.queue._in_flight
        entries = [exposed.entries for exposed in heads.values()]
        taken = {at % self.queue.size for each in entries for at, _ in each}
        inside = sorted(taken - heads.keys())
        return inside, [at for at in range(self.queue.size) if at not in taken | heads.keys()]

    @staticmethod
    def _flip(ring: memoryview, rng: random.Random) -> str:
        picked = [2 * rng.randrange(ring.nbytes // 2) for _ in range(rng.randint(1, 8))]
        for at in picked:
            (word,) = U16.unpack_from(ring, at)
            U16.pack_into(ring, at, word ^ rng.choice(_BIT_16))
        return f"words at {picked}"


class SplitForge(Forge):
    """In a split virtqueue (2.7)."""

    @property
    def jumps(self) -> tuple[int, ...]:
        return self.queue.size + 1, 0x7FFF, 0x8000, 0xFFFF, 0xFF00

    def use(self, *elements: tuple[int, int], advance: int | None = None) -> None:
        queue = self.queue
        for at, element in enumerate(elements):
            slot = 4 + 8 * ((queue._given + at) % queue.size)
            USED_ELEMENT.pack_into(queue._device_area, slot, *element)
        queue._given = (queue._given + (len(elements) if advance is None else advance)) & 0xFFFF
        U16.pack_into(queue._device_area, 2, queue._given)

    def rewrite_descriptors(self, rng: random.Random) -> str:
        picked = [rng.randrange(self.queue.size) for _ in range(rng.randint(1, 4))]
        for at in picked:
            anything = rng.getrandbits(64), rng.getrandbits(32), rng.getrandbits(3)
            DESCRIPTOR.pack_into(self.queue._table, 16 * at, *anything, rng.choice(picked))
        return f"descriptors {picked}"

    def rewrite_used(self, rng: random.Random) -> str:
        used = self.queue._device_area
        index = bytes(used[2:4])
        words = self._flip(used, rng)
        used[2:4] = index
        return words


class PackedForge(Forge):
    """In a packed virtqueue (2.8)."""

    @property
    def jumps(self) -> tuple[int, ...]:
        return self.queue.size, self.queue.size + 1, 2 * self.queue.size - 1

    def use(self, *elements: tuple[int, int], advance: int | None = None) -> None:
        queue = self.queue
        for name, length in elements:
            at = 16 * (queue._given % queue.size)
            USED_PART.pack_into(queue._table, at + 8, length & 0xFFFFFFFF, name & 0xFFFF)
            exposed = queue._in_flight.get(name)
            self._mark(DESC_WRITE if length else 0)
            queue._given += max(1, len(exposed.entries)) if exposed else 1
        if advance is not None:
            for _ in range(min(advance, 2 * queue.size)):
                self._mark(0)
                queue._given += 1

    def _mark(self, flags: int) -> None:
        """The descriptor whose turn it is was used, in this lap."""
        place, lap = self.queue._given % self.queue.size, self.queue._given // self.queue.size
        flags |= 0 if lap & 1 else _MARKS
        U16.pack_into(self.queue._table, 16 * place + 14, flags)

    def rewrite_descriptors(self, rng: random.Random) -> str:
        picked = [rng.randrange(self.queue.size) for _ in range(rng.randint(1, 4))]
        for at in picked:
            *_, flags = DESCRIPTOR.unpack_from(self.queue._table, 16 * at)
            anything = rng.getrandbits(64), rng.getrandbits(32), rng.choice(picked)
            flags = flags & _MARKS | rng.getrandbits(16) & ~_MARKS
            DESCRIPTOR.pack_into(self.queue._table, 16 * at, *anything, flags)
        return f"descriptors {picked}"

    def rewrite_used(self, rng: random.Random) -> str:
        return self._flip(self.queue._device_area, rng)


def forge_of(queue: Virtqueue) -> Forge:
    """A hand in this queue's memory, whatever its format."""
    if isinstance(queue, PackedQueue):
        return PackedForge(queue)
    assert isinstance(queue, SplitQueue)
    return SplitForge(queue)
