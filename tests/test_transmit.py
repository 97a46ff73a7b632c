"""The way of a frame from a caller to the ring: what is taken, copied, held, kicked, reclaimed."""

import array
import ctypes
import gc
import random
import sys
from contextlib import suppress

import numpy as np
import pytest
from nic import HEAD, PAGE, frame, frames

from pyvirtnet import QueueBusy
from pyvirtnet.testing import Cable

SIZES = [14, 60, 127, 128, 129, 1514, 4083, 4084, 4085, 4224, 4225, 9014, 65535]
ONE_PIECE = 4084  # what a page holds behind the header


def as_numpy(data):
    return np.frombuffer(data, np.uint8)


def spread_out(data):
    """An array of every other byte of a longer one."""
    wide = np.zeros(2 * len(data), np.uint8)
    wide[::2] = as_numpy(data)
    return wide[::2]


KINDS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "numpy": as_numpy,
    "numpy, read-only": lambda data: as_numpy(bytes(data)),
    "numpy, every other byte": spread_out,
    "numpy, backwards": lambda data: as_numpy(data[::-1])[::-1],
    "numpy, two axes": lambda data: as_numpy(data).reshape(2, -1),
    "numpy, transposed": lambda data: as_numpy(data).reshape(2, -1).T.copy().T,
    "numpy, words": lambda data: as_numpy(data).view(np.uint16),
    "memoryview, every other byte": lambda data: memoryview(spread_out(data)),
    "array": lambda data: array.array("B", data),
    "ctypes": lambda data: (ctypes.c_char * len(data)).from_buffer_copy(data),
    "tuple": lambda data: (data[:14], data[14:]),
    "tuple of many kinds": lambda data: (
        bytearray(data[:1]),
        as_numpy(data[1:20]),
        spread_out(data[20:33]),
        memoryview(data[33:]),
        b"",
    ),
    "list": lambda data: [data[:50], data[50:]],
    "tuple of tuples": lambda data: ((data[:5], data[5:10]), (data[10:],), ()),
}


@pytest.mark.parametrize("size", [60, 1514, 9014])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_frame_may_be(nic, kind, size):
    sent = frames(3, size)
    assert nic.port.send_burst([kind(data) for data in sent]) == 3
    assert nic.transmitted() == sent


