"""The device's side of a split virtqueue (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .chain import Chain, reach
from .layout import (
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    DESCRIPTOR,
    EVENT_IDX,
    INDIRECT_DESC,
    NO_INTERRUPT,
    NO_NOTIFY,
    U16,
    USED_ELEMENT,
)
from .memory import Translate
from .violation import Violation, Where, words

_Entry = tuple[int, ...]  # a descriptor: address, length, flags, next


@dataclass(frozen=True)
class Areas:
    """A queue's size and the addresses of its three parts (4.1.4.3)."""

    size: int
    descriptors: int
    driver: int
    device: int

    def spans(self) -> tuple[tuple[str, int, int, int], ...]:
        """(name, address, bytes, alignment) of each part, 2.7."""
        return (
            ("descriptor table", self.descriptors, 16 * self.size, 16),
            ("available ring", self.driver, 6 + 2 * self.size, 2),
            ("used ring", self.device, 6 + 8 * self.size, 4),
        )


@dataclass(slots=True)
class _Exposed:
    """A buffer in flight, with what its descriptors held when it was exposed."""

    chain: Chain
    entries: list[tuple[int, _Entry]] = field(default_factory=list)
    tables: list[tuple[memoryview, bytes]] = field(default_factory=list)


class SplitQueue:
    """One queue: takes what the driver exposes, checks it, and gives it back.

    ready     buffers fetched and not yet worked on
    taken     buffers worked on and not yet given back
    kick_due  a kick is owed for what `fetch` saw
    """

    def __init__(
        self, index: int, areas: Areas, translate: Translate, features: int, start: int
    ) -> None:
        self.index, self.size = index, areas.size
        self.ready: deque[Chain] = deque()
        self.taken: list[Chain] = []
        self._translate, self._features = translate, features
        self._table, self._avail, self._used = (
            translate(address, length) for _, address, length, _ in areas.spans()
        )
        self._seen = self._given = start  # avail and used index, as far as the device has got
        self._in_flight: dict[int, _Exposed] = {}
        self._owner: dict[int, int] = {}  # descriptor in flight -> head of its chain
        self._silent = self.kick_due = False
        self._set_up(start)

    def _set_up(self, start: int) -> None:
        blank = bytearray(self._used.nbytes)
        U16.pack_into(blank, 2, start)
        if bytes(self._used) != blank:
            seen = f"{self._at()}: {bytes(self._used[:16]).hex()}…"
            rule = f"the used ring starts zeroed, its index at {start:#x}"
            raise Violation(rule, "2.7.8, 4.1.5.1.3", seen)
        self._ask_for_kicks()

    # What the driver exposes

    def fetch(self) -> list[Chain]:
        """Buffers exposed since the last call, each checked."""
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
        self.kick_due |= not self._silent  # with EVENT_IDX too: avail_event is always renewed
        chains = []
        while self._seen != index:
            chains.append(self._expose(self._seen))
            self._seen = (self._seen + 1) & 0xFFFF
        self._ask_for_kicks()
        return chains

    def _expose(self, position: int) -> Chain:
        (head,) = U16.unpack_from(self._avail, 4 + 2 * (position % self.size))
        if head in self._in_flight:
            raise Violation(
                "a buffer is exposed once until it is used",
                "2.7.13",
                f"{self._at(position)}: head {head} is in flight",
            )
        exposed = _Exposed(Chain(head, position))
        self._walk(exposed)
        elements = len(exposed.chain.spans)
        if elements > self.size:
            raise Violation(
                "a chain is no longer than the queue",
                "2.7.5.2, 2.7.5.3.1",
                f"{self._at(position)}: {elements} elements, size {self.size}",
            )
        self._in_flight[head] = exposed
        return exposed.chain

    def _walk(self, exposed: _Exposed) -> None:
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

    def _walk_table(self, exposed: _Exposed, indirect: _Entry, where: Where) -> None:
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
            index = entry[3]

    def _element(self, chain: Chain, entry: _Entry, where: Where) -> None:
        address, length, flags, _ = entry
        if flags & ~(DESC_NEXT | DESC_WRITE | DESC_INDIRECT):
            raise Violation("only defined flags are set", "2.7.5", f"{words(where)}: {flags:#x}")
        chain.add(address, length, bool(flags & DESC_WRITE), self._translate, where)

    # What the device gives back

    def verify(self, chain: Chain) -> None:
        """The driver has left the buffer's descriptors and its available entry alone."""
        exposed = self._in_flight[chain.head]
        same = all(bytes(table) == before for table, before in exposed.tables)
        for at, entry in exposed.entries:
            same &= DESCRIPTOR.unpack_from(self._table, 16 * at) == entry
        if not same:
            raise Violation(
                "the descriptors of a buffer stay as they were exposed until it is used",
                "2.7.13, 3.3.1",
                f"{self._at(chain.position)}, head {chain.head}",
            )
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

    def verify_all(self) -> None:
        """`verify` each buffer in flight, and that the driver never wrote the used ring."""
        self._check_used()
        for exposed in self._in_flight.values():
            self.verify(exposed.chain)

    def put(self, done: Sequence[tuple[Chain, int]]) -> bool:
        """Give buffers back, in one step, each with the bytes written. True: interrupt."""
        self._check_used()
        old = self._given
        for chain, _ in done:
            self.verify(chain)
        for chain, written in done:
            slot = 4 + 8 * (self._given % self.size)
            USED_ELEMENT.pack_into(self._used, slot, chain.head, written)
            self._given = (self._given + 1) & 0xFFFF
            for at, _ in self._in_flight.pop(chain.head).entries:
                del self._owner[at]
        U16.pack_into(self._used, 2, self._given)
        return bool(done) and self._wants_interrupt(old)

    def _check_used(self) -> None:
        flags = NO_NOTIFY if self._silent and not self._features & EVENT_IDX else 0
        found = U16.unpack_from(self._used, 0)[0], self._index_of(self._used)
        if found != (flags, self._given):
            raise Violation(
                "only the device writes the used ring",
                "2.7.8",
                f"{self._at()}: flags and index {found}, the device wrote {(flags, self._given)}",
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

    def silence(self, on: bool) -> None:
        """Ask the driver for no kicks, or for kicks again (2.7.10)."""
        self._silent = on
        if not self._features & EVENT_IDX:
            U16.pack_into(self._used, 0, NO_NOTIFY if on else 0)
        self._ask_for_kicks()

    def _ask_for_kicks(self) -> None:
        if self._features & EVENT_IDX:  # 2.7.10: one place behind is never crossed
            event = (self._seen - self._silent) & 0xFFFF
            U16.pack_into(self._used, 4 + 8 * self.size, event)

    def kicked(self, strict: bool) -> None:
        """The driver kicked; `strict` holds it to the device's wish not to be."""
        index = self._index_of(self._avail)
        news = index != self._seen or not self._features & EVENT_IDX
        if strict and not self.kick_due and (self._silent or not news):
            seen = f"{self._at(index)}"
            raise Violation("no kick where the device asked for none", "2.7.10.1", seen)

    # Helpers

    def _index_of(self, ring: memoryview) -> int:
        index: int = U16.unpack_from(ring, 2)[0]
        return index

    def _at(self, position: int | None = None) -> str:
        return f"queue {self.index}" + ("" if position is None else f", index {position}")
