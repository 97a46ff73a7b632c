"""Bursts behave as lists of frames do, and as arrays of their heads."""

import copy
import gc
import pickle
from contextlib import suppress
from operator import index

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic import Nic, finish, frame, frames

from pyvirtnet import Frame, PortClosed, RxBurst, TxBurst

MACSWAP = [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]
SIZES = (60, 9014, 14, 128, 129, 4085, 60, 1514, 200, 99)


class Index:
    """A number that is none, but can be an index."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    def __repr__(self):
        return f"Index({self.value})"


CONTENT = [frame(size, number) for number, size in enumerate(SIZES)]


def received(nic):
    """A burst of every kind of frame. No fixture: it has to be gone when the port is checked."""
    nic.device.deliver(*CONTENT)
    return nic.port.recv_burst(64)


@pytest.fixture
def made(nic):
    burst = nic.port.alloc_burst(10, 60)
    burst.data[:] = np.arange(10)[:, None]
    return burst


def test_columns(nic):
    burst = received(nic)
    assert len(burst) == 10
    assert burst.lengths.dtype == np.uint32
    assert burst.lengths.tolist() == list(SIZES)
    assert (burst.heads.dtype, burst.heads.shape) == (np.uint8, (10, 128))
    for head, data in zip(burst.heads, CONTENT, strict=True):
        assert bytes(head)[: len(data)] == data[:128]


def test_columns_are_views(nic):
    burst = received(nic)
    assert burst.heads.base is burst
    assert burst.lengths.base is burst
    assert burst.heads[3].base is not None
    assert np.shares_memory(burst.heads, burst[3].head)
    assert np.shares_memory(burst.heads[3], burst[3].head)
    assert not np.shares_memory(burst.heads[2], burst[3].head)
    burst.heads[3, 0] ^= 0xFF
    assert bytes(burst[3])[0] == burst.heads[3, 0] == 0xFF


def test_rows_lie_apart(nic):
    """Writing all of every row changes no length, no fragment, and no other row."""
    burst = received(nic)
    before = [b"".join(map(bytes, one.frags)) for one in burst]
    for number, row in enumerate(burst.heads):
        row[:] = number
    assert burst.lengths.tolist() == list(SIZES)
    for number, one in enumerate(burst):
        assert bytes(one) == bytes([number] * min(SIZES[number], 128)) + before[number]


def test_lengths_are_read_only(nic, made):
    burst = received(nic)
    for one in (burst, burst[1:], burst[[1, 2]], made, made[::2], made[[1]]):
        with pytest.raises(ValueError, match="read-only"):
            one.lengths[0] = 5
        with pytest.raises(AttributeError):
            one.lengths = np.zeros(10)
    for view in (burst.lengths, burst[1:].lengths, made.lengths):
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_heads_of_slices_are_views_and_of_picked_frames_copies(nic, made):
    burst = received(nic)
    for whole, rows in ((burst, "heads"), (made, "data")):
        for part in (whole[2:5], whole[::-1], whole[1:9:3][::-1], whole[:]):
            assert np.shares_memory(getattr(part, rows), getattr(whole, rows))
            assert getattr(part, rows).flags.writeable
        for part in (whole[[2, 3]], whole[np.arange(10) > 5], whole[[5, 6, 7]][::-1]):
            assert not np.shares_memory(getattr(part, rows), getattr(whole, rows))
            assert not getattr(part, rows).flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                getattr(part, rows)[0, 0] = 1


def test_swapping_macs_in_one_statement(nic):
    burst = received(nic)
    burst.heads[:, :12] = burst.heads[:, MACSWAP]
    assert [bytes(one) for one in burst] == [data[6:12] + data[:6] + data[12:] for data in CONTENT]


def test_empty_bursts(nic, made):
    burst = received(nic)
    for empty in (nic.port.recv_burst(1), burst[5:5], burst[[]], burst[np.zeros(10, bool)]):
        assert (len(empty), bool(empty), list(empty)) == (0, False, [])
        assert (empty.heads.shape, empty.lengths.shape) == ((0, 128), (0,))
        assert len(empty[:]) == len(empty[[]]) == len(empty[::-1]) == 0
        with pytest.raises(IndexError):
            empty[0]
    assert made[3:3].data.shape == (0, 60)
    made[:0].set_lengths(20)


def test_frames(nic):
    burst = received(nic)
    for number, one in enumerate(burst):
        assert isinstance(one, Frame)
        assert len(one) == SIZES[number]
        assert one.head.tobytes() == CONTENT[number][:128]
        assert one.head.flags.writeable
        assert isinstance(one.frags, tuple)
        assert b"".join(map(bytes, one.frags)) == CONTENT[number][128:]


def test_rows_of_a_tx_burst(made):
    assert [row.tobytes() for row in made] == [bytes([i] * 60) for i in range(10)]
    made[3][0] = 77
    assert made.data[3, 0] == 77
    made.set_lengths(range(14, 24))
    assert [len(row) for row in made] == list(range(14, 24))
    assert [len(row) for row in made[::-3]] == [23, 20, 17, 14]


def test_lengths_are_whole_numbers(made):
    for odd in (60.9, [60.0] * 10, np.ones(10, bool), ["60"] * 10, None):
        with pytest.raises(TypeError):
            made.set_lengths(odd)
    assert made.lengths.tolist() == [60] * 10


def test_representations(nic, made):
    burst = received(nic)
    assert repr(burst) == "<RxBurst of 10 frames>"
    assert repr(burst[1]) == "<Frame of 9014 bytes>"
    assert repr(made[:2]) == "<TxBurst of 2 frames of 60 bytes>"


# ---- indexing as a list does -------------------------------------------------------------------

whole = st.integers(-12, 12)
huge = st.sampled_from([10**30, -(10**30)])
maybe = st.one_of(st.none(), whole, huge)
steps = st.one_of(st.none(), st.integers(-4, 4).filter(bool), huge)
slices = st.builds(slice, maybe, maybe, steps)
selections = st.one_of(
    slices,
    st.tuples(st.just("mask"), st.lists(st.booleans(), min_size=10, max_size=10)),
    st.tuples(st.just("indices"), st.lists(whole, max_size=12)),
)


def select(burst, model, key):
    """The same selection of a burst and of a list, or the error both raise."""
    if isinstance(key, slice):
        return burst[key], model[key]
    kind, values = key
    if kind == "mask":
        values = (values * 2)[: len(model)] + [False] * (len(model) - 20)
        return burst[np.array(values, bool)], [m for m, v in zip(model, values, strict=True) if v]
    try:
        expected = [model[i] for i in values]
    except IndexError:
        with pytest.raises(IndexError):
            burst[values]
        return burst, model
    return burst[values], expected


@pytest.mark.parametrize("kind", ["received", "made"])
def test_selections_of_selections(kind):
    nic = Nic(fill=False)
    compare_with_a_list(nic, kind)
    finish(nic)


def compare_with_a_list(nic, kind):
    if kind == "received":
        burst = received(nic)
    else:
        burst = nic.port.alloc_burst(10, 9014)
        for row, data in zip(burst.data, CONTENT, strict=True):
            row[: len(data)] = np.frombuffer(data, np.uint8)
        burst.set_lengths(SIZES)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(selections, min_size=1, max_size=3), whole)
    def same(keys, at):
        part, model = burst, CONTENT
        for key in keys:
            part, model = select(part, model, key)
        assert type(part) is type(burst)
        assert len(part) == len(model)
        assert [bytes(one) for one in part] == model
        assert part.lengths.tolist() == [len(data) for data in model]
        rows = part.heads if kind == "received" else part.data
        assert rows.shape == (len(model), 128 if kind == "received" else 9014)
        for row, data in zip(rows, model, strict=True):
            cut = min(len(data), len(row))
            assert bytes(row[:cut]) == data[:cut]
        if -len(model) <= at < len(model):
            assert bytes(part[at]) == model[at]
        else:
            with pytest.raises(IndexError):
                part[at]

    same()


@pytest.mark.parametrize(
    "key",
    [3, -1, np.int64(3), np.uint8(9), np.int8(-10), Index(4), Index(-2)],
    ids=repr,
)
def test_numbers_that_are_indices(nic, made, key):
    burst = received(nic)
    assert bytes(burst[key]) == CONTENT[index(key)]
    assert made[key][0] == range(10)[index(key)]


@pytest.mark.parametrize("key", [10, -11, 2**31, 2**40, 2**63, -(2**63) - 1, 2**70, Index(10)])
def test_indices_out_of_range(nic, made, key):
    burst = received(nic)
    for one in (burst, made, burst[:], burst[[0, 1]], burst[:0]):
        with pytest.raises(IndexError):
            one[key]
        with pytest.raises(IndexError):
            one[[0, key.value if isinstance(key, Index) else key]]


@pytest.mark.parametrize(
    "key",
    [True, np.True_, None, ..., 1.0, "a", b"a", [1.5], ["a"], [[1, 2]], [None], (slice(1), 0), {}],
    ids=repr,
)
def test_what_is_no_index(nic, made, key):
    burst = received(nic)
    for one in (burst, made):
        with pytest.raises((IndexError, TypeError)):
            one[key]


@pytest.mark.parametrize("size", [0, 1, 9, 11, 100])
def test_masks_have_a_bit_for_each_frame(nic, size):
    burst = received(nic)
    with pytest.raises(IndexError):
        burst[np.ones(size, bool)]


@pytest.mark.parametrize(
    "kind", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64, ">i4"]
)
def test_indices_of_every_type(nic, kind):
    """More frames than the smallest type can count."""
    nic.device.deliver(*frames(256))
    burst = nic.port.recv_burst(256)
    assert [bytes(one) for one in burst[np.array([5, 100], kind)]] == [frame(60, 5), frame(60, 100)]
    if np.dtype(kind).kind == "i":
        assert bytes(burst[np.array([-1], kind)][0]) == frame(60, 255)


def apart(array):
    """The same array, its elements not side by side."""
    return np.repeat(array, 3)[::3]


def backwards(array):
    return array[::-1].copy()[::-1]


def odd(array):
    """The same array at an odd address."""
    return np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1)


@pytest.mark.parametrize("lie", [apart, backwards, odd])
@pytest.mark.parametrize("picked", [[0, 3, 7], [9, 9, 0], []], ids=str)
def test_masks_and_indices_however_they_lie_in_memory(nic, lie, picked):
    burst = received(nic)
    expected = [CONTENT[i] for i in picked]
    assert [bytes(one) for one in burst[lie(np.array(picked, np.intp))]] == expected
    mask = np.isin(range(10), picked)
    expected = [CONTENT[i] for i in sorted(set(picked))]
    assert [bytes(one) for one in burst[lie(mask)]] == expected


def test_what_is_read_of_picked_frames_is_a_copy_and_read_only(nic):
    burst = received(nic)
    part = burst[[2, 5]]
    for one in (part.lengths, part.heads, part[:1].heads, burst[[]].lengths, burst[[]][:].lengths):
        assert not one.flags.writeable
        assert one.base is None or not np.shares_memory(one, burst.heads)
    heads = part.heads
    burst.heads[2, 0] ^= 0xFF
    assert heads[0, 0] != burst.heads[2, 0] == part.heads[0, 0]


def test_iterating_twice_and_at_once(nic):
    burst = received(nic)
    assert [bytes(one) for one in burst] == [bytes(one) for one in burst] == CONTENT
    pairs = list(zip(burst, burst, strict=True))
    assert all(bytes(a) == bytes(b) for a, b in pairs)


# ---- objects that no port has made -------------------------------------------------------------


@pytest.mark.parametrize("kind", [RxBurst, TxBurst, Frame, RxBurst.__base__])
def test_only_ports_make_bursts_and_frames(kind):
    for make in (kind, lambda: kind.__new__(kind), lambda: object.__new__(kind)):
        with pytest.raises(TypeError):
            make()


def test_bursts_picked_while_others_are_made(nic):
    """A garbage collection came in the middle of a slice, and a finaliser sliced, too."""
    burst = received(nic)
    other, made = burst[:], []

    class Late:
        def __init__(self):
            self.me = self

        def __del__(self):
            made.append(other[1:3])
            with suppress(TypeError):
                made.append(RxBurst.__new__(RxBurst))

    hoard = []
    for number in range(20_000):
        Late()
        hoard.append((number,))
        assert len(burst[1:]) == len(burst) - 1
    gc.collect()
    assert made
    assert all(len(one) == 2 for one in made)


@pytest.mark.parametrize("kind", [RxBurst, TxBurst, Frame])
def test_bursts_and_frames_cannot_be_subclassed(kind):
    with pytest.raises(TypeError):
        type("Mine", (kind,), {})


def test_a_subclass_of_all_bursts_cannot_be_made():
    mine = type("Mine", (RxBurst.__base__,), {})
    with pytest.raises(TypeError):
        mine()


def test_bursts_and_frames_are_neither_copied_nor_pickled(nic, made):
    burst = received(nic)
    for one in (burst, burst[1:], burst[0], made):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                duplicate(one)


def test_nothing_of_a_burst_can_be_set(nic, made):
    burst = received(nic)
    for one in (burst, burst[0], made):
        assert not hasattr(one, "__setstate_cython__")
        for name in ("store", "index", "burst", "root", "count"):
            with pytest.raises(AttributeError):
                setattr(one, name, 5)


def test_a_queue_that_no_port_has_made(port):
    kind = type(port.queues[0])
    queue = kind.__new__(kind)
    for call in (
        lambda: queue.recv_burst(1),
        lambda: queue.recv_burst(1, timeout=0.01),
        lambda: queue.send_burst([bytes(60)]),
        queue.reclaim,
    ):
        with pytest.raises(PortClosed):
            call()
    assert queue.posted == queue.tx_pending == 0
    assert set(queue.counters().values()) == {0}
