"""The device's side of a virtqueue that only says what is used."""

from typing import Any

class InstantEnd:
    def wake(self, received: Any, rounds: int, interrupt: int, seed: int) -> int: ...
    def deliver(self, frames: int, length: int) -> int: ...
    def finish(self, about: int = 0) -> int: ...

class InstantQueue(InstantEnd):
    def __init__(
        self,
        descriptors: int,
        driver: int,
        device: int,
        size: int,
        offset: int,
        start: int = 0,
        *,
        events: bool = False,
    ) -> None: ...
    def room(self) -> int: ...

class InstantPackedQueue(InstantEnd):
    def __init__(
        self,
        descriptors: int,
        driver: int,
        device: int,
        size: int,
        offset: int,
        start: int = 0,
        *,
        events: bool = False,
    ) -> None: ...
    def room(self) -> int: ...
