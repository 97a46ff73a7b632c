"""The arena: DMA memory of any size for frames to be sent, shared by all ports of the process."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from threading import RLock

from ._attempt import Attempt
from .dma import Memory, Region, memory


class Block:
    """A piece of an arena, zeroed; it goes back when the last reference to it does."""

    __slots__ = ("_arena", "_offset", "_region", "_size", "address", "iova")

    def __init__(self, arena: Arena, region: Region, offset: int, size: int) -> None:
        self._arena, self._region, self._offset, self._size = arena, region, offset, size
        self.address, self.iova = region.address + offset, region.iova + offset
        ctypes.memset(self.address, 0, size)

    def __del__(self) -> None:
        self._arena.give(self._region, self._offset, self._size)


class Arena:
    """DMA memory of any size, for frames to be sent: first fit in regions of half a MiB or more."""

    REGION = 1 << 19
    LINE = 64

    def __init__(self, source: Memory) -> None:
        self._source = source
        self._gaps: dict[Region, list[tuple[int, int]]] = {}  # (offset, size), by offset
        self._returned: deque[tuple[Region, int, int]] = deque()
        self.forget()

    def forget(self) -> None:
        """In a forked child: its memory is no device's, and who held the lock is not here."""
        self._lock, self._inside = RLock(), False
        self._gaps.clear()

    def take(self, size: int) -> Block:
        """`size` bytes on a cache line of their own."""
        size = -(-size // self.LINE) * self.LINE
        with self._lock:
            if self._inside:  # in a signal handler or finaliser in the middle of another take()
                return Block(self, self._source.allocate(size), 0, size)
            self._inside = True
            try:
                self._merge_returned()
                region, offset = self._find(size) or self._grow(size)
            finally:
                self._inside = False
        self._settle()
        return Block(self, region, offset, size)

    def give(self, region: Region, offset: int, size: int) -> None:
        """Called by finalisers, and so in the middle of anything: of `take` in this thread too."""
        self._returned.append((region, offset, size))
        self._settle()

    def _settle(self) -> None:
        """See to what was returned; whoever has the lock does it after letting go."""
        while self._returned:
            with Attempt(self._lock) as mine:
                if not mine or self._inside:
                    return
                self._inside = True
                try:
                    self._merge_returned()
                finally:
                    self._inside = False

    def trim(self) -> None:
        """Give back the regions of which nothing is in use."""
        with self._lock:
            if self._inside:
                return
            self._inside = True
            try:
                self._merge_returned()
                for region, gaps in list(self._gaps.items()):
                    if gaps == [(0, region.size)]:
                        del self._gaps[region]
            finally:
                self._inside = False
        self._settle()

    def _find(self, size: int) -> tuple[Region, int] | None:
        for region, gaps in self._gaps.items():
            for i, (offset, length) in enumerate(gaps):
                if length >= size:
                    gaps[i : i + 1] = [(offset + size, length - size)] if length > size else []
                    return region, offset
        return None

    def _grow(self, size: int) -> tuple[Region, int]:
        region = self._source.allocate(max(size, self.REGION))
        self._gaps[region] = [(size, region.size - size)] if region.size > size else []
        return region, 0

    def _merge_returned(self) -> None:
        while self._returned:
            region, offset, size = self._returned.popleft()
            if region not in self._gaps:  # from before a fork, or a region for one block
                continue
            gaps = self._gaps[region] = _merged([*self._gaps[region], (offset, size)])
            if gaps == [(0, region.size)] and len(self._gaps) > 1:
                del self._gaps[region]


def _merged(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Gaps by offset, those that touch joined."""
    merged: list[tuple[int, int]] = []
    for offset, size in sorted(gaps):
        if merged and sum(merged[-1]) == offset:
            start, before = merged[-1]
            merged[-1] = (start, before + size)
        else:
            merged.append((offset, size))
    return merged


arena = Arena(memory)


os.register_at_fork(after_in_child=arena.forget)  # after what dma registered
