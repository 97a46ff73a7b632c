"""Arguments that misbehave: wrong values, and objects whose methods raise or call back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np


class Thrown(Exception):
    """What an argument's own method raises."""


class _Caller(Protocol):
    random: Any

    def from_within(self) -> None: ...


NUMBERS = (0, -1, 1, 3, 255, 1 << 16, 1 << 31, 1 << 63, -(1 << 63), 1 << 70, 1.5, "8", None, True)
BAD_KEYS: tuple[Any, ...] = (
    None,
    ...,
    "x",
    1.5,
    1 << 70,
    True,
    (),
    (0, 1),
    [],
    [1.5],
    [1 << 63],
    np.array([[0]]),
    np.array([True]),
    np.array([2**64 - 1], np.uint64),
    np.array(["x"]),
    np.array([None]),
    slice(None, None, 0),
    slice("a", 1.5),
)
NOT_FRAMES: tuple[Any, ...] = (
    None,
    5,
    b"one frame",
    "text",
    bytearray(60),
    memoryview(bytes(60)),
    [5],
    [None],
    [()],
    [("text",)],
    ["text"],
    [np.zeros(4, object)],
    [[[[b""]]]],
    {},
    {b"a" * 60: 1},
)


class EvilIndex:
    """A number that calls back, raises, or is none."""

    def __init__(self, caller: _Caller) -> None:
        self.caller = caller

    def __index__(self) -> int:
        self.caller.from_within()
        if self.caller.random.random() < 0.3:
            raise Thrown("__index__")
        value: int = self.caller.random.choice((0, 1, 2, 64, -1, 1 << 70))
        return value

    def __gt__(self, other: object) -> bool:
        self.caller.from_within()
        return False

    def __lt__(self, other: object) -> bool:
        raise Thrown("__lt__")


class EvilArray:
    """What numpy asks for an array, and is called back or an exception."""

    def __init__(self, caller: _Caller) -> None:
        self.caller = caller

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.caller.from_within()
        if self.caller.random.random() < 0.3:
            raise Thrown("__array__")
        return np.zeros(self.caller.random.randrange(3), np.int64)


class EvilBuffer:
    """A buffer that calls back or raises when it is asked for its bytes (Python 3.12 and later)."""

    def __init__(self, caller: _Caller) -> None:
        self.caller = caller

    def __buffer__(self, flags: int) -> memoryview:
        self.caller.from_within()
        if self.caller.random.random() < 0.3:
            raise Thrown("__buffer__")
        return memoryview(bytes(60))


class EvilItems:
    """An iterable that calls back, changes what it has handed out, and raises in the middle."""

    itself: EvilItems  # a reference cycle, if set

    def __init__(self, caller: _Caller, items: list[Any]) -> None:
        self.caller, self.items = caller, items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.caller.from_within()
            yield item
            if isinstance(item, bytearray):
                item.clear()
            if self.caller.random.random() < 0.05:
                raise Thrown("__next__")
        yield EvilBuffer(self.caller)

    def __del__(self) -> None:
        self.caller.from_within()
