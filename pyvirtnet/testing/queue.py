"""What both ring formats share: buffers in flight, batches of used ones, kicks asked for."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .chain import Chain
from .layout import DESCRIPTOR, EVENT_IDX, IN_ORDER
from .memory import Translate
from .violation import Violation

Entry = tuple[int, ...]  # a descriptor's four fields
Done = Sequence[tuple[Chain, int]]  # used buffers, with the bytes written into each
Join = Callable[[], bool]  # whether one more buffer shares a used entry, where IN_ORDER lets it


@dataclass(frozen=True)
class Areas:
    """A queue's size and the addresses of its three parts (4.1.4.3)."""

    size: int
    descriptors: int
    driver: int
    device: int


@dataclass(slots=True)
class Exposed:
    """A buffer in flight, with what its descriptors held when it was exposed."""

    chain: Chain
    entries: list[tuple[int, Entry]] = field(default_factory=list)
    tables: list[tuple[memoryview, bytes]] = field(default_factory=list)


def joins(kind: str, seed: int) -> Join:
    """How a device batches used buffers: "none", "all" that can be, or "random" ones."""
    rng = random.Random(seed)
    kinds: dict[str, Join] = {
        "none": lambda: False,
        "all": lambda: True,
        "random": lambda: rng.random() < 0.5,
    }
    return kinds[kind]


class Virtqueue(ABC):
    """One queue: takes what the driver exposes, checks it, and gives it back.

    ready     buffers fetched and not yet worked on
    taken     buffers worked on and not yet given back
    kick_due  a kick is owed for what `fetch` saw
    """

    suppression: str  # the section on kicks that are not wanted

    def __init__(
        self,
        index: int,
        areas: Areas,
        translate: Translate,
        *,
        features: int,
        start: int = 0,
        join: Join = lambda: False,
    ) -> None:
        self.index, self.size = index, areas.size
        self.ready: deque[Chain] = deque()
        self.taken: list[Chain] = []
        self.kick_due = False
        self._translate, self._features, self._join = translate, features, join
        self._table, self._driver_area, self._device_area = (
            translate(address, length) for _, address, length, _ in self.spans(areas)
        )
        self._seen = self._given = start  # how far the device has got: exposed, used
        self._in_flight: dict[int, Exposed] = {}
        self._until: int | None = 0  # places that may be exposed without a kick; None: any number
        self._set_up(start)

    @abstractmethod
    def _set_up(self, start: int) -> None:
        """Look at the parts as the driver has prepared them."""

    @staticmethod
    @abstractmethod
    def spans(areas: Areas) -> tuple[tuple[str, int, int, int], ...]:
        """(name, address, bytes, alignment) of each part."""

    @property
    @abstractmethod
    def position(self) -> int:
        """What the driver exposes next, as a notification with data says it (2.9)."""

    @abstractmethod
    def fetch(self) -> list[Chain]:
        """Buffers exposed since the last call, each checked."""

    @abstractmethod
    def verify(self, chain: Chain) -> None:
        """The driver has left the buffer's descriptors alone."""

    @abstractmethod
    def _check_own(self) -> None:
        """The driver has not written what only the device writes."""

    @abstractmethod
    def _write_used(self, batches: list[list[tuple[Chain, int]]]) -> bool:
        """Tell the driver; True if it wants an interrupt for it."""

    @abstractmethod
    def _write_wish(self) -> None:
        """Tell the driver when to kick."""

    # What the driver exposes

    def in_flight(self) -> Iterator[Chain]:
        """Every buffer the device has, oldest first."""
        return (exposed.chain for exposed in self._in_flight.values())

    def _saw(self, fresh: int) -> None:
        """So many more places of the ring were exposed."""
        if self._until is not None and fresh > self._until:
            self.kick_due, self._until = True, 0
        elif self._until:
            self._until -= fresh
        self._write_wish()

    def _check_kept(self, exposed: Exposed, entries: Iterable[tuple[int, Entry]]) -> None:
        same = all(bytes(table) == before for table, before in exposed.tables)
        for at, entry in entries:
            same &= DESCRIPTOR.unpack_from(self._table, 16 * (at % self.size)) == entry
        if not same:
            raise Violation(
                "the descriptors of a buffer stay as they were exposed until it is used",
                "2.7.13, 2.8.16, 3.3.1",
                f"{self._at(exposed.chain.position)}, head {exposed.chain.head}",
            )

    def _check_count(self, chain: Chain) -> None:
        elements = len(chain.spans)
        if elements > self.size:
            raise Violation(
                "a chain is no longer than the queue",
                "2.7.5.2, 2.7.5.3.1, 2.8.17",
                f"{self._at(chain.position)}: {elements} elements, size {self.size}",
            )

    # What the device gives back

    def verify_all(self) -> None:
        """`verify` each buffer in flight, and that the driver wrote nothing of the device's."""
        self._check_own()
        for chain in self.in_flight():
            self.verify(chain)

    def put(self, done: Done) -> bool:
        """Give buffers back, in one step, each with the bytes written. True: interrupt.

        ValueError: the device negotiated IN_ORDER and another buffer's turn has come.
        """
        self._check_own()
        if self._features & IN_ORDER:
            for (chain, _), due in zip(done, self.in_flight(), strict=False):
                if chain is not due:
                    raise ValueError("with IN_ORDER, buffers are used in the order they came in")
        for chain, _ in done:
            self.verify(chain)
        return bool(done) and self._write_used(self._batches(done))

    def _batches(self, done: Done) -> list[list[tuple[Chain, int]]]:
        """Buffers that one used entry stands for; those skipped were used whole (2.7.9, 2.8.8)."""
        batches: list[list[tuple[Chain, int]]] = []
        whole = False
        for chain, written in done:
            if whole and self._join():
                batches[-1].append((chain, written))
            else:
                batches.append([(chain, written)])
            whole = bool(self._features & IN_ORDER) and written == chain.writable
        return batches

    # Kicks

    def silence(self, on: bool) -> None:
        """Ask the driver for no kicks, or for kicks again (2.7.10, 2.8.10)."""
        self._until = None if on else 0
        self._write_wish()

    def ask_kick_after(self, places: int) -> None:
        """Ask for one kick once that many more places are exposed, and for every one then."""
        if not self._features & EVENT_IDX:
            raise ValueError("only with EVENT_IDX can a device choose when it is kicked")
        self._until = places - 1
        self._write_wish()

    def kicked(self, strict: bool, data: int | None = None) -> None:
        """The driver kicked, and all it exposed was fetched.

        `strict` holds it to the device's wish not to be kicked; `data` came with NOTIFICATION_DATA.
        """
        if data is not None and data != self.position:
            seen = f"{self._at()}: {data:#x}, not {self.position:#x}"
            rule = "a notification names what is exposed next"
            raise Violation(rule, "2.9, 2.8.16", seen)
        due, self.kick_due = self.kick_due, False
        welcome = self._until is not None and not self._features & EVENT_IDX
        if strict and not due and not welcome:
            seen = f"{self._at()}, next {self.position:#x}"
            raise Violation("no kick where the device asked for none", self.suppression, seen)

    def check_kicked(self) -> None:
        """No kick is owed."""
        if self.kick_due:
            seen = f"{self._at()}, next {self.position:#x}"
            raise Violation("a kick follows where the device asked for one", self.suppression, seen)

    def _at(self, position: int | None = None) -> str:
        return f"queue {self.index}" + ("" if position is None else f", index {position}")
