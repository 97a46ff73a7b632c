"""An open VFIO file: the system calls that it answers, where a test can stand in for the kernel."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from ctypes import Structure, sizeof
from typing import TypeVar

from . import uapi

S = TypeVar("S", bound=Structure)


class File:
    """A container, group or device file descriptor. Errors stay OSError here."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: str) -> File:
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def ioctl(self, request: int, argument: int | bytes | bytearray | Structure = 0) -> int:
        """The call's result; structures and bytearrays are updated in place."""
        if isinstance(argument, bytes):  # for bytes, fcntl would return them and not the result
            argument = bytearray(argument)
        return int(fcntl.ioctl(self.fd, request, argument))

    def pread(self, length: int, offset: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return os.pwrite(self.fd, data, offset)

    def mmap(self, length: int, offset: int) -> mmap.mmap:
        return mmap.mmap(self.fd, length, flags=mmap.MAP_SHARED, offset=offset)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def query(file: File, request: int, info: Structure) -> bytearray:
    """Ask with `info`, again with more room if the kernel wants to add capabilities."""
    answer = bytearray(info)
    while True:
        answer[0:4] = len(answer).to_bytes(4, "little")  # argsz comes first in every struct
        file.ioctl(request, answer)
        wanted = int.from_bytes(answer[0:4], "little")
        if wanted <= len(answer):
            return answer
        answer = bytearray(info) + bytes(wanted - sizeof(info))


def capabilities(answer: bytearray, offset: int) -> Iterator[tuple[int, int]]:
    """(id, offset) of each entry of the capability chain of `answer`."""
    while 0 < offset <= len(answer) - sizeof(uapi.CapHeader):
        header = uapi.CapHeader.from_buffer_copy(answer, offset)
        yield header.id, offset
        if header.next <= offset:  # the kernel writes chains in order
            return
        offset = header.next


def extents(answer: bytearray, offset: int, count: int) -> list[tuple[int, int]]:
    """The pairs of 64-bit numbers that follow a capability."""
    array = (uapi.Extent * count).from_buffer_copy(answer, offset)
    return [(extent.first, extent.second) for extent in array]
