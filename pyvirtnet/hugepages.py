"""Huge pages that lie together in physical memory, for devices that no IOMMU translates for.

The kernel neither swaps huge pages nor moves them to make room: their physical addresses stay.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, addressof, c_char, c_int, c_long, get_errno
from errno import EAGAIN, ENOMEM, EPERM
from pathlib import Path

from .memfd import memory_file

HUGE_PAGE = 2 << 20
_PAGEMAP = "/proc/self/pagemap"  # 64 bits for each small page: bit 63 present, bits 0-54 the frame
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_libc_fallocate = CDLL(None, use_errno=True).fallocate
_libc_fallocate.argtypes = [c_int, c_int, c_long, c_long]


def open_together(pages: int) -> tuple[int, int]:
    """A memory file of so many huge pages and its physical address. Raises OSError.

    The kernel picks pages as it likes: more than are needed are looked at for a run. It takes the
    page that became free last, so that the run can be moved, page by page, into a file of its own.
    """
    free = _free_pages()
    for factor in (1, 4, 16, 64):
        count = min(factor * pages, max(free, pages))
        with _open(count) as (pool, found):
            first = _run(found, pages)
            if first is not None:
                run = range(first, first + pages * HUGE_PAGE, HUGE_PAGE)
                return _move(pool, found, run), first
    raise OSError(ENOMEM, f"of {count} huge pages, no {pages} lie together in physical memory")


def physical(address: int, size: int) -> list[int]:
    """The physical address of each huge page of a mapping. Raises OSError if it can't be told."""
    frames = []
    with open(_PAGEMAP, "rb", buffering=0) as file:
        for at in range(address, address + size, HUGE_PAGE):
            entry = struct.unpack("Q", os.pread(file.fileno(), 8, at // mmap.PAGESIZE * 8))[0]
            if not entry & _PRESENT or not entry & _FRAME:  # without CAP_SYS_ADMIN the frame is 0
                raise PermissionError(EPERM, f"{_PAGEMAP} keeps them from this user")
            frames.append((entry & _FRAME) * mmap.PAGESIZE)
    return frames


@contextmanager
def _open(pages: int) -> Iterator[tuple[int, list[int]]]:
    """A file of huge pages for a while, and the physical address of each."""
    fd = _create(pages)
    try:
        yield fd, _places(fd, pages)
    finally:
        os.close(fd)


def _places(fd: int, pages: int) -> list[int]:
    with mmap.mmap(fd, pages * HUGE_PAGE, flags=mmap.MAP_SHARED | _MAP_POPULATE) as memory:
        first = c_char.from_buffer(memory)
        try:
            return physical(addressof(first), len(memory))
        finally:
            del first  # a mapping that is referred to can't be closed


def _create(pages: int) -> int:
    return memory_file(pages * HUGE_PAGE, os.MFD_HUGETLB)


def _free_pages() -> int:
    free, reserved = (int((_POOL / f"{name}_hugepages").read_text()) for name in ("free", "resv"))
    return free - reserved


def _run(found: list[int], pages: int) -> int | None:
    """The lowest address that begins a run of so many pages."""
    there = set(found)
    for first in sorted(there):
        if all(first + n * HUGE_PAGE in there for n in range(pages)):
            return first
    return None


def _move(pool: int, found: list[int], run: range) -> int:
    """A file of the pages with the addresses in `run`, taken out of the pool."""
    fd = _create(len(run))
    try:
        for n, address in enumerate(run):
            _fallocate(pool, _PUNCH_HOLE | _KEEP_SIZE, found.index(address))
            _fallocate(fd, 0, n)
        if _places(fd, len(run)) != list(run):
            raise OSError(EAGAIN, "another process took huge pages at the same time")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fallocate(fd: int, mode: int, page: int) -> None:
    """Take or give one page of a file; an error instead of a signal where there is none."""
    if _libc_fallocate(fd, mode, page * HUGE_PAGE, HUGE_PAGE):
        raise OSError(get_errno(), os.strerror(get_errno()))
