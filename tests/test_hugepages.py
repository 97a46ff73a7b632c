"""Huge pages in a row, out of a pool that gives them out as it likes; a made-up kernel's pool."""

import errno
import mmap
import os

import pytest

from pyvirtnet import dma, hugepages
from pyvirtnet.hugepages import HUGE_PAGE


class Pool:
    """The kernel's free huge pages, by number: it gives the one that became free last."""

    def __init__(self, free):
        self.free, self.files, self.stolen = free, {}, False

    def create(self, pages):
        fd = os.memfd_create("fake", os.MFD_CLOEXEC)
        self.files[fd] = [None] * pages
        return fd

    def places(self, fd, pages):
        """Mapping a file gives it its pages."""
        holes = [n for n in range(pages) if self.files[fd][n] is None]
        if len(holes) > len(self.free):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        for n in holes:
            self.files[fd][n] = self.free.pop()
        return [page * HUGE_PAGE for page in self.files[fd][:pages]]

    def fallocate(self, fd, mode, page):
        if mode:
            self.free.append(self.files[fd][page])
            self.files[fd][page] = None
        else:
            self.files[fd][page] = self.free.pop(-2 if self.stolen else -1)

    def close(self, fd):
        self.free += [page for page in self.files.pop(fd) if page is not None]


@pytest.fixture
def pool(monkeypatch):
    made = Pool([])
    real_close = os.close

    def close(fd):
        if fd in made.files:
            made.close(fd)
        real_close(fd)

    monkeypatch.setattr(hugepages, "_create", made.create)
    monkeypatch.setattr(hugepages, "_places", made.places)
    monkeypatch.setattr(hugepages, "_fallocate", made.fallocate)
    monkeypatch.setattr(hugepages, "_free_pages", lambda: len(made.free))
    monkeypatch.setattr(os, "close", close)
    yield made
    for fd in list(made.files):
        close(fd)


@pytest.mark.parametrize("free", [[1, 2, 3, 4], [4, 3, 2, 1], [9, 4, 1, 3, 7, 2], [8, 2, 6, 4, 3]])
def test_a_run_is_found_and_moved_into_order(pool, free):
    pool.free = list(free)
    fd, address = hugepages.open_together(2)
    first = address // HUGE_PAGE
    assert pool.files[fd] == [first, first + 1]
    assert list(pool.files) == [fd]  # what was looked at is free again
    assert sorted(pool.free) == sorted(set(free) - {first, first + 1})


def test_without_a_run_it_fails_and_holds_nothing(pool):
    pool.free = [1, 3, 5, 7, 9]
    with pytest.raises(OSError, match="of 5 huge pages, no 2 lie together"):
        hugepages.open_together(2)
    assert pool.files == {}
    assert sorted(pool.free) == [1, 3, 5, 7, 9]


def test_too_few_pages_fail_as_the_kernel_says(pool):
    pool.free = [1]
    with pytest.raises(OSError, match="Cannot allocate"):
        hugepages.open_together(2)
    assert pool.files == {}


def test_a_page_that_somebody_else_took_is_noticed(pool):
    pool.free, pool.stolen = [50, 60, 70, 80, 9, 4, 1, 3, 7, 2], True
    with pytest.raises(OSError, match="at the same time") as caught:
        hugepages.open_together(2)
    assert caught.value.errno == errno.EAGAIN
    assert pool.files == {}


def test_whoever_may_not_know_addresses_is_told(monkeypatch):
    with mmap.mmap(-1, HUGE_PAGE) as memory:
        memory[0] = 1
        monkeypatch.setattr(os, "pread", lambda *_: (1 << 63).to_bytes(8, "little"))
        with pytest.raises(PermissionError, match="keeps them from this user"):
            hugepages.physical(0x10000, HUGE_PAGE)


class Physical(dma.Mapper):
    physical = True

    def map(self, region): ...

    def unmap(self, iova, size): ...


def test_memory_for_such_a_mapper_is_in_a_row_and_its_address_is_physical(monkeypatch):
    asked = []

    def open_together(pages):
        asked.append(pages)
        fd = os.memfd_create("fake", os.MFD_CLOEXEC)
        os.ftruncate(fd, pages * HUGE_PAGE)
        return fd, 0x4000_0000

    monkeypatch.setattr(dma, "open_together", open_together)
    memory, mapper = dma.Memory(), Physical()
    assert memory.allocate(1).iova == dma.FIRST_IOVA
    memory.attach(mapper)
    region = memory.allocate(3 << 20)
    assert (region.iova, region.size, region.page_size) == (0x4000_0000, 4 << 20, HUGE_PAGE)
    assert asked == [2]
    memory.detach(mapper)
    del region
    assert memory.allocate(1).iova > dma.FIRST_IOVA


def test_without_huge_pages_the_error_names_the_mend(monkeypatch):
    def none(pages):
        raise OSError(errno.ENOMEM, "no two lie together")

    monkeypatch.setattr(dma, "open_together", none)
    memory = dma.Memory()
    memory.attach(Physical())
    with pytest.raises(dma.OutOfMemory, match="no two lie together") as caught:
        memory.allocate(1)
    assert "nr_hugepages" in caught.value.mend
