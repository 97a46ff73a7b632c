"""DMA memory: regions that every mapper sees, and the arena that frames to be sent come from."""

import ctypes
import gc
import os
import sys
import threading
from functools import partial
from itertools import pairwise

import pytest
from hurry import side_by_side
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyvirtnet import OutOfMemory, dma
from pyvirtnet import arena as arenas
from pyvirtnet.arena import Arena
from pyvirtnet.dma import FIRST_IOVA, HUGE_PAGE, SMALL_PAGE, Mapper, Memory


class Refused(Exception):
    pass


class Recorder(Mapper):
    """A mapper that remembers what it maps, and refuses from the `limit`th region on."""

    def __init__(self, limit=1000):
        self.limit, self.mapped, self.calls = limit, {}, []

    def map(self, region):
        if len(self.mapped) >= self.limit:
            raise Refused
        assert region.iova not in self.mapped
        self.mapped[region.iova] = region.size
        self.calls.append(("map", region.iova))

    def unmap(self, iova, size):
        assert self.mapped.pop(iova) == size
        self.calls.append(("unmap", iova))


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["ordinary", "whatever there is"])
def memory(request, monkeypatch):
    """Memory of its own, on ordinary pages or on huge ones where the machine has them."""
    if request.param == "ordinary":
        create = os.memfd_create

        def no_huge_pages(name, flags):
            if flags & os.MFD_HUGETLB:
                raise OSError(12, "no huge pages")
            return create(name, flags)

        monkeypatch.setattr(os, "memfd_create", no_huge_pages)
    return Memory()


# ---- regions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 4097, 100_000, 3 << 20])
def test_a_region(memory, size):
    region = memory.allocate(size)
    assert region.page_size in (SMALL_PAGE, HUGE_PAGE)
    assert region.size % region.page_size == 0
    assert size <= region.size < size + region.page_size
    assert bytes(region.buffer()) == bytes(region.size)
    region.buffer()[region.size - 1] = 7
    assert ctypes.string_at(region.address + region.size - 1, 1) == b"\7"
    assert os.pread(region.fd, 1, region.size - 1) == b"\7"
    assert os.fstat(region.fd).st_size == region.size
    assert not os.get_inheritable(region.fd)


def test_whoever_gets_a_regions_file_cannot_cut_it(memory):
    """A back end could, and the next look at a ring ended the process."""
    region = memory.allocate(100)
    for size in (0, region.size - region.page_size, region.size + region.page_size):
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, size)


def test_bus_addresses_never_overlap(memory):
    regions = [memory.allocate(size) for size in (1, 5 << 20, 4096, 2 << 20, (2 << 20) + 1, 1)]
    end = FIRST_IOVA
    for region in regions:
        assert region.iova % HUGE_PAGE == 0
        assert region.iova >= end
        end = region.iova + region.size
    assert list(memory.regions()) == regions


def test_bus_addresses_are_not_used_again(memory):
    """A device that was late must not find somebody else's memory."""
    before = memory.allocate(4096).iova
    gc.collect()
    assert memory.allocate(4096).iova > before


def test_threads_get_bus_addresses_of_their_own(memory, monkeypatch):
    """One thread allocates while another one is in the middle of it."""
    regions, nested = [], []
    original = dma.Region.__init__

    def interrupted(self, *arguments):
        if not nested:
            nested.append(True)
            other = threading.Thread(target=lambda: regions.append(memory.allocate(4096)))
            other.start()
            other.join(30)
        original(self, *arguments)

    monkeypatch.setattr(dma.Region, "__init__", interrupted)
    regions.append(memory.allocate(4096))
    assert len({region.iova for region in regions}) == 2


def test_a_region_that_goes_is_unmapped_and_closed(memory):
    recorder, before = Recorder(), open_files()
    memory.attach(recorder)
    region = memory.allocate(4096)
    iova, size, view = region.iova, region.size, region.buffer()
    assert recorder.mapped == {iova: size}
    del region
    gc.collect()
    assert recorder.mapped == {}
    assert list(memory.regions()) == []
    assert open_files() <= before + 1  # the mapping's own copy goes with the view
    view[0] = 1
    del view
    gc.collect()
    assert open_files() == before


