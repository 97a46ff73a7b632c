"""A port's DMA memory: the rings of its queue pairs, their head slots and pages, its commands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from . import dma
from ._pages import PagePool
from ._ring import ring_bytes, ring_parts
from .spec import Feature
from .transport.base import QueueAddresses

PAGES_PER_ENTRY = 3  # one with the device, one in a burst, one on its way out again
SLOTS_PER_ENTRY = 8


class PortMemory:
    """One region: all rings, then a pool for each queue pair, then the control queue.

    sizes    entries of each ring, receive and transmit in turn
    format   of the rings, as `QueuePair` is told
    pages    of each queue pair; None: by the size of its receive ring
    control  bytes for the control queue, whole pages
    """

    def __init__(
        self, sizes: Sequence[int], ring_format: dict[str, Any], pages: int | None, control: int
    ) -> None:
        self.sizes, self.format, self.control = list(sizes), dict(ring_format), control
        self._largest = tuple(sizes)
        self._layout = {name: ring_format[name] for name in ("packed", "alignment")}
        ends = list(accumulate(self._ring_bytes(index) for index in range(len(sizes))))
        self.rings = [0, *ends[:-1]]  # where each begins
        pools = [self._pool_size(size, pages) for size in sizes[::2]]
        starts = list(
            accumulate((PagePool.bytes_needed(*pool) for pool in pools), initial=ends[-1])
        )
        self.region = dma.memory.allocate(starts[-1] + control)
        self.pools = [
            PagePool(self.region, start, *pool, max(rx, tx, 64, pool[0] * self.format["big"]))
            for start, pool, rx, tx in zip(starts, pools, sizes[::2], sizes[1::2], strict=False)
        ]

    def suits(self, sizes: Sequence[int], ring_format: dict[str, Any], control: int) -> bool:
        return (self.sizes, self.format, self.control) == (sizes, ring_format, control)

    def addresses(self, index: int) -> QueueAddresses:
        """Where the parts of a ring lie for the device."""
        size, start = self.sizes[index], self.region.iova + self.rings[index]
        parts = ring_parts(size, **self._layout)
        return QueueAddresses(size, *(start + part for part in parts))

    def check_size(self, index: int, size: int, least: int) -> None:
        """ValueError if the ring cannot have this size where it lies."""
        packed, most = self.format["packed"], self._largest[index]
        if not least <= size <= most or (size & (size - 1) and not packed):
            kind = "sizes" if packed else "powers of two"
            raise ValueError(f"size={size}: the ring takes {kind} from {least} to {most}")

    def clear_headers(self) -> None:
        for pool in self.pools:
            pool.clear_headers()

    @property
    def pages(self) -> int:
        return sum(pool.pages for pool in self.pools)

    @property
    def free_pages(self) -> int:
        return sum(pool.free_pages for pool in self.pools)

    def _ring_bytes(self, index: int) -> int:
        send, form = bool(index % 2), self.format
        tables = form["indirect"] and (send or form["big"])
        headers = send and bool(form["features"] >> Feature.CSUM & 1)
        return ring_bytes(self.sizes[index], tables=tables, headers=headers, **self._layout)

    def _pool_size(self, ring: int, pages: int | None) -> tuple[int, int]:
        """Pages and head slots of a queue pair."""
        if pages is None:
            pages = PAGES_PER_ENTRY * ring
        if pages < 1:
            raise ValueError(f"a port needs at least one page, not {pages}")
        return pages, -(-SLOTS_PER_ENTRY * ring // 64) * 64
