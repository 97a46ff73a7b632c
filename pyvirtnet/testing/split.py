"""The device's side of a split virtqueue (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

from .chain import Chain, reach
from .layout import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    DESCRIPTOR,
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    NO_INTERRUPT,
    NO_NOTIFY,
    U16,
    USED_ELEMENT,
)
from .memory import publish
from .queue import Areas, Entry, Exposed, Virtqueue
from .violation import Violation, Where, words


class SplitQueue(Virtqueue):
    """A descriptor table, an available ring and a used ring; indices run modulo 65536."""

    suppression = "2.7.10.1"

    @staticmethod
    def spans(areas: Areas) -> tuple[tuple[str, int, int, int], ...]:
        return (  # 2.7
            ("descriptor table", areas.descriptors, 16 * areas.size, 16),
            ("available ring", areas.driver, 6 + 2 * areas.size, 2),
            ("used ring", areas.device, 6 + 8 * areas.size, 4),
        )

    @property
    def position(self) -> int:
        return self._seen

    def _set_up(self, start: int) -> None:
        self._avail, self._used = self._driver_area, self._device_area
        self._owner: dict[int, int] = {}  # descriptor in flight -> head of its chain
        # With IN_ORDER the table is used in order, from its first descriptor on (2.7.5).
        self._due = None if start or not self._features & IN_ORDER else 0
        blank = bytearray(self._used.nbytes)
        U16.pack_into(blank, 2, start)
        if bytes(self._used) != blank:
            seen = f"{self._at()}: {bytes(self._used[:16]).hex()}…"
            rule = f"the used ring starts zeroed, its index at {start:#x}"
            raise Violation(rule, "2.7.8, 4.1.5.1.3", seen)
        self._write_wish()

    # What the driver exposes

    def fetch(self) -> list[Chain]:
        index = self._index_of(self._avail)
        fresh = (index - self._seen) & 0xFFFF
        self._check_avail_flags()
        if not fresh:
            return []
        if len(self._in_flight) + fresh > self.size:
            raise Violation(
                "the available index never goes back, nor exposes more than the queue holds",
                "2.7.6.1",
                f"{self._at()}: index from {self._seen} to {index}, "
                f"{len(self._in_flight)} in flight",
            )
        chains = []
        while self._seen != index:
            chains.append(self._expose(self._seen))
            self._seen = (self._seen + 1) & 0xFFFF
        self._saw(fresh)
        return chains

    def _expose(self, position: int) -> Chain:
        (head,) = U16.unpack_from(self._avail, 4 + 2 * (position % self.size))
        if head in self._in_flight:
            raise Violation(
                "a buffer is exposed once until it is used",
                "2.7.13",
                f"{self._at(position)}: head {head} is in flight",
            )
        exposed = Exposed(Chain(head, position))
        self._walk(exposed)
        self._check_count(exposed.chain)
        self._in_flight[head] = exposed
        return exposed.chain

    def _walk(self, exposed: Exposed) -> None:
        chain = exposed.chain
        index = chain.head
        while True:
            where = ("queue", self.index, "index", chain.position, "descriptor", index)
            if index >= self.size:
                seen = words(where)
                raise Violation("descriptor numbers are below the queue size", "2.7.5", seen)
            self._own(index, chain.head, where)
            entry = DESCRIPTOR.unpack_from(self._table, 16 * index)
            exposed.entries.append((index, entry))
            flags = entry[2]
            if flags & DESC_INDIRECT:
                self._walk_table(exposed, entry, where)
            else:
                self._element(chain, entry, where)
            if not flags & DESC_NEXT:
                return
            index = entry[3]

    def _own(self, index: int, head: int, where: Where) -> None:
        other = self._owner.get(index)
        if other == head:
            raise Violation("a chain has no loop", "2.7.5.2", f"{words(where)} comes twice")
        if other is not None:
            seen = f"{words(where)} is in the chain of head {other}"
            raise Violation("a descriptor in flight belongs to one buffer", "2.7.13", seen)
        self._owner[index] = head
        if not self._features & IN_ORDER:
            return
        if self._due not in (None, index):
            seen = f"{words(where)}, not {self._due}"
            raise Violation("with IN_ORDER descriptors are taken in order", "2.7.5, 2.7.5.2", seen)
        self._due = (index + 1) % self.size

    def _walk_table(self, exposed: Exposed, indirect: Entry, where: Where) -> None:
        address, length, flags, _ = indirect
        if not self._features & INDIRECT_DESC:
            raise Violation("INDIRECT only where it was negotiated", "2.7.5.3.1", words(where))
        if flags & DESC_NEXT:
            raise Violation("INDIRECT and NEXT are not set together", "2.7.5.3.1", words(where))
        if length % 16 or not length:
            seen = f"{words(where)}: {length} bytes"
            raise Violation("an indirect table holds whole descriptors", "2.7.5.3", seen)
        table = reach(self._translate, address, length, where)
        exposed.tables.append((table, bytes(table)))
        visited: set[int] = set()
        index = 0
        while True:
            at = (*where, "indirect entry", index)
            if index >= length // 16:
                raise Violation("indirect entries lie in their table", "2.7.5.3", words(at))
            if index in visited:
                raise Violation("a chain has no loop", "2.7.5.2", words(at))
            visited.add(index)
            entry = DESCRIPTOR.unpack_from(table, 16 * index)
            if entry[2] & DESC_INDIRECT:
                raise Violation("an indirect table has no INDIRECT in it", "2.7.5.3.1", words(at))
            self._element(exposed.chain, entry, at)
            if not entry[2] & DESC_NEXT:
                return
            if self._features & IN_ORDER and entry[3] != index + 1:
                raise Violation("with IN_ORDER a table is in order", "2.7.5.3.1", words(at))
            index = entry[3]

    def _element(self, chain: Chain, entry: Entry, where: Where) -> None:
        address, length, flags, _ = entry
        if flags & ~(DESC_NEXT | DESC_WRITE | DESC_INDIRECT):
            raise Violation("only defined flags are set", "2.7.5", f"{words(where)}: {flags:#x}")
        chain.add(address, length, bool(flags & DESC_WRITE), self._translate, where)

    # What the device gives back

    def verify(self, chain: Chain) -> None:
        """The driver has left the buffer's descriptors and its available entry alone."""
        exposed = self._in_flight[chain.head]
        self._check_kept(exposed, exposed.entries)
        # Once a later buffer was used, the slot may already serve the next one exposed.
        if (self._seen - chain.position) & 0xFFFF > len(self._in_flight):
            return
        (head,) = U16.unpack_from(self._avail, 4 + 2 * (chain.position % self.size))
        if head != chain.head:
            raise Violation(
                "an available entry stays as it was exposed until its buffer is used",
                "2.7.13, 3.3.1",
                f"{self._at(chain.position)}: head {chain.head} became {head}",
            )

    def _write_used(self, batches: list[list[tuple[Chain, int]]]) -> bool:
        old = self._given
        for batch in batches:
            chain, written = batch[-1]
            slot = 4 + 8 * (self._given % self.size)
            USED_ELEMENT.pack_into(self._used, slot, chain.head, written)
            self._given = (self._given + len(batch)) & 0xFFFF
            for chain, _ in batch:
                for at, _ in self._in_flight.pop(chain.head).entries:
                    del self._owner[at]
        publish(self._used, 2, U16.pack(self._given))
        return self._wants_interrupt(old)

    def _check_own(self) -> None:
        own = dict([(0, 0), (2, self._given), self._wish()])
        found = {at: U16.unpack_from(self._used, at)[0] for at in own}
        if found != own:
            raise Violation(
                "only the device writes the used ring",
                "2.7.8",
                f"{self._at()}: {found} by offset, the device wrote {own}",
            )

    # Notifications, both ways

    def _wants_interrupt(self, old: int) -> bool:
        if self._features & EVENT_IDX:  # 2.7.7.2
            event: int = U16.unpack_from(self._avail, 4 + 2 * self.size)[0]
            return (self._given - event - 1) & 0xFFFF < (self._given - old) & 0xFFFF
        flags: int = U16.unpack_from(self._avail, 0)[0]
        return not flags & NO_INTERRUPT

    def _check_avail_flags(self) -> None:
        (flags,) = U16.unpack_from(self._avail, 0)
        most = 0 if self._features & EVENT_IDX else NO_INTERRUPT
        if flags > most:
            seen = f"{self._at()}: flags {flags:#x}"
            raise Violation(f"avail.flags is at most {most}", "2.7.7.1", seen)

    def _wish(self) -> tuple[int, int]:
        """Where in the used ring the device says which kicks it wants, and what (2.7.10)."""
        if not self._features & EVENT_IDX:
            return 0, NO_NOTIFY if self._until is None else 0
        ahead = -1 if self._until is None else self._until  # one place behind is never crossed
        return 4 + 8 * self.size, (self._seen + ahead) & 0xFFFF

    def _write_wish(self) -> None:
        at, wish = self._wish()
        publish(self._used, at, U16.pack(wish))

    # Helpers

    def _index_of(self, ring: memoryview) -> int:
        index: int = U16.unpack_from(ring, 2)[0]
        return index