@pytest.mark.rule("SPL-003")
@pytest.mark.parametrize("size", SIZES)
def test_every_size(nic, size):
    assert nic.port.send_burst([frame(size)]) == 1
    assert nic.device.take() == [frame(size)]
    pieces = len(nic.device.queues[1].taken[0].spans)
    assert pieces == (1 if size <= ONE_PIECE else 1 + -(-(size - HEAD) // PAGE))
    nic.device.complete()
    stats = nic.port.stats
    assert (stats.tx_frames, stats.tx_bytes) == (1, size)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
def test_every_ring_size(make_nic, size):
    nic = make_nic(queue_sizes=(size, size))
    sent = frames(3 * size + 1)
    got, left = [], sent
    while left:
        taken = nic.port.send_burst(left)
        assert taken == min(size, len(left))
        left = left[taken:]
        got += nic.transmitted()
    assert got == sent


def test_sent_bytes_are_orphaned(nic):
    data, held = bytearray(frame(60)), frame(1000, 2)
    before = sys.getrefcount(held)
    nic.port.send_burst([data, held])
    assert sys.getrefcount(held) == before
    data[:] = bytes(60)
    data.clear()  # nobody exports its buffer
    assert nic.transmitted() == [frame(60), frame(1000, 2)]


@pytest.mark.rule("BAS-041", "SPL-012")
def test_indices_wrap_under_shuffled_completion(make_nic, start_index):
    nic = make_nic(queue_sizes=(8, 8), seed=5)
    rng, number, got = random.Random(7), 0, []
    while number < 70_000 - start_index:
        batch = frames(rng.randint(1, 8), 60, number)
        number += nic.port.send_burst(batch)
        got += nic.device.take()
        nic.device.complete(rng.randint(1, 8), order="shuffled")
    for at, data in enumerate(got):
        assert data == frame(60, at)


@pytest.mark.rule("BAS-041", "SPL-004")
@pytest.mark.parametrize("order", ["fifo", "lifo", "shuffled"])
def test_chains_complete_in_any_order(make_nic, order):
    nic = make_nic(queue_sizes=(64, 64), pages=600)
    sizes = (60, 9014, 4085, 128, 20_000, 129)
    sent = [frame(sizes[i % 6], i) for i in range(3000)]
    left, got = sent, []
    while left:
        left = left[nic.port.send_burst(left[:40]) :]
        got += nic.device.take()
        nic.device.complete(len(nic.device.queues[1].taken) // 2 + 1, order=order)
    assert got == sent


# ---- a prefix is taken ---------------------------------------------------------------------------


def test_a_full_ring_takes_a_prefix(make_nic):
    nic = make_nic(queue_sizes=(8, 8))
    sent = frames(12)
    assert nic.port.send_burst(sent) == 8
    assert nic.port.stats.tx_full == 1
    assert nic.port.send_burst(sent[8:]) == 0
    assert nic.port.stats.tx_full == 2
    nic.device.take()
    nic.device.complete(3)
    assert nic.port.send_burst(sent[8:]) == 3
    assert nic.port.send_burst(sent[11:]) == 0
    nic.device.complete()
    assert nic.port.send_burst(sent[11:]) == 1
    assert nic.transmitted() == sent[8:]


def test_the_rest_of_a_burst_goes_on(make_nic):
    nic = make_nic(queue_sizes=(8, 8))
    burst = nic.port.alloc_burst(20, 60)
    burst.data[:] = np.stack([as_numpy(data) for data in frames(20)])
    got, rounds = [], 0
    while burst:
        burst = burst[nic.port.send_burst(burst) :]
        got += nic.transmitted()
        rounds += 1
    assert (got, rounds) == (frames(20), 3)


def test_a_chain_that_finds_no_room_is_not_taken_in_part(make_nic):
    nic = make_nic(queue_sizes=(8, 8), pages=64)
    sent = [frame(60), frame(20_000), frame(20_000, 1), frame(60, 1)]
    assert nic.port.send_burst(sent) == 2  # 1 + 6 of 8 descriptors
    assert nic.transmitted() == sent[:2]
    assert nic.port.send_burst(sent[2:]) == 2
    assert nic.transmitted() == sent[2:]


def test_running_out_of_pages_takes_a_prefix(make_nic):
    nic = make_nic(queue_sizes=(8, 8), pages=10)
    assert nic.port.info()["free_pages"] == 2
    sent = [frame(3000, i) for i in range(4)]
    assert nic.port.send_burst(sent) == 2
    assert nic.port.stats.tx_full == 1
    assert nic.transmitted() == sent[:2]
    assert nic.port.send_burst(sent[2:]) == 2
    assert nic.transmitted() == sent[2:]


@pytest.mark.rule("SPL-009")
def test_a_frame_with_more_pieces_than_the_ring_has_entries(make_nic):
    wide, narrow = make_nic(queue_sizes=(64, 64)), make_nic(queue_sizes=(8, 8))
    wide.device.deliver(frame(1000), lengths=[200] + [20] * 40 + [12])
    burst = wide.port.recv_burst(1)
    for refused in (burst, [frame(60), burst[0]]):
        with pytest.raises(ValueError, match="43 pieces"):
            narrow.port.send_burst(refused)
        assert narrow.device.transmit_pending() == 0
        assert narrow.port.tx_pending == 0
    assert wide.port.send_burst(burst) == 1
    assert wide.transmitted() == [frame(1000)]


def test_an_empty_burst(nic):
    assert nic.port.send_burst([]) == 0
    assert nic.port.send_burst(nic.port.recv_burst(1)) == 0
    assert nic.port.send_burst(nic.port.alloc_burst(4, 60)[:0]) == 0
    assert nic.device.kicks[1] == 0
    assert nic.port.stats.tx_full == 0


# ---- all or nothing ------------------------------------------------------------------------------

BAD = {
    "None": (None, TypeError),
    "number": (5, TypeError),
    "text": ("x" * 60, TypeError),
    "list of numbers": ([1, 2, 3], TypeError),
    "tuple with None": ((b"x" * 60, None), TypeError),
    "dictionary": ({}, TypeError),
    "object": (object(), TypeError),
    "empty": (b"", ValueError),
    "empty tuple": ((), ValueError),
    "13 bytes": (bytes(13), ValueError),
    "13 bytes in pieces": ((bytes(6), bytes(7)), ValueError),
    "65536 bytes": (bytes(65536), ValueError),
    "65536 bytes in pieces": ((bytes(65535), bytes(1)), ValueError),
}


@pytest.mark.parametrize("place", [0, 1, 5])
@pytest.mark.parametrize(("bad", "error"), BAD.values(), ids=BAD)
def test_one_bad_frame_and_nothing_is_sent(nic, bad, error, place):
    good = [*frames(3), frame(9014, 3), frame(1000, 4)]
    before = nic.port.stats
    with pytest.raises(error):
        nic.port.send_burst([*good[:place], bad, *good[place:]])
    assert nic.device.transmit_pending() == 0
    assert nic.port.tx_pending == 0
    assert nic.port.stats == before
    assert nic.device.kicks[1] == 0
    assert nic.held_pages == nic.held_slots == 0
    assert nic.port.send_burst(good) == 5
    assert nic.transmitted() == good


def test_what_is_no_frame_is_named(nic):
    with pytest.raises(TypeError, match=r"^frame 1 is of type str; "):
        nic.port.send_burst([frame(60), "x" * 60])
    with pytest.raises(TypeError, match=r"^a part of frame 0 is of type NoneType; "):
        nic.port.send_burst([(bytes(60), None)])


def test_a_list_in_itself(nic):
    """It was followed until the stack ended, and the process with it."""
    endless = []
    endless.append(endless)
    deep = bytes(60)
    for _ in range(100_000):
        deep = (deep,)
    for item in endless, deep:
        with pytest.raises(RecursionError):
            nic.port.send_burst([item])
    assert nic.port.tx_pending == 0


def test_fields_may_have_any_name(nic):
    record = np.zeros(10, [("OUI", "6u1"), ("TOS", "u1")])

    class Header(ctypes.Structure):
        _fields_ = [("Op", ctypes.c_uint16), ("Of", ctypes.c_uint8 * 62)]

    assert nic.port.send_burst([record, Header()]) == 2
    assert nic.transmitted() == [bytes(70), bytes(64)]


def test_python_s_objects_are_no_bytes(nic):
    """An array of them went out as their addresses."""
    with pytest.raises(TypeError, match="is of type ndarray"):
        nic.port.send_burst([np.array([object()] * 8)])
    with pytest.raises(TypeError, match="is of type ndarray"):
        nic.port.send_burst([np.zeros(8, [("to", "u1"), ("what", object)])])


@pytest.mark.rule("SPL-012")
def test_a_bad_frame_behind_frames_in_flight(nic):
    """What was sent before stays sent; a wrapped ring is put back as it was."""
    for number in range(300):
        assert nic.port.send_burst([frame(60, number), frame(9014, number)]) == 2
        with pytest.raises(TypeError):
            nic.port.send_burst([frame(5000), frame(60), None])
        assert nic.transmitted("shuffled") == [frame(60, number), frame(9014, number)]


def test_a_generator_that_fails(nic):
    def some():
        yield frame(60)
        yield frame(9014)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nic.port.send_burst(some())
    assert nic.device.transmit_pending() == 0
    assert nic.held_pages == nic.held_slots == 0


def test_a_generator_that_sends_itself(nic):
    def some():
        yield frame(60)
        nic.port.send_burst([frame(60)])

    with pytest.raises(QueueBusy):
        nic.port.send_burst(some())
    assert nic.device.transmit_pending() == 0


@pytest.mark.parametrize(
    "single", [frame(60), bytearray(60), memoryview(bytes(60)), "text", None, 5]
)
def test_frames_come_in_a_list(port, single):
    with pytest.raises(TypeError):
        port.send_burst(single)


def test_one_received_frame_comes_in_a_list_too(nic):
    nic.device.deliver(frame(60))
    (one,) = nic.port.recv_burst(1)
    with pytest.raises(TypeError, match="put the one frame into"):
        nic.port.send_burst(one)


@pytest.mark.rule("NET-025")
@pytest.mark.parametrize("mtu", [68, 1280, 1500, 4000, 9000])
def test_mtu(make_nic, mtu):
    nic = make_nic(mtu=mtu)
    assert (nic.port.mtu, nic.port.max_frame) == (mtu, mtu + 14)
    assert nic.port.send_burst([frame(mtu + 14)]) == 1
    assert nic.transmitted() == [frame(mtu + 14)]
    with pytest.raises(ValueError, match=f"has {mtu + 15} bytes"):
        nic.port.send_burst([frame(60), frame(mtu + 15)])
    burst = nic.port.alloc_burst(3, mtu + 15)
    burst.set_lengths([60, mtu + 14, mtu + 15])
    with pytest.raises(ValueError, match="frame 2"):
        nic.port.send_burst(burst)
    assert nic.device.transmit_pending() == 0
    assert nic.port.send_burst(burst[:2]) == 2
    assert [len(data) for data in nic.transmitted()] == [60, mtu + 14]


@pytest.mark.rule("NET-025")
def test_a_received_frame_over_the_mtu_of_another_port(make_nic):
    wide, narrow = make_nic(), make_nic(mtu=1500)
    wide.device.deliver(frame(60), frame(1515))
    burst = wide.port.recv_burst(2)
    for refused in (burst, list(burst)):
        with pytest.raises(ValueError, match="frame 1 has 1515 bytes"):
            narrow.port.send_burst(refused)
    assert narrow.device.transmit_pending() == 0
    assert narrow.port.send_burst(burst[:1]) == 1
    assert narrow.transmitted() == [frame(60)]


# ---- bursts of DMA memory ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [14, 60, 64, 65, 1514, 9014, 65535])
def test_a_tx_burst_is_sent_from_where_it_lies(nic, size):
    burst = nic.port.alloc_burst(5, size)
    assert (burst.data.shape, burst.lengths.tolist()) == ((5, size), [size] * 5)
    assert not burst.data.any()
    for row, data in zip(burst.data, frames(5, size), strict=True):
        row[:] = as_numpy(data)
    assert nic.port.send_burst(burst) == 5
    assert nic.device.take() == frames(5, size)
    assert all(len(chain.spans) == 1 for chain in nic.device.queues[1].taken)
    assert nic.held_pages == nic.held_slots == 0
    nic.device.complete()


def test_a_tx_burst_is_sent_again_and_again(nic):
    burst = nic.port.alloc_burst(64, 60)
    for number in range(100):
        burst.data[:] = number
        assert nic.port.send_burst(burst) == 64
        assert nic.transmitted() == [bytes([number] * 60)] * 64
    assert nic.port.stats.tx_frames == 6400


def test_a_tx_burst_in_flight_more_than_once(nic):
    burst = nic.port.alloc_burst(10, 60)
    for _ in range(20):
        assert nic.port.send_burst(burst) == 10
    assert nic.port.tx_pending == 200
    del burst
    gc.collect()
    assert nic.transmitted() == [bytes(60)] * 200


def test_lengths_of_a_tx_burst(nic):
    burst = nic.port.alloc_burst(4, 100)
    burst.data[:] = np.arange(100)
    burst.set_lengths([14, 60, 99, 100])
    assert [len(row) for row in burst] == [14, 60, 99, 100]
    nic.port.send_burst(burst)
    assert nic.transmitted() == [bytes(range(n)) for n in (14, 60, 99, 100)]
    burst.set_lengths(20)
    burst[1:3].set_lengths(np.array([30, 40]))
    burst[[3]].set_lengths(50)
    assert burst.lengths.tolist() == [20, 30, 40, 50]
    for wrong in (13, 101, -1, [60] * 3, [60, 60, 60, 101], 2**40):
        with pytest.raises(ValueError):
            burst.set_lengths(wrong)
    assert burst.lengths.tolist() == [20, 30, 40, 50]


@pytest.mark.parametrize(("n", "size"), [(0, 60), (-1, 60), (1, 13), (1, 65590), (1, -60)])
def test_impossible_tx_bursts(port, n, size):
    with pytest.raises(ValueError):
        port.alloc_burst(n, size)


SELECTIONS = [
    slice(2, None),
    slice(None, None, -1),
    slice(1, 9, 3),
    slice(8, 2, -2),
    [3, 1, 1, 9, -1],
    np.arange(10) % 3 == 0,
    np.array([0, 9], np.uint8),
    [],
]


@pytest.mark.parametrize("pick", SELECTIONS, ids=str)
def test_parts_of_bursts(nic, pick):
    sent = [
        frame(size, i) for i, size in enumerate((60, 9014, 128, 129, 4085, 14, 60, 1514, 99, 60))
    ]
    nic.device.deliver(*sent)
    received = nic.port.recv_burst(10)
    made = nic.port.alloc_burst(10, 60)
    made.data[:] = np.arange(10)[:, None]
    expected = np.arange(10)[pick].tolist()
    assert nic.port.send_burst(received[pick]) == len(expected)
    assert nic.transmitted() == [sent[i] for i in expected]
    assert nic.port.send_burst(made[pick]) == len(expected)
    assert nic.transmitted() == [bytes([i] * 60) for i in expected]


def test_frames_of_many_origins_in_one_list(nic):
    nic.device.deliver(frame(60, 1), frame(9014, 2))
    burst = nic.port.recv_burst(2)
    made = nic.port.alloc_burst(1, 100)
    made.data[:] = 7
    sent = [burst[1], b"a" * 60, made[0], burst[0], (burst[0].head, b"b" * 10), burst[1]]
    assert nic.port.send_burst(sent) == 6
    assert nic.transmitted() == [
        frame(9014, 2),
        b"a" * 60,
        b"\7" * 100,
        frame(60, 1),
        frame(60, 1) + b"b" * 10,
        frame(9014, 2),
    ]


# ---- forwarding ----------------------------------------------------------------------------------


def test_forwarding_copies_nothing(make_nic):
    left, right = make_nic(), make_nic()
    sent = [frame(9014), frame(60), frame(65535)]
    left.device.deliver(*sent)
    burst = left.port.recv_burst(3)
    memory = left.port._memory.region
    assert right.port.send_burst(burst) == 3
    assert right.device.take() == sent
    for chain in right.device.queues[1].taken:
        for address, length in chain.spans:
            assert memory.iova <= address
            assert address + length <= memory.iova + memory.size
    right.device.complete()


def test_headers_changed_in_a_burst_are_forwarded(make_nic):
    left, right = make_nic(), make_nic()
    sent = [frame(9014), frame(60), frame(200)]
    left.device.deliver(*sent)
    burst = left.port.recv_burst(3)
    burst.heads[:, :12] = burst.heads[:, [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5]]
    right.port.send_burst(burst)
    assert right.transmitted() == [data[6:12] + data[:6] + data[12:] for data in sent]


def test_what_another_port_sends_stays_held_until_it_reclaims(make_nic):
    left, right = make_nic(), make_nic()
    left.device.deliver(frame(9014))
    burst = left.port.recv_burst(1)
    assert right.port.send_burst(burst) == 1
    assert left.port.send_burst(burst) == 1
    del burst
    gc.collect()
    assert left.held_pages == 3
    assert left.transmitted() == right.transmitted() == [frame(9014)]
    left.port.reclaim()
    assert left.held_pages == 3
    assert right.port.reclaim() == 1
    assert left.held_pages == 0


def test_a_port_forwards_what_a_closed_one_received(make_nic):
    left, right = make_nic(), make_nic()
    left.device.deliver(frame(9014), frame(60))
    burst = left.port.recv_burst(2)
    left.port.close()
    assert right.port.send_burst(burst) == 2
    del burst
    gc.collect()
    assert right.transmitted() == [frame(9014), frame(60)]


def test_forwarding_between_two_ports_on_a_cable(make_nic):
    """A frame goes round: left sends, right turns it back, until all have gone many times."""
    left, right = make_nic(seed=1, merge="random"), make_nic(seed=2, merge="random")
    cable = Cable(left.device, right.device)
    sent = [frame(size, i) for i, size in enumerate((60, 129, 9014, 4085, 65535, 14, 1514))]
    assert left.port.send_burst(sent) == 7
    for _ in range(50):
        for nic in (right, left):
            cable.poll()
            burst = nic.port.recv_burst(64)
            assert [bytes(one) for one in burst] == sent
            assert nic.port.send_burst(burst) == 7
            del burst
    cable.poll()
    right.receive()


# ---- reclaim, kicks, interrupts ------------------------------------------------------------------


def test_nothing_reclaims_behind_the_callers_back(nic):
    nic.device.deliver(*frames(10))
    nic.port.send_burst(frames(20))
    nic.transmitted()
    burst = nic.port.recv_burst(64)
    nic.port.recv_burst(64, timeout=0.001)
    bytes(burst[0]), nic.port.stats, nic.port.info(), nic.port.link, nic.port.mac
    nic.port.alloc_burst(4, 60)
    del burst
    gc.collect()
    assert nic.port.tx_pending == 20
    assert nic.port.stats.tx_reclaimed == 0
    assert nic.held_slots == 20
    assert nic.port.reclaim() == 20
    assert nic.held_slots == 0
    assert nic.port.reclaim() == 0


def test_the_next_send_reclaims(nic):
    nic.port.send_burst(frames(20))
    nic.transmitted()
    nic.port.send_burst([])
    assert nic.port.tx_pending == 0
    nic.port.send_burst(frames(5))
    nic.device.take()
    nic.device.complete(2)
    nic.port.send_burst(frames(1))
    assert (nic.port.tx_pending, nic.port.stats.tx_reclaimed) == (4, 22)


@pytest.mark.rule("SPL-027", "SPL-031")
def test_one_kick_a_burst(nic):
    for number in range(10):
        nic.port.send_burst(frames(20))
        assert nic.device.kicks[1] == nic.port.stats.tx_kicks == number + 1
        assert nic.device.transmit_pending() == 20
        nic.transmitted()


@pytest.mark.rule("SPL-026", "SPL-027")
def test_no_kick_where_the_device_wants_none(nic):
    nic.device.silence(1)
    for _ in range(10):
        assert nic.port.send_burst(frames(20)) == 20
    assert nic.device.kicks[1] == nic.port.stats.tx_kicks == 0
    assert nic.device.missed_kicks() == []
    assert len(nic.transmitted()) == 200
    nic.device.silence(1, on=False)
    nic.port.send_burst(frames(20))
    assert nic.device.kicks[1] == 1
    assert nic.device.missed_kicks() == []


@pytest.mark.rule("SPL-014")
def test_transmitting_asks_for_no_interrupt(nic):
    for _ in range(100):
        nic.port.send_burst(frames(64))
        nic.transmitted()
    nic.port.reclaim()
    assert nic.device.interrupts[1] == 0
    assert nic.device.queues[1]._avail[0] == 1  # VIRTQ_AVAIL_F_NO_INTERRUPT, 2.7.7


# ---- everything at once --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_random_life(make_nic, seed):
    """Copies, received frames, made bursts, bad frames, in any order; the stream is as sent."""
    nic = make_nic(queue_sizes=(32, 32), pages=200, seed=seed, merge="random")
    rng = random.Random(seed)
    held, expected, got = [], [], []
    made = nic.port.alloc_burst(16, 200)
    for row, number in zip(made.data, range(16), strict=True):
        row[:] = as_numpy(frame(200, number))

    def send(burst, content):
        expected.extend(content[: nic.port.send_burst(burst)])

    def receive():
        nic.device.deliver(
            *[frame(rng.choice((14, 60, 129, 5000)), rng.randrange(999)) for _ in range(3)]
        )
        held.append(nic.port.recv_burst(8))

    def forward():
        burst = rng.choice(held) if held else made
        send(burst, [bytes(one) for one in burst])

    def copies():
        content = [frame(rng.choice((14, 128, 129, 1514, 4085, 9014)), rng.randrange(999))] * 5
        send(content, content)

    def part():
        pick = [rng.randrange(16) for _ in range(rng.randrange(9))]
        send(made[pick], [frame(200, i) for i in pick])

    def bad():
        content = [frame(60), frame(9014), None]
        with suppress(TypeError):
            send(content, content)  # a full ring never gets to the bad one

    def drop():
        if held:
            held.pop(rng.randrange(len(held)))

    def complete():
        got.extend(nic.device.take(rng.randint(1, 20)))
        nic.device.complete(rng.randint(1, 20), order="shuffled")

    for _ in range(3000):
        rng.choice((receive, forward, copies, part, bad, drop, drop, complete, complete))()
    held.clear()
    got += nic.transmitted()
    assert got == expected
