"""Time as rounds of fuzzing have it: it goes on by looking at it, so that replays are exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import _queue, dma
from ..control import events, queue

TICK = 1e-4  # seconds from one look to the next
TIMED: tuple[Any, ...] = (queue, events)  # waits of the control queue; frames are not waited for


class Clock:
    """What the driver takes of the module time."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += TICK
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@contextmanager
def repeatable() -> Iterator[None]:
    """Nothing depends on how fast this machine is, or on how many huge pages it has left."""
    changes: list[tuple[Any, str, object]] = [(module, "time", Clock()) for module in TIMED]
    changes += [(_queue, name, 0.0) for name in ("LOOK_SECONDS", "BUSY_LOOK_SECONDS")]
    changes.append((dma, "PAGE_KINDS", dma.PAGE_KINDS[-1:]))
    before = [getattr(module, name) for module, name, _ in changes]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        yield
    finally:
        for (module, name, _), value in zip(changes, before, strict=True):
            setattr(module, name, value)
