"""The shared memory of a split virtqueue, written as no device may."""

from __future__ import annotations

import random

from .chain import Chain
from .layout import DESCRIPTOR, U16, USED_ELEMENT
from .split import SplitQueue

_BIT_16 = tuple(1 << bit for bit in range(16))


class Forge:
    """A hand in one queue's memory that keeps to no rule. The queue's own books are not kept."""

    def __init__(self, queue: SplitQueue) -> None:
        self.queue = queue

    def use(self, *elements: tuple[int, int], advance: int | None = None) -> None:
        """Write used elements (id, length), then move the used index by `advance`.

        It moves by as many as there are elements if not told otherwise.
        """
        queue = self.queue
        for at, element in enumerate(elements):
            slot = 4 + 8 * ((queue._given + at) % queue.size)
            USED_ELEMENT.pack_into(queue._used, slot, *element)
        queue._given = (queue._given + (len(elements) if advance is None else advance)) & 0xFFFF
        U16.pack_into(queue._used, 2, queue._given)

    def in_flight(self) -> list[Chain]:
        """Every buffer that the driver has exposed and the device not given back."""
        return [exposed.chain for exposed in self.queue._in_flight.values()]

    def not_heads(self) -> tuple[list[int], list[int]]:
        """Descriptors that name no buffer: those inside chains, and those not in flight."""
        owner, heads = self.queue._owner, self.queue._in_flight
        inside = [at for at in owner if at not in heads]
        return inside, [at for at in range(self.queue.size) if at not in owner]

    def rewrite_descriptors(self, rng: random.Random) -> str:
        """A few descriptors become anything at all."""
        picked = [rng.randrange(self.queue.size) for _ in range(rng.randint(1, 4))]
        for at in picked:
            fields = (
                rng.getrandbits(64),
                rng.getrandbits(32),
                rng.getrandbits(3),
                rng.choice(picked),
            )
            DESCRIPTOR.pack_into(self.queue._table, 16 * at, *fields)
        return f"descriptors {picked}"

    def rewrite_available(self, rng: random.Random) -> str:
        """Words of the available ring, its flags and index among them, become others."""
        return self._flip(self.queue._avail, rng)

    def rewrite_used(self, rng: random.Random) -> str:
        """Used elements that were written before, and the flags, become others; not the index."""
        index = bytes(self.queue._used[2:4])
        words = self._flip(self.queue._used, rng)
        self.queue._used[2:4] = index
        return words

    @staticmethod
    def _flip(ring: memoryview, rng: random.Random) -> str:
        picked = [2 * rng.randrange(ring.nbytes // 2) for _ in range(rng.randint(1, 8))]
        for at in picked:
            (word,) = U16.unpack_from(ring, at)
            U16.pack_into(ring, at, word ^ rng.choice(_BIT_16))
        return f"words at {picked}"
