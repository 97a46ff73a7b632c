"""The memory table of a vhost-user device: which regions its back end is shown, and where."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..dma import Region

MAX_REGIONS = 8  # a table has no more


@dataclass(frozen=True)
class _Row:
    iova: int
    size: int
    address: int  # in this process
    fd: int  # a copy of the region's own


class MemoryTable:
    """Regions by IOVA. It refers to none of them: they die when their last user goes.

    The file of a region that was removed stays open until the next table is composed: the message
    with the previous one may be on its way.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}
        self._dead: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, region: Region) -> None:
        fd = os.dup(region.fd)
        self._rows[region.iova] = _Row(region.iova, region.size, region.address, fd)

    def remove(self, iova: int) -> None:
        row = self._rows.pop(iova, None)
        if row is not None:  # else another thread closed the table meanwhile
            self._dead.append(row.fd)

    def address(self, iova: int) -> int:
        """Rings are named by their address in this process, buffers by their IOVA."""
        for row in list(self._rows.values()):
            if row.iova <= iova < row.iova + row.size:
                return row.address + iova - row.iova
        raise AssertionError(f"{iova:#x} is no DMA memory")

    def compose(self) -> tuple[bytes, Sequence[int]]:
        """The payload of SET_MEM_TABLE and the file descriptors with it."""
        self._forget_dead()
        rows = list(self._rows.values())
        packed = [struct.pack("<QQQQ", row.iova, row.size, row.address, 0) for row in rows]
        return struct.pack("<II", len(rows), 0) + b"".join(packed), [row.fd for row in rows]

    def _forget_dead(self) -> None:
        with suppress(IndexError):  # that was the last one; another thread may be at it too
            while True:
                os.close(self._dead.pop())

    def close(self) -> None:
        for iova in list(self._rows):
            self.remove(iova)
        self._forget_dead()
