"""A buffer that the driver exposed: a chain of elements, whatever the ring's format."""

from __future__ import annotations

from .memory import Translate
from .violation import Violation, Where, words

_MAX_BYTES = 1 << 32  # 2.7.5.2, 2.8.4


def reach(translate: Translate, address: int, length: int, where: Where) -> memoryview:
    """The bytes of an element or an indirect table."""
    try:
        return translate(address, length)
    except LookupError as error:
        seen = f"{words(where)}: {address:#x} + {length}"
        raise Violation("buffers lie in DMA memory", "2.7.5, 2.8.4", seen) from error


class Chain:
    """A buffer as it was exposed.

    head      what names it when it is used: its first descriptor (split), its id (packed)
    position  its place in the available ring, modulo 65536 (split), its first descriptor (packed)
    spans     (address, length) of each element; views: their bytes
    readable  how many of the elements the device reads; they come first
    capacity  bytes of all elements
    writable  bytes of those that the device writes
    """

    __slots__ = ("capacity", "head", "position", "readable", "spans", "views", "writable")

    def __init__(self, head: int, position: int) -> None:
        self.head, self.position = head, position
        self.spans: list[tuple[int, int]] = []
        self.views: list[memoryview] = []
        self.readable = self.capacity = self.writable = 0

    def add(
        self, address: int, length: int, write: bool, translate: Translate, where: Where
    ) -> None:
        """Append an element, if it is a legal one."""
        if length == 0:
            raise Violation("an element has a length", "2.7.5, 2.8.4", f"{words(where)}: length 0")
        if not write and self.readable < len(self.spans):
            raise Violation(
                "what the device reads comes before what it writes",
                "2.7.4.2, 2.8.17",
                f"{words(where)}: readable after writable",
            )
        self.capacity += length
        if self.capacity > _MAX_BYTES:
            raise Violation("a buffer has 2^32 bytes at most", "2.7.5.2", words(where))
        self.views.append(reach(translate, address, length, where))
        self.spans.append((address, length))
        if write:
            self.writable += length
        else:
            self.readable += 1

    def gather(self) -> bytes:
        """All bytes of the buffer."""
        return b"".join(self.views) if len(self.views) > 1 else bytes(self.views[0])

    def read(self) -> bytes:
        """All bytes that the device reads."""
        return b"".join(self.views[: self.readable])

    def answer(self, data: bytes) -> None:
        """Write `data` from where the device writes on."""
        start = 0
        for view in self.views[self.readable :]:
            part = data[start : start + view.nbytes]
            view[: len(part)] = part
            start += len(part)

    def scatter(self, data: bytes | memoryview) -> None:
        """Write `data` from the buffer's start on."""
        if len(data) <= self.views[0].nbytes:
            self.views[0][: len(data)] = data
            return
        start = 0
        for view in self.views:
            part = data[start : start + view.nbytes]
            view[: len(part)] = part
            start += len(part)
