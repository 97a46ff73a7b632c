"""HostileDevice: a network device that misbehaves from a seed, for tests of the driver."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .layout import IN_ORDER, MRG_RXBUF
from .misdeeds import MISDEEDS, NoOccasion, RingMisdeeds
from .register_misdeeds import RegisterMisdeeds
from .rules import HEADER
from .violation import Violation

_SIZES = (14, 60, 60, 60, 128, 129, 1514, 4084, 4085, 9014)  # of the frames it delivers


class HostileDevice(RegisterMisdeeds):
    """The strict model, until it misbehaves: by itself or when it is told to.

    seed      the same seed, and the same calls of the driver, give the same run
    rate      how likely each `step` is a misdeed
    misdeeds  names of those it may choose, all of `MISDEEDS` if not given
    log       what it did, last things last

    Everything the strict model objects to is still a `Violation`, but for what the device itself
    has made impossible, until it is reset. A driver may answer a misdeed with an error of its
    own; it must not crash, hang, lose memory or believe what cannot be. After `heal` and a reset
    it has to work again.

    >>> device = HostileDevice(seed=7)
    >>> device
    HostileDevice(seed=7, rate=0.1)
    >>> device.step()  # before a driver has set DRIVER_OK there are only registers to lie in
    'waits'
    >>> device.misbehave("odd_queue_sizes")
    'odd_queue_sizes: (2, 256)'
    >>> device.queue_max_size(0)
    2
    >>> device.heal()
    >>> device.queue_max_size(0)
    256
    """

    def __init__(
        self,
        *args: Any,
        seed: int = 0,
        rate: float = 0.1,
        misdeeds: Iterable[str] | None = None,
        **options: Any,
    ) -> None:
        self.seed, self.rate = seed, rate
        self.misdeeds = tuple(MISDEEDS if misdeeds is None else misdeeds)
        if unknown := set(self.misdeeds) - MISDEEDS.keys():
            raise ValueError(f"no such misdeeds: {', '.join(sorted(unknown))}")
        self._chosen = None if misdeeds is None else self.misdeeds
        self.rng = random.Random(seed)
        self.log: deque[str] = deque(maxlen=1000)
        super().__init__(*args, seed=seed, **options)

    def step(self) -> str:
        """Do one thing, honest or not, as the seed has it; what it was."""
        if self.rng.random() < self.rate:
            weights = [MISDEEDS[name] for name in self.misdeeds]
            return self.misbehave(self.rng.choices(self.misdeeds, weights)[0])
        with self.lock:
            if not self.live or not self.queues:
                return self._write_down("waits")
            return self._write_down(self._commit(self._behave) or "")

    def misbehave(self, name: str, seed: int | None = None) -> str:
        """Commit one misdeed; what it did. `seed`: choose its details by that, as in a replay."""
        if name not in MISDEEDS:
            raise ValueError(f"no such misdeed: {name}; there are {', '.join(MISDEEDS)}")
        if seed is not None:
            self.rng.seed(seed)
        done = None
        with self.lock:
            if self.live or not hasattr(RingMisdeeds, name):
                done = self._commit(getattr(self, name))
        return self._write_down(f"{name}: {done or 'no occasion'}")

    def story(self, lines: int = 40) -> str:
        """What it did last, under the call that makes it do so again."""
        return "\n".join([repr(self), *list(self.log)[-lines:]])

    def _commit(self, deed: Callable[[], str | None]) -> str | None:
        try:
            return deed()
        except NoOccasion:
            return None
        except (Violation, LookupError, ValueError):  # its own books are spoilt
            if not self.tainted:
                raise
            return "hindered by what it did before"

    def _behave(self) -> str:
        pair = self.rng.randrange(len(self.queues) // 2)
        what = self.rng.choice(("deliver", "deliver", "take", "complete"))
        if what == "deliver":
            sizes = self.rng.choices(_SIZES, k=self.rng.randint(1, 4))
            if not self.accepted & MRG_RXBUF:
                room = (self.receive_capacity(pair) or 0) - HEADER
                sizes = [size for size in sizes if size <= room]
            frames = [self.rng.randbytes(size) for size in sizes]
            return f"delivers {self.deliver_some(frames, pair=pair)} of {sizes}"
        if what == "take":
            return f"takes {len(self.take(self.rng.randint(1, 8), pair=pair))}"
        count = self.rng.randint(1, 8)
        order = "fifo" if self.accepted & IN_ORDER else "shuffled"
        return f"completes {self.complete(count, order, pair=pair)}"

    def _write_down(self, what: str) -> str:
        self.log.append(what)
        return what

    def __repr__(self) -> str:
        chosen = f", misdeeds={self._chosen!r}" if self._chosen else ""
        return f"HostileDevice(seed={self.seed}, rate={self.rate}{chosen})"
