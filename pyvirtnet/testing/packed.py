"""The device's side of a packed virtqueue (VIRTIO 1.3, 2.8)."""

from __future__ import annotations

from .chain import Chain, reach
from .layout import (
    DESC_AVAIL,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_USED,
    DESC_WRITE,
    DESCRIPTOR,
    EVENT_AT,
    EVENT_DISABLE,
    EVENT_ENABLE,
    EVENT_IDX,
    EVENT_SUPPRESS,
    INDIRECT_DESC,
    U16,
    USED_PART,
)
from .memory import publish
from .queue import Areas, Entry, Exposed, Virtqueue
from .violation import Violation, Where, words

_MARKS = DESC_AVAIL | DESC_USED
_DEFINED = DESC_NEXT | DESC_WRITE | DESC_INDIRECT | _MARKS
_NO_LENGTH = 0x5A5A5A5A  # where nothing was written; drivers ignore it (2.8.4)


class PackedQueue(Virtqueue):
    """One ring of descriptors, and a structure each way that says when to notify.

    A position counts descriptors from where the ring's first lap began, without end: its place
    is the remainder by the size, and the wrap counter (2.8.1) is 1 in even laps, 0 in odd ones.
    """

    suppression = "2.8.10, 2.8.21.2"

    @staticmethod
    def spans(areas: Areas) -> tuple[tuple[str, int, int, int], ...]:
        return (  # 2.8.10.1
            ("descriptor ring", areas.descriptors, 16 * areas.size, 16),
            ("driver event suppression", areas.driver, 4, 4),
            ("device event suppression", areas.device, 4, 4),
        )

    @property
    def position(self) -> int:
        return self._seen % self.size | self._wrap(self._seen) << 15

    def _set_up(self, start: int) -> None:
        """What is not available yet is blank; before a late start it may have been used."""
        # AVAIL and USED of each place as the device last saw or wrote them
        self._marks = [
            U16.unpack_from(self._table, 16 * place + 14)[0] & _MARKS for place in range(self.size)
        ]
        blank = (0, _MARKS) if start else (0,)
        position = start
        while position < start + self.size and self._is_available(position):
            position += 1
        for later in range(position, start + self.size):
            place = later % self.size
            *fields, flags = DESCRIPTOR.unpack_from(self._table, 16 * place)
            if any(fields) or flags not in blank:
                seen = f"{self._at(place)}: {fields}, flags {flags:#x}"
                raise Violation("the descriptor ring starts zeroed", "2.8.13", seen)
        self._write_wish()

    # What the driver exposes

    def fetch(self) -> list[Chain]:
        self._driver_wish()
        first, chains = self._seen, []
        while self._is_available(self._seen):
            chains.append(self._expose())
        self._check_marks(self._seen)
        if chains:
            self._saw(self._seen - first)
        return chains

    def _expose(self) -> Chain:
        start = position = self._seen
        exposed = Exposed(Chain(0, start % self.size))
        while True:
            where = ("queue", self.index, "descriptor", position % self.size)
            if position - self._given >= self.size:
                self._overrun(start)
            if not self._is_available(position):
                rule = "a list's first descriptor is made available last"
                raise Violation(rule, "2.8.17", f"{words(where)}, list at {start % self.size}")
            entry = DESCRIPTOR.unpack_from(self._table, 16 * (position % self.size))
            self._descriptor(exposed, entry, position, where)
            position += 1
            if not entry[3] & DESC_NEXT:
                break
        self._check_count(exposed.chain)
        self._name(exposed, entry[2])
        for at in range(start, position):
            self._marks[at % self.size] = self._available(at)
        self._seen = position
        return exposed.chain

    def _overrun(self, start: int) -> None:
        seen = f"{self._at(start % self.size)}: {self._seen - self._given} descriptors in flight"
        raise Violation("a list is exposed where the ring has room for all of it", "2.8.17", seen)

    def _name(self, exposed: Exposed, name: int) -> None:
        exposed.chain.head = name
        seen = f"{self._at(exposed.chain.position)}: id {name}"
        if name >= self.size:  # back ends index by it
            raise Violation("buffer ids are below the queue size", "2.8.22", seen)
        if name in self._in_flight:
            raise Violation("a buffer id is in use once at a time", "2.8.21.1", seen)
        self._in_flight[name] = exposed

    def _descriptor(self, exposed: Exposed, entry: Entry, position: int, where: Where) -> None:
        address, length, _, flags = entry
        exposed.entries.append((position, entry))
        if flags & ~_DEFINED:
            raise Violation("only defined flags are set", "2.8.13", f"{words(where)}: {flags:#x}")
        if not flags & DESC_INDIRECT:
            write = bool(flags & DESC_WRITE)
            exposed.chain.add(address, length, write, self._translate, where)
            return
        if not self._features & INDIRECT_DESC:
            raise Violation("INDIRECT only where it was negotiated", "2.8.19", words(where))
        if flags & DESC_NEXT or len(exposed.entries) > 1:
            raise Violation("an indirect descriptor stands alone", "2.8.7, 2.8.19", words(where))
        self._walk_table(exposed, address, length, where)

    def _walk_table(self, exposed: Exposed, address: int, length: int, where: Where) -> None:
        if length % 16 or not length:
            seen = f"{words(where)}: {length} bytes"
            raise Violation("an indirect table holds whole descriptors", "2.8.7", seen)
        table = reach(self._translate, address, length, where)
        exposed.tables.append((table, bytes(table)))
        for index, entry in enumerate(DESCRIPTOR.iter_unpack(table)):
            at = (*where, "indirect entry", index)
            address, size, _, flags = entry
            if flags & ~DESC_WRITE:
                seen = f"{words(at)}: {flags:#x}"
                raise Violation("no flag but WRITE in an indirect table", "2.8.19", seen)
            exposed.chain.add(address, size, bool(flags), self._translate, at)

    # Marks: AVAIL and USED, 2.8.1

    def _wrap(self, position: int) -> int:
        return 1 ^ position // self.size & 1

    def _available(self, position: int) -> int:
        return DESC_AVAIL if self._wrap(position) else DESC_USED

    def _marks_at(self, position: int) -> int:
        marks: int = U16.unpack_from(self._table, 16 * (position % self.size) + 14)[0] & _MARKS
        return marks

    def _is_available(self, position: int) -> bool:
        return self._marks_at(position) == self._available(position)

    def _check_marks(self, position: int) -> None:
        """What is not exposed keeps its marks, or has those of a buffer used one lap before, in
        place of one withdrawn before it was exposed: it may not look available one lap later.
        It may be marked already behind one that is not exposed (2.8.20.1), and the next may be
        exposed by another thread just now."""
        marks = self._marks_at(position)
        used_before = 0 if self._wrap(position) else _MARKS
        if marks not in (self._marks[position % self.size], used_before, self._available(position)):
            raise Violation(
                "AVAIL is the wrap counter and USED its inverse, in ring order",
                "2.8.1, 2.8.2",
                f"{self._at(position % self.size)}: {marks:#x}, wrap {self._wrap(position)}",
            )

    # What the device gives back

    def verify(self, chain: Chain) -> None:
        """The driver has left alone what no used descriptor was written over."""
        exposed = self._in_flight[chain.head]
        kept = [entry for entry in exposed.entries if entry[0] >= self._given]
        self._check_kept(exposed, kept)

    def verify_all(self) -> None:
        super().verify_all()
        for position in range(self._seen, self._given + self.size):
            self._check_marks(position)

    def _write_used(self, batches: list[list[tuple[Chain, int]]]) -> bool:
        old = self._given
        used = []
        for batch in batches:
            used.append((self._given, *batch[-1]))
            for chain, _ in batch:
                self._given += len(self._in_flight.pop(chain.head).entries)
        for position, chain, written in reversed(used):  # 2.8.9: the first is marked last
            at = 16 * (position % self.size)
            USED_PART.pack_into(self._table, at + 8, written or _NO_LENGTH, chain.head)
            marks = _MARKS if self._wrap(position) else 0
            flags = U16.pack(marks | (DESC_WRITE if written else 0))
            publish(self._table, at + 14, flags)
            self._marks[position % self.size] = marks
        return self._wants_interrupt(old)

    def _check_own(self) -> None:
        found = EVENT_SUPPRESS.unpack(self._device_area)
        if found != self._wish():
            raise Violation(
                "only the device writes the device event suppression structure",
                "2.8",
                f"{self._at()}: {found}, the device wrote {self._wish()}",
            )

    # Notifications, both ways

    def _wants_interrupt(self, old: int) -> bool:
        place, flags = self._driver_wish()
        if flags != EVENT_AT:
            return flags == EVENT_ENABLE
        lap = 0 if place >> 15 else self.size
        return ((place & 0x7FFF) + lap - old) % (2 * self.size) < self._given - old

    def _driver_wish(self) -> tuple[int, int]:
        place, flags = EVENT_SUPPRESS.unpack(self._driver_area)
        most = EVENT_AT if self._features & EVENT_IDX else EVENT_DISABLE
        if flags > most:
            seen = f"{self._at()}: flags {flags:#x}"
            raise Violation(f"event flags are at most {most}", "2.8.10, 2.8.14", seen)
        if flags == EVENT_AT and place & 0x7FFF >= self.size:
            seen = f"{self._at()}: offset {place & 0x7FFF}"
            raise Violation("an event's offset lies in the ring", "2.8.10", seen)
        return place, flags

    def _wish(self) -> tuple[int, int]:
        if self._until is None:
            return 0, EVENT_DISABLE
        if not self._features & EVENT_IDX:
            return 0, EVENT_ENABLE
        position = self._seen + self._until
        return position % self.size | self._wrap(position) << 15, EVENT_AT

    def _write_wish(self) -> None:
        publish(self._device_area, 0, EVENT_SUPPRESS.pack(*self._wish()))