def test_every_mapper_sees_every_region(memory):
    early, late = Recorder(), Recorder()
    memory.attach(early)
    regions = [memory.allocate(4096) for _ in range(3)]
    memory.attach(late)
    regions.append(memory.allocate(4096))
    wanted = {region.iova: region.size for region in regions}
    assert early.mapped == late.mapped == wanted
    assert late.calls == [("map", iova) for iova in sorted(wanted)]
    memory.detach(early)
    memory.detach(early)
    del regions[0]
    gc.collect()
    assert len(early.mapped) == 4
    assert len(late.mapped) == 3


def test_an_allocation_that_a_mapper_refuses_leaves_nothing(memory):
    first, second, before = Recorder(), Recorder(limit=1), open_files()
    memory.attach(first)
    memory.attach(second)
    kept = memory.allocate(4096)
    files = open_files()
    with pytest.raises(Refused):
        memory.allocate(4096)
    gc.collect()
    assert first.mapped == second.mapped == {kept.iova: kept.size}
    assert [what for what, _ in first.calls] == ["map", "map", "unmap"]
    assert open_files() == files > before
    assert list(memory.regions()) == [kept]
    second.limit = 5
    assert memory.allocate(4096).iova > kept.iova


def test_a_mapper_that_refuses_a_region_is_not_attached(memory):
    regions = [memory.allocate(4096) for _ in range(3)]
    recorder = Recorder(limit=2)
    with pytest.raises(Refused):
        memory.attach(recorder)
    assert recorder.mapped == {}
    regions.append(memory.allocate(4096))
    del regions
    gc.collect()
    assert len(recorder.calls) == 4


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_running_out_of_memory(memory, monkeypatch, call):
    def fail(*_):
        raise OSError(12, "Cannot allocate memory")

    before = open_files()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutOfMemory, match=r"cannot allocate 8 KiB(.|\n)*mend: free memory"):
        memory.allocate(8192)
    assert open_files() == before


@pytest.mark.parametrize("size", [1 << 45, 1 << 62, 1 << 64, 1 << 90])
def test_more_memory_than_there_is(memory, size):
    """Refused, not tried: populating it would end in the kernel killing processes."""
    before = open_files()
    with pytest.raises(OutOfMemory, match="cannot allocate"):
        memory.allocate(size)
    assert open_files() == before


# ---- the arena -----------------------------------------------------------------------------------


