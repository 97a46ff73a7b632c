"""What a hostile device does to rings and memory: each misdeed a method, with a weight."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from .chain import Chain
from .forge import Forge, forge_of
from .layout import IN_ORDER, NET_HEADER
from .net import NetDevice
from .queue import Virtqueue
from .rules import HEADER
from .violation import Violation

MISDEEDS: dict[str, int] = {}  # name of the method: its weight among all
_SOME = 100  # bytes of the frames that come with a lie
_F = TypeVar("_F", bound=Callable[..., str | None])
_G = TypeVar("_G", bound=Callable[..., None])


class NoOccasion(Exception):
    """This misdeed cannot be committed now."""


def forgiving(method: _G) -> _G:
    """A call of the driver: what the device itself made wrong is not the driver's violation."""

    @wraps(method)
    def call(self: RingMisdeeds, *args: Any, **options: Any) -> None:
        try:
            method(self, *args, **options)
        except Violation:
            if not self.tainted:
                raise

    return cast(_G, call)


def misdeed(weight: int) -> Callable[[_F], _F]:
    """A method that misbehaves once; what it did in words, None if there was no occasion."""

    def register(method: _F) -> _F:
        MISDEEDS[method.__name__] = weight
        return method

    return register


class RingMisdeeds(NetDevice):
    """Lies about what was used, and writes where and when no device may.

    rng      chooses where and what
    tainted  rings or memory are no longer what the driver made them: nothing is its fault
    """

    rng: random.Random
    tainted = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._returned: deque[memoryview] = deque(maxlen=64)  # buffers that the driver had back

    def note(self, violation: Violation) -> None:
        if not self.tainted:
            super().note(violation)

    def reset(self) -> None:
        super().reset()
        self.tainted = False

    kick = forgiving(NetDevice.kick)
    notify = forgiving(NetDevice.notify)
    accept_features = forgiving(NetDevice.accept_features)
    configure_queue = forgiving(NetDevice.configure_queue)
    enable = forgiving(NetDevice.enable)

    # Helpers

    def _forge(self, index: int | None = None) -> Forge:
        """A queue's memory, any one's if not told; from now on the driver is not to blame."""
        index = self.rng.choice(sorted(self.queues)) if index is None else index
        queue = self.queues[index]
        self.look(queue)
        self.tainted = True
        return forge_of(queue)

    def _receive(self) -> Forge:
        return self._forge(2 * self.rng.randrange(len(self.queues) // 2))

    def _transmit(self) -> Forge:
        return self._forge(2 * self.rng.randrange(len(self.queues) // 2) + 1)

    def _fill(self, chain: Chain, buffers: int = 1) -> tuple[int, int]:
        """A receive buffer with a frame in it; the used element that would be honest."""
        size = min(self.rng.choice([60, _SOME, 1514, 4000]), max(0, chain.capacity - HEADER))
        header = NET_HEADER.pack(0, 0, 0, 0, 0, 0, buffers)
        chain.scatter(header + self.rng.randbytes(size))
        return chain.head, HEADER + size

    def _next(self, forge: Forge, buffers: int = 1) -> tuple[int, int] | None:
        """An honest used element of the next buffer, if there is one."""
        queue = forge.queue
        if not queue.ready:
            return None
        chain = queue.ready.popleft()
        return (chain.head, 0) if queue.index % 2 else self._fill(chain, buffers)

    def _give_back(self, queue: Virtqueue, done: list[tuple[Chain, int]]) -> None:
        super()._give_back(queue, done)
        self._returned.extend(view for chain, _ in done for view in chain.views)

    # Used elements

    @misdeed(4)
    def id_outside_the_ring(self) -> str:
        forge = self._forge()
        size = forge.queue.size
        wrong = self.rng.choice([size, size + 1, 0xFFFF, 0x10000, 0x80000000, 0xFFFFFFFF])
        forge.use((wrong, HEADER + _SOME))
        return f"queue {forge.queue.index}: {wrong:#x}"

    @misdeed(4)
    def id_not_in_flight(self) -> str | None:
        for index in self.rng.sample(sorted(self.queues), len(self.queues)):
            forge = self._forge(index)
            _, free = forge.not_heads()
            if free:
                wrong = self.rng.choice(free)
                forge.use((wrong, HEADER + _SOME))
                return f"queue {index}: {wrong}"
        return None

    @misdeed(2)
    def id_inside_a_chain(self) -> str | None:
        forge = self._transmit()
        inside, _ = forge.not_heads()
        if not inside:
            return None
        wrong = self.rng.choice(inside)
        forge.use((wrong, 0))
        return f"queue {forge.queue.index}: {wrong}"

    @misdeed(4)
    def id_twice(self) -> str | None:
        forge = self._forge()
        element = self._next(forge)
        if element is None:
            return None
        forge.use(element, element)
        return f"queue {forge.queue.index}: {element}"

    @misdeed(4)
    def length_over_the_buffer(self) -> str | None:
        return self._wrong_length([4097, 0x10000, 0x80000048, 0xFFFFFFFF])

    @misdeed(4)
    def length_under_the_header(self) -> str | None:
        return self._wrong_length([0, 1, HEADER - 1])

    def _wrong_length(self, lengths: list[int]) -> str | None:
        forge = self._receive()
        element = self._next(forge)
        if element is None:
            return None
        wrong = element[0], self.rng.choice(lengths)
        forge.use(wrong)
        return f"queue {forge.queue.index}: {wrong}"

    @misdeed(4)
    def wrong_number_of_buffers(self) -> str | None:
        forge = self._receive()
        count = self.rng.choice([0, 2, 3, forge.queue.size, 0xFFFF])
        element = self._next(forge, count)
        if element is None:
            return None
        forge.use(element)
        return f"queue {forge.queue.index}: a frame of {count} buffers in one"

    @misdeed(4)
    def elements_not_written(self) -> str:
        """The index says that buffers were used; the elements are old ones."""
        forge = self._forge()
        count = self.rng.randint(1, max(1, len(forge.in_flight())))
        forge.use(advance=count)
        return f"queue {forge.queue.index}: {count}"

    @misdeed(4)
    def index_out_of_reach(self) -> str:
        forge = self._forge()
        jump = self.rng.choice(forge.jumps)
        forge.use(advance=jump)
        return f"queue {forge.queue.index}: {jump:#x} ahead"

    @misdeed(4)
    def id_before_its_turn(self) -> str | None:
        """A buffer that others are due before, by a device that promised to keep order."""
        if not self.accepted & IN_ORDER:
            raise NoOccasion("no order was promised")
        forge = self._forge()
        later = forge.in_flight()[1:]
        if not later:
            return None
        chain = self.rng.choice(later)
        element = (chain.head, 0) if forge.queue.index % 2 else self._fill(chain)
        forge.use(element)
        return f"queue {forge.queue.index}: {element}"

    # Memory

    @misdeed(2)
    def rewrite_descriptors(self) -> str:
        forge = self._forge()
        return f"queue {forge.queue.index}: {forge.rewrite_descriptors(self.rng)}"

    @misdeed(2)
    def rewrite_and_use(self) -> str | None:
        """All descriptors and the available ring become noise; then a buffer is used all the same.

        A driver that reads them back goes where they lead.
        """
        forge = self._forge()
        chains = forge.in_flight()
        if not chains:
            return None
        chain = self.rng.choice(chains)
        element = (chain.head, 0) if forge.queue.index % 2 else self._fill(chain)
        for _ in range(forge.queue.size):
            forge.rewrite_descriptors(self.rng)
            forge.rewrite_available(self.rng)
        forge.use(element)
        return f"queue {forge.queue.index}: {element}"

    @misdeed(2)
    def rewrite_available(self) -> str:
        forge = self._forge()
        return f"queue {forge.queue.index}: {forge.rewrite_available(self.rng)}"

    @misdeed(2)
    def rewrite_used(self) -> str:
        forge = self._forge()
        return f"queue {forge.queue.index}: {forge.rewrite_used(self.rng)}"

    @misdeed(2)
    def write_buffers_in_flight(self) -> str:
        """Those posted for receiving, before they are used; those to be sent, at all."""
        forge = self._forge()
        views = [view for chain in forge.in_flight() for view in chain.views]
        return f"queue {forge.queue.index}: {self._scribble(views)}"

    @misdeed(2)
    def write_buffers_given_back(self) -> str | None:
        self.tainted = True
        return self._scribble(list(self._returned)) if self._returned else None

    def _scribble(self, views: list[memoryview]) -> str:
        picked = self.rng.sample(views, min(len(views), 4))
        for view in picked:
            view[:] = self.rng.randbytes(view.nbytes)
        return f"{len(picked)} buffers overwritten"

    @misdeed(4)
    def header_past_the_frame(self) -> str | None:
        """Offloads that nobody asked for, at places that the frame does not have."""
        header = self.rng.randbytes(HEADER - 2)
        frame = self.rng.randbytes(_SOME)
        return f"header {header.hex()}" if self.deliver(frame, header=header) else None

    # Notifications

    @misdeed(2)
    def needless_interrupts(self) -> str:
        indices = [self.rng.choice([None, *sorted(self.queues)]) for _ in range(8)]
        for index in indices:
            self.raise_interrupt(index)
        return f"{indices}"

    @misdeed(2)
    def declined_kicks(self) -> str:
        """Legal, and odd: the driver is told not to kick, or to kick again."""
        index = self.rng.choice(sorted(self.queues))
        on = self.rng.random() < 0.5
        self.silence(index, on)
        return f"queue {index}: {'no more' if on else 'again'}"
