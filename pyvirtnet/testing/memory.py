"""What the device can reach: DMA memory by its address at the device, and who has lent it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise

from .violation import Violation, Where, words

Translate = Callable[[int, int], memoryview]
Piece = tuple[int, memoryview]  # (address at the device, writable bytes)
_BUCKET = 12  # bits: spans are kept by the 4 KiB they touch


class MemoryMap:
    """DMA memory in pieces, as an IOMMU would map it.

    `refresh`, if given, returns the pieces there are now; it is asked when an address is not
    found. A range has to lie in one piece.
    """

    def __init__(
        self, pieces: Iterable[Piece] = (), refresh: Callable[[], Iterable[Piece]] | None = None
    ) -> None:
        self._refresh = refresh
        # Threads and finalisers map and unmap in the middle of each other: what there is, is in
        # `_pieces`, and `_order` tells where to look, and may be out of date.
        self._pieces: dict[int, memoryview] = {}
        self._order: list[int] = []
        self.replace(pieces)

    def replace(self, pieces: Iterable[Piece]) -> None:
        """Map these pieces and nothing else."""
        pieces = list(pieces)
        _check_apart(pieces)
        self._pieces = dict(pieces)
        self._order = sorted(self._pieces)

    def add(self, iova: int, view: memoryview) -> None:
        """Map one more piece."""
        # By keys, which no garbage collection comes in between of.
        there = [(start, self._pieces.get(start)) for start in list(self._pieces)]
        _check_apart([*((start, one) for start, one in there if one is not None), (iova, view)])
        self._pieces[iova] = view
        self._order = sorted(self._pieces)

    def remove(self, iova: int) -> None:
        """Unmap the piece that starts at `iova`."""
        self._pieces.pop(iova, None)
        self._order = sorted(self._pieces)

    def translate(self, iova: int, length: int) -> memoryview:
        """The bytes at `iova`; LookupError if any of them is not DMA memory."""
        found = self._find(iova, length)
        if found is None:
            self._order = sorted(self._pieces)
            found = self._find(iova, length)
        if found is None and self._refresh is not None:
            self.replace(self._refresh())
            found = self._find(iova, length)
        if found is None:
            raise LookupError(f"{iova:#x} + {length} is not DMA memory")
        return found

    def _find(self, iova: int, length: int) -> memoryview | None:
        order = self._order
        at = bisect_right(order, iova) - 1
        view = self._pieces.get(order[at]) if at >= 0 else None
        if view is None:
            return None
        offset = iova - order[at]
        return view[offset : offset + length] if offset + length <= view.nbytes else None


def _check_apart(pieces: Iterable[Piece]) -> None:
    for (low, view), (high, _) in pairwise(sorted(pieces, key=lambda piece: piece[0])):
        if low + view.nbytes > high:
            raise ValueError(f"pieces at {low:#x} and {high:#x} overlap")


def publish(memory: memoryview, offset: int, data: bytes) -> None:
    """Two or four aligned bytes at once: `Struct.pack_into` clears them first and goes byte by
    byte, which a driver in another process, or one that holds no interpreter lock, would see."""
    memory[offset : offset + len(data)] = data


class _Spans:
    """Spans of addresses with a label each, counted when they come more than once."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[tuple[int, int], tuple[int, Where]]] = {}

    def add(self, start: int, end: int, label: Where) -> None:
        for bucket in range(start >> _BUCKET, (end - 1 >> _BUCKET) + 1):
            spans = self._buckets.setdefault(bucket, {})
            count = spans[start, end][0] if (start, end) in spans else 0
            spans[start, end] = (count + 1, label)

    def remove(self, start: int, end: int) -> None:
        for bucket in range(start >> _BUCKET, (end - 1 >> _BUCKET) + 1):
            spans = self._buckets[bucket]
            count, label = spans[start, end]
            if count > 1:
                spans[start, end] = (count - 1, label)
            else:
                del spans[start, end]

    def overlap(self, start: int, end: int) -> str | None:
        for bucket in range(start >> _BUCKET, (end - 1 >> _BUCKET) + 1):
            for (low, high), (_, label) in self._buckets.get(bucket, {}).items():
                if low < end and start < high:
                    return f"{words(label)} at {low:#x} + {high - low}"
        return None


class Ledger:
    """Memory that the driver has lent to the device, until it is given back.

    What the device may write (posted receive buffers) and the virtqueues themselves overlap
    nothing; what it only reads (frames to send) may be lent many times over.
    """

    _RULE = "memory that the device may write is lent to it once"

    def __init__(self) -> None:
        self._exclusive = _Spans()
        self._shared = _Spans()

    def lend_exclusive(self, start: int, length: int, label: Where) -> None:
        end = start + length
        other = self._exclusive.overlap(start, end) or self._shared.overlap(start, end)
        if other is not None:
            seen = f"{words(label)} at {start:#x} + {length} overlaps {other}"
            raise Violation(self._RULE, "2.6, 2.7.13", seen)
        self._exclusive.add(start, end, label)

    def lend_shared(self, start: int, length: int, label: Where) -> None:
        other = self._exclusive.overlap(start, start + length)
        if other is not None:
            seen = f"{words(label)} at {start:#x} + {length} overlaps {other}"
            raise Violation(self._RULE, "2.6, 2.7.13", seen)
        self._shared.add(start, start + length, label)

    def give_back_exclusive(self, start: int, length: int) -> None:
        self._exclusive.remove(start, start + length)

    def give_back_shared(self, start: int, length: int) -> None:
        self._shared.remove(start, start + length)

    def holder(self, start: int, length: int) -> str | None:
        """What of this range the device still has, if anything."""
        end = start + length
        return self._exclusive.overlap(start, end) or self._shared.overlap(start, end)