class Source(Memory):
    """Memory that counts what it was asked for."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def allocate(self, size):
        self.asked += 1
        return super().allocate(size)


def content(block, size):
    return ctypes.string_at(block.address, size)


def test_blocks_are_lines_of_their_own_zeroed(memory):
    arena = Arena(memory)
    blocks = [arena.take(size) for size in (1, 63, 64, 65, 1000)]
    for block in blocks:
        assert block.address % 64 == block.iova % 64 == 0
    assert [b.iova - a.iova for a, b in pairwise(blocks)] == [64, 64, 64, 128]
    assert content(blocks[0], 64 * 5 + 1024) == bytes(64 * 5 + 1024)


def test_memory_that_comes_back_is_zeroed():
    arena = Arena(Memory())
    block = arena.take(1000)
    ctypes.memset(block.address, 0xFF, 1000)
    address = block.address
    del block
    again = arena.take(1000)
    assert again.address == address
    assert content(again, 1000) == bytes(1000)


def test_what_is_returned_while_others_are_merged_is_not_lost(monkeypatch):
    """By a finaliser, which may run in the middle of `trim` as well."""
    arena, merge = Arena(Memory()), arenas._merged
    blocks = [arena.take(64) for _ in range(3)]

    def merged(gaps):
        blocks.clear()
        return merge(gaps)

    with arena._lock:  # as another thread has it: what is returned now is merged later
        thread = threading.Thread(target=blocks.pop)
        thread.start()
        thread.join()
    monkeypatch.setattr(arenas, "_merged", merged)
    arena.trim()
    arena.trim()
    assert arena._gaps == {}


def test_the_first_gap_that_fits_is_taken():
    arena = Arena(Memory())
    blocks = [arena.take(64 * n) for n in (1, 4, 1, 2, 1)]
    small, large = blocks[3].iova, blocks[1].iova
    blocks[1] = blocks[3] = None
    assert arena.take(128).iova == large
    three = arena.take(192)
    assert three.iova == large  # the block before went at once
    other = arena.take(128)
    assert other.iova == small


def test_gaps_merge():
    arena = Arena(Memory())
    blocks = [arena.take(64) for _ in range(9)]
    first = blocks[1].iova
    for at in (3, 1, 5, 2, 4):  # apart, then joined from both sides
        blocks[at] = None
    assert arena.take(5 * 64).iova == first


def test_regions_are_taken_when_needed_and_given_back():
    source = Source()
    arena = Arena(source)
    blocks = [arena.take(64)]
    size = next(source.regions()).size
    blocks += [arena.take(size) for _ in range(3)]
    assert source.asked == 4
    blocks += [arena.take(64) for _ in range(10)]
    assert source.asked == 4
    blocks.append(arena.take(2 * size + 1))
    assert source.asked == 5
    del blocks
    gc.collect()
    assert len(list(source.regions())) == 1


class ArenaLife(RuleBasedStateMachine):
    """Blocks of any size, taken and dropped in any order."""

    def __init__(self):
        super().__init__()
        self.memory = Memory()
        self.arena = Arena(self.memory)
        self.blocks = []

    @rule(size=st.one_of(st.integers(1, 300), st.integers(1, 400_000)), mark=st.integers(1, 255))
    def take(self, size, mark):
        block = self.arena.take(size)
        assert content(block, size) == bytes(size)
        ctypes.memset(block.address, mark, size)
        self.blocks.append((block, size, mark))

    @precondition(lambda self: self.blocks)
    @rule(at=st.integers(0, 1000))
    def drop(self, at):
        del self.blocks[at % len(self.blocks)]

    @invariant()
    def blocks_are_as_they_were(self):
        for block, size, mark in self.blocks:
            assert content(block, size) == bytes([mark]) * size

    def teardown(self):
        self.blocks.clear()
        whole = [(0, region.size) for region in self.memory.regions()]
        assert list(self.arena._gaps.values()) == [[gap] for gap in whole]
        assert len(whole) <= 1


ArenaLife.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestArenaLife = ArenaLife.TestCase


@pytest.mark.parametrize("line", range(40))
def test_a_block_that_goes_in_the_middle_of_another_take(line):
    """Finalisers run where the collector or another thread says: at any line of take()."""
    arena = Arena(Memory())
    blocks = [arena.take(size) for size in (64, 128, 64, 1 << 22, 64)]
    lines = iter(range(1000))

    def trace(frame, event, argument):
        if frame.f_code.co_filename == arenas.__file__ and event == "line" and next(lines) == line:
            del blocks[1], blocks[2]  # a gap grows, and a region becomes free
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        taken = [arena.take(64) for _ in range(4)]
    finally:
        sys.settrace(before)
    taken += [arena.take(64) for _ in range(8)]
    addresses = [block.iova for block in (*blocks, *taken)]
    assert len(set(addresses)) == len(addresses)
    blocks.clear()
    taken.clear()
    (gaps,) = arena._gaps.values()
    assert len(gaps) == 1


def test_threads_share_the_arena():
    arena = Arena(Memory())
    damaged = []

    def work(mark):
        blocks = []
        for number in range(3000):
            size = 64 * (1 + (number * mark) % 5)
            block = arena.take(size)
            ctypes.memset(block.address, mark, size)
            blocks.append((block, size))
            if len(blocks) > 20:
                old, length = blocks.pop(number % 20)
                if content(old, length) != bytes([mark]) * length:
                    damaged.append(mark)

    side_by_side(*(partial(work, mark) for mark in (1, 2, 3)))
    assert not damaged
