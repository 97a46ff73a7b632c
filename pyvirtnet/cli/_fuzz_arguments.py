"""What a careless caller has at hand, and what it makes its arguments of."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from .._burst import Frame, RxBurst, TxBurst
from ._fuzz_evil import BAD_KEYS, NOT_FRAMES, NUMBERS, EvilArray, EvilIndex, EvilItems

KEPT = 48  # things held at once
SIZES = (0, 13, 14, 60, 64, 127, 128, 129, 1514, 4083, 4084, 4085, 9014, 65535, 65536)


class Arguments:
    """Arguments that follow from `random`, good ones and others.

    kept  bursts, frames, arrays and memoryviews that are held
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.kept: list[Any] = []

    def from_within(self) -> None:
        """Called by arguments while somebody looks at them."""
        raise NotImplementedError

    def keep(self, *things: Any) -> None:
        for thing in things:
            if len(self.kept) < KEPT:
                self.kept.append(thing)
            else:
                self.kept[self.random.randrange(KEPT)] = thing

    def any_of(self, *kinds: type) -> Any:
        """Something that is held, of one of these kinds if there is any; may be None."""
        things = [thing for thing in list(self.kept) if isinstance(thing, kinds)]
        return self.random.choice(things) if things else None

    def _number(self) -> Any:
        return self.random.choice(NUMBERS) if self.random.random() < 0.7 else EvilIndex(self)

    def _key(self, count: int) -> Any:
        kind = self.random.randrange(8)
        if kind == 0:
            return self.random.randrange(-count - 1, count + 1)
        if kind < 4:
            ends = (*range(-count - 2, count + 3, max(1, count // 4)), None, 1 << 70)
            steps = (None, 1, -1, 2, -3, 1 << 62, -1 << 62, 1)
            return slice(*(self.random.choice(part) for part in (ends, ends, steps)))
        if kind == 4:
            return np.array([self.random.random() < 0.5 for _ in range(count)], bool)
        if kind < 7 and count:
            return [self.random.randrange(-count, count) for _ in range(self.random.randrange(9))]
        return self.random.choice((*BAD_KEYS, EvilArray(self), EvilIndex(self)))

    def _frames(self) -> Any:
        kind = self.random.randrange(10)
        if kind < 4 and (burst := self.any_of(RxBurst, TxBurst)) is not None:
            return burst
        if kind == 4:
            return self.random.choice(NOT_FRAMES)
        items = [self._item() for _ in range(self.random.choice((1, 3, 8, 40)))]
        if kind < 7:
            return items
        if kind == 7:
            return iter(items)
        return EvilItems(self, items)

    def _item(self) -> Any:
        data = bytes(self.random.choice((60, 128, 300)))
        burst = self.any_of(RxBurst, TxBurst)
        return self.random.choice(
            (
                data,
                bytearray(data),
                bytes(self.random.choice(SIZES)),
                (data, memoryview(data)[::-1], [data[:5]]),
                self.any_of(Frame) or data,
                self.any_of(np.ndarray, memoryview) if self.random.random() < 0.2 else data,
                burst[self.random.randrange(len(burst))] if burst else data,
                self.random.choice(NOT_FRAMES) if self.random.random() < 0.02 else data,
            )
        )
