"""The control queue as a packed virtqueue (VIRTIO 1.3, 2.8)."""

from __future__ import annotations

from struct import Struct

from .._words import load, store
from ..transport.base import QueueAddresses
from .queue import DESC_NEXT, DESC_WRITE, DESCRIPTOR, ControlQueue

_USED_PART = Struct("<IH")  # length, id
_AVAIL, _USED = 1 << 7, 1 << 15  # 2.8.1
_DISABLE, _AT_EVENT = 1, 2  # 2.8.10
_DRIVER_AT, _DEVICE_AT = 2048, 2064  # event suppression, in the first page
_ID = 0  # of the one buffer that is ever in flight


class PackedControlQueue(ControlQueue):
    """Two descriptors a command. Positions count them from the ring's first lap on."""

    def _lay_out(self, start: int) -> None:
        self._next = self._used = start
        parts = (self._iova, self._iova + _DRIVER_AT, self._iova + _DEVICE_AT)
        self.addresses = QueueAddresses(self.size, *parts)
        store(self._memory, _DRIVER_AT + 2, _DISABLE)
        for position in range(start - self.size, start):  # as if all had gone round before
            self._mark(position, self._used_marks(position))

    @property
    def _outstanding(self) -> bool:
        return self._next != self._used

    @property
    def _position(self) -> int:
        return self._next % self.size | self._wrap(self._next) << 15

    def _wrap(self, position: int) -> int:
        return 1 ^ position // self.size & 1

    def _used_marks(self, position: int) -> int:
        return _AVAIL | _USED if self._wrap(position) else 0

    def _marks(self, position: int) -> int:
        return load(self._memory, 16 * (position % self.size) + 14) & (_AVAIL | _USED)

    def _mark(self, position: int, flags: int) -> None:
        store(self._memory, 16 * (position % self.size) + 14, flags)

    def _available(self, position: int) -> int:
        return _AVAIL if self._wrap(position) else _USED

    def _expose(self, command: int, room: int) -> None:
        first, second = self._next, self._next + 1
        for position, iova, length in (
            (first, self._iova + self._command_at, command),
            (second, self._iova + self._answer_at, room),
        ):  # with the marks they have: not available yet
            at, marks = 16 * (position % self.size), self._marks(position)
            DESCRIPTOR.pack_into(self._memory, at, iova, length, _ID, marks)
        self._mark(second, DESC_WRITE | self._available(second))
        self._next += 2

    def _publish(self) -> bool:
        first = self._next - 2
        if bool(self._marks(first) & _AVAIL) != self._wrap(first):  # AVAIL of the lap before
            # The first descriptor last: it makes the list available, all of it (2.8.17)
            self._mark(first, DESC_NEXT | self._available(first))
        flags = load(self._memory, _DEVICE_AT + 2) & 3
        if flags != _AT_EVENT or not self._event_idx:
            return flags != _DISABLE
        event = load(self._memory, _DEVICE_AT)
        lap = 0 if event >> 15 == self._wrap(first) else self.size
        return (event & 0x7FFF) + lap - first % self.size in (0, 1)

    def _answered(self, deed: str) -> bool:
        return self._marks(self._used) == self._used_marks(self._used)

    def _take(self, deed: str) -> int:
        at = 16 * (self._used % self.size) + 8
        length, name = _USED_PART.unpack_from(self._memory, at)
        if name != _ID:
            raise self._lie(deed, f"it answered buffer {name}, and was given buffer {_ID}")
        self._used = self._next
        return int(length)
