"""The control queue as a split virtqueue (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

from struct import Struct

from .._ring import ring_parts
from .._words import load, store
from ..transport.base import QueueAddresses
from .queue import DESC_NEXT, DESC_WRITE, DESCRIPTOR, ControlQueue

_USED_ELEMENT = Struct("<II")
_NO_INTERRUPT = _NO_NOTIFY = 1  # 2.7.7, 2.7.10


class SplitControlQueue(ControlQueue):
    """Descriptors are taken in ring order, two a command, as IN_ORDER asks (2.7.13.1)."""

    def _lay_out(self, start: int) -> None:
        self._next = self._used = start  # as many were exposed and used
        parts = ring_parts(self.size, alignment=self._alignment)
        _, self._avail_at, self._used_at = parts
        self.addresses = QueueAddresses(self.size, *(self._iova + part for part in parts))
        store(self._memory, self._avail_at + 2, start)
        store(self._memory, self._used_at + 2, start)
        if not self._event_idx:
            store(self._memory, self._avail_at, _NO_INTERRUPT)

    @property
    def _outstanding(self) -> bool:
        return self._next != self._used

    @property
    def _position(self) -> int:
        return self._next

    @property
    def _head(self) -> int:
        """The first descriptor of the next command."""
        return 2 * self._next % (self.size & ~1)

    def _expose(self, command: int, room: int) -> None:
        head = self._head
        DESCRIPTOR.pack_into(
            self._memory, 16 * head, self._iova + self._command_at, command, DESC_NEXT, head + 1
        )
        DESCRIPTOR.pack_into(
            self._memory, 16 * (head + 1), self._iova + self._answer_at, room, DESC_WRITE, 0
        )
        store(self._memory, self._avail_at + 4 + 2 * (self._next % self.size), head)
        if self._event_idx:  # one behind is never crossed: no interrupt (2.7.7.1)
            store(self._memory, self._avail_at + 4 + 2 * self.size, self._used - 1 & 0xFFFF)
        self._next = self._next + 1 & 0xFFFF

    def _publish(self) -> bool:
        store(self._memory, self._avail_at + 2, self._next)
        if self._event_idx:  # 2.7.10.1
            event = load(self._memory, self._used_at + 4 + 8 * self.size)
            return event == self._next - 1 & 0xFFFF
        return not load(self._memory, self._used_at) & _NO_NOTIFY

    def _answered(self, deed: str) -> bool:
        used = load(self._memory, self._used_at + 2) - self._used & 0xFFFF
        if used > 1:
            raise self._lie(deed, f"it claims to have used {used} commands, and it was given one")
        return used == 1

    def _take(self, deed: str) -> int:
        at = self._used_at + 4 + 8 * (self._used % self.size)
        name, length = _USED_ELEMENT.unpack_from(self._memory, at)
        given = 2 * self._used % (self.size & ~1)
        if name != given:
            raise self._lie(deed, f"it answered buffer {name}, and was given buffer {given}")
        self._used = self._next
        return int(length)
