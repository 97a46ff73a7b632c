"""DMA memory: memfd regions with an address here and an address (IOVA) at the device.

DMA memory belongs to the process, not to a port. Every mapper (a VFIO container, a vhost-user
memory table) is shown every region, so a frame received on one port can be sent on another.
A region lives as long as somebody refers to it: pages, head slots and views do.

After fork the memory stays the parent's. The child gets a copy of its own at the same addresses,
so that views it inherited stay readable and nothing it does can touch what the device uses.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from threading import RLock

from .errors import Error, OutOfMemory, mend_of
from .hugepages import HUGE_PAGE, open_together
from .memfd import memory_file

SMALL_PAGE = mmap.PAGESIZE
PAGE_KINDS = ((HUGE_PAGE, os.MFD_HUGETLB), (SMALL_PAGE, 0))  # size, flag: what is tried, in turn
LESS = "free memory, or ask for less: pages= and ring_size= of a port, frames of a burst"
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * SMALL_PAGE  # bytes of memory that the machine has
END_IOVA = 1 << 38  # half of what the smallest virtual IOMMU can address
FIRST_IOVA = 4 << 30  # above the reserved MSI window, below the 39 bits of a small IOMMU
_MAP_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_ACCESS = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_size_t(-1).value
_MREMAP_TO = 0x3  # MREMAP_MAYMOVE, MREMAP_FIXED
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_size_t
_libc.mmap.argtypes = [ctypes.c_size_t] * 2 + [ctypes.c_int] * 3 + [ctypes.c_long]
_libc.mremap.argtypes = [ctypes.c_size_t] * 3 + [ctypes.c_int, ctypes.c_size_t]


class Region:
    """A piece of DMA memory.

    fd       memfd behind the memory (vhost-user hands it to the back end); offset in it is 0
    size     bytes, a multiple of page_size
    address  where it is mapped in this process
    iova     where every device sees it
    """

    __slots__ = (
        "__weakref__", "_map", "address", "fd", "final", "iova", "owned", "page_size", "size",
    )  # fmt: skip

    final: weakref.finalize[..., Region]  # unmaps it for devices and closes fd

    def __init__(self, fd: int, size: int, page_size: int, iova: int) -> None:
        self.fd, self.size, self.page_size, self.iova = fd, size, page_size, iova
        self.owned = [fd]  # until it is closed, whoever does it
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | _MAP_POPULATE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def become_private(self) -> None:
        """In a forked child: replace the shared memory by a copy of what it holds now.

        Without memory for a copy, what the child writes is its own, and what it has not written
        goes on to change with the parent's: OSError says so.
        """
        try:
            self._copy()
        except OSError:
            flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
            if _libc.mmap(self.address, self.size, _ACCESS, flags, self.fd, 0) == _FAILED:
                os.write(2, b"pyvirtnet: a forked process had to end: it has no DMA memory\n")
                os._exit(os.EX_OSERR)  # nothing of the child's may touch what the device uses
            raise

    def _copy(self) -> None:
        copy = _libc.mmap(0, self.size, _ACCESS, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if copy == _FAILED:
            raise OSError(ctypes.get_errno(), "no memory for a forked process's copy of DMA memory")
        view, done = memoryview((ctypes.c_char * self.size).from_address(copy)), 0
        while done < self.size:
            done += os.preadv(self.fd, [view[done:]], done)
        if _libc.mremap(copy, self.size, self.size, _MREMAP_TO, self.address) != self.address:
            raise OSError(ctypes.get_errno(), "cannot copy DMA memory for a forked process")

    def buffer(self) -> memoryview:
        """The whole region, writable. It keeps the region mapped."""
        return memoryview(self._map)

    def __repr__(self) -> str:
        return f"<Region {self.size} bytes, iova {self.iova:#x}, {self.page_size >> 10} KiB pages>"


class Mapper(ABC):
    """Who makes memory visible to a device: a VFIO container, a vhost-user memory table."""

    physical: bool = False  # it translates nothing: a region's iova must be its physical address

    @abstractmethod
    def map(self, region: Region) -> None:
        """Make `region` visible at `region.iova`. Raises a typed `Error` that names the mend."""

    @abstractmethod
    def unmap(self, iova: int, size: int) -> None:
        """Take a region back. Called only once no device uses it."""


class Memory:
    """The process's DMA regions and the mappers that see them."""

    def __init__(self) -> None:
        self._regions: weakref.WeakSet[Region] = weakref.WeakSet()
        self._mappers: list[Mapper] = []
        self._next_iova = FIRST_IOVA
        self._held: dict[int, tuple[weakref.ref[Region], list[int], int]] = {}  # by iova
        self._releasing: set[int] = set()  # in another thread, or below on the stack
        self._lock = RLock()  # of _next_iova
        self._showing = RLock()  # of which region has been shown to which mapper

    def allocate(self, size: int) -> Region:
        """A zeroed region of at least `size` bytes, mapped for every attached device.

        Huge pages are taken if enough are free, else ordinary pages.
        """
        self._sweep()
        region = self._create(size)
        shown: list[Mapper] = []
        try:
            with self._showing:
                self._show(region, shown)
                region.final = weakref.finalize(
                    region, self._release, region.owned, region.iova, region.size
                )
                region.final.atexit = False  # then devices are reset, and the kernel frees memory
                self._held[region.iova] = weakref.ref(region), region.owned, region.size
                self._regions.add(region)
        except BaseException:
            self._regions.discard(region)
            for mapper in shown:
                with suppress(Exception):
                    mapper.unmap(region.iova, region.size)
            _close(region.owned)
            raise
        return region

    def _show(self, region: Region, shown: list[Mapper]) -> None:
        for mapper in tuple(self._mappers):  # a finaliser may close a port in between
            if mapper in self._mappers:
                try:
                    mapper.map(region)
                except Error:
                    raise
                except BaseException:  # Ctrl-C, perhaps after it was mapped
                    with suppress(Exception):
                        mapper.unmap(region.iova, region.size)
                    raise
                shown.append(mapper)

    def attach(self, mapper: Mapper) -> None:
        """Show every region, present and future, to `mapper`."""
        mapped: list[Region] = []
        try:
            with self._showing:
                # Until there is none that a signal handler has allocated meanwhile.
                while missing := [region for region in self.regions() if region not in mapped]:
                    for region in missing:
                        mapper.map(region)
                        mapped.append(region)
                self._mappers.append(mapper)
        except BaseException:
            self.detach(mapper)
            for region in mapped:
                mapper.unmap(region.iova, region.size)
            raise

    def detach(self, mapper: Mapper) -> None:
        """Forget `mapper`; the caller has reset its devices, and closing it unmaps everything."""
        with self._showing:
            if mapper in self._mappers:
                self._mappers.remove(mapper)

    def regions(self) -> Iterator[Region]:
        while True:
            try:
                return iter(sorted(self._regions, key=lambda region: region.iova))
            except RuntimeError:  # another thread allocated one meanwhile
                continue

    def forget(self) -> None:
        """In a forked child: no mapper is ours, and every region becomes a private copy."""
        self._mappers, self._lock, self._showing = [], RLock(), RLock()
        failed = None
        for region in self.regions():
            region.final.detach()
            try:
                region.become_private()
            except OSError as error:  # the others are the parent's as well
                failed = error
            _close(region.owned)
        self._regions, self._held, self._releasing = weakref.WeakSet(), {}, set()
        if failed is not None:
            raise failed

    def _create(self, size: int) -> Region:
        if size > PHYSICAL:  # populating it would not fail: the kernel would kill processes
            raise self._out_of_memory(size, f"the machine has {PHYSICAL >> 10} KiB")
        if any(mapper.physical for mapper in self._mappers):
            return self._create_together(size)
        iova = self._reserve(size)
        for page_size, flags in PAGE_KINDS:
            rounded = -(-size // page_size) * page_size
            fd = None
            try:
                fd = memory_file(rounded, flags)
                return Region(fd, rounded, page_size, iova)
            except BaseException as error:
                if fd is not None:
                    os.close(fd)
                if not isinstance(error, OSError):
                    raise
                if flags == 0:
                    why = error.strerror or str(error)
                    raise self._out_of_memory(size, why, mend_of(error, LESS)) from error
        raise AssertionError("unreachable")

    def _create_together(self, size: int) -> Region:
        pages, fd = -(-size // HUGE_PAGE), None
        try:
            fd, iova = open_together(pages)
            return Region(fd, pages * HUGE_PAGE, HUGE_PAGE, iova)
        except BaseException as error:
            if fd is not None:
                os.close(fd)
            if not isinstance(error, OSError):
                raise
            raise OutOfMemory(
                f"cannot allocate {pages} huge pages that lie together in physical memory",
                f"{error.strerror}; without an IOMMU the device needs such",
                "as root: echo 128 > /proc/sys/vm/nr_hugepages, soon after boot",
            ) from error

    def _reserve(self, size: int) -> int:
        """Bus addresses for a region: not those used last, where a late device might write."""
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
        while True:
            start = self._next_iova
            iova = start if start + size <= END_IOVA else FIRST_IOVA
            for region in self.regions():
                if iova < region.iova + region.size and region.iova < iova + size:
                    iova = -(-(region.iova + region.size) // HUGE_PAGE) * HUGE_PAGE
            with self._lock:
                if self._next_iova == start:  # else another thread or a signal handler was faster
                    self._next_iova = iova + size
                    return iova

    def _out_of_memory(self, size: int, why: str, mend: str = LESS) -> OutOfMemory:
        return OutOfMemory(f"cannot allocate {-(-size // 1024)} KiB of DMA memory", why, mend)

    def _release(self, owned: list[int], iova: int, size: int) -> None:
        failed = None
        try:
            self._releasing.add(iova)
            for mapper in tuple(self._mappers if owned else ()):
                try:
                    mapper.unmap(iova, size)
                except Exception as error:  # the others have it, too
                    failed = error
            _close(owned)
            self._held.pop(iova, None)
        finally:
            self._releasing.discard(iova)
        if failed is not None:
            raise failed

    def _sweep(self) -> None:
        """Release what Ctrl-C kept a finaliser from releasing."""
        for iova in list(self._held):
            held = self._held.get(iova)  # no longer there, if another thread was faster
            if held and held[1] and held[0]() is None and iova not in self._releasing:
                try:
                    self._release(held[1], iova, held[2])
                except Exception:  # of a mapper, and not who allocates now is to blame
                    sys.excepthook(*sys.exc_info())


def _close(owned: list[int]) -> None:
    while owned:
        fd = owned[-1]
        del owned[-1]  # no call, and so no Ctrl-C, until it is closed
        os.close(fd)


memory = Memory()


os.register_at_fork(after_in_child=memory.forget)
