"""The way of a frame from the ring to a burst: merges, heads, pages, limits."""

import ctypes
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from later import Later
from nic import HEAD, HEADER, PAGE, Nic, buffers, finish, frame, frames, run_python

SIZES = [14, 60, 127, 128, 129, 1514, 4084, 4085, 8180, 8181, 9014, 65535]
QUEUE_SIZES = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def address_of(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_arrives_whole_in_as_few_pages_as_it_needs(nic, size):
    sent = frame(size, 7)
    assert nic.device.deliver(sent)
    burst = nic.port.recv_burst(8)
    assert burst.lengths.tolist() == [size]
    assert nic.port.stats.rx_buffers == buffers(size)
    held = buffers(size) if size > HEAD else 0
    one = burst[0]
    assert (len(one), len(one.head), len(one.frags)) == (size, min(size, HEAD), held)
    assert bytes(one) == sent
    assert b"".join(bytes(part) for part in (one.head, *one.frags)) == sent
    assert nic.held_pages == held


def test_the_largest_frame_is_views_into_seventeen_pages(nic):
    nic.device.deliver(frame(65535))
    burst = nic.port.recv_burst(1)
    one = burst[0]
    memory = nic.port._memory.region
    assert nic.port.stats.rx_buffers == len(one.frags) == 17
    for part in one.frags:
        assert part.base is burst
        assert memory.address <= address_of(part)
        assert address_of(part) + part.nbytes <= memory.address + memory.size
    assert sum(part.nbytes for part in one.frags) == 65535 - HEAD
    for place, view in ((HEAD, one.frags[0][:1]), (65534, one.frags[-1][-1:])):
        view[:] ^= 0xFF
        assert bytes(one)[place] == frame(65535)[place] ^ 0xFF
        assert ctypes.string_at(address_of(view), 1)[0] == bytes(one)[place]


@pytest.mark.parametrize("size", [14, 60, 128])
def test_a_small_frame_holds_no_page(nic, size):
    nic.device.deliver(*frames(100, size))
    burst = nic.port.recv_burst(100)
    assert len(burst) == 100
    assert nic.held_pages == 0
    assert nic.held_slots == 100
    assert all(one.frags == () for one in burst)


def test_as_many_small_frames_as_ring_entries_at_once(make_nic):
    nic = make_nic(queue_sizes=(256, 256))
    sent = frames(256)
    assert nic.device.deliver(*sent)
    assert not nic.device.deliver(frame(60))
    burst = nic.port.recv_burst(1000)
    assert [bytes(one) for one in burst] == sent


@pytest.mark.rule("BAS-041", "SPL-012")
def test_indices_wrap(make_nic, start_index):
    """Past 65535, wherever they start."""
    nic = make_nic(queue_sizes=(8, 8), fill=False)
    sizes, count = (60, 128, 129, 60, 4085, 60, 1514, 14), 72_000 - start_index
    sent = [frame(sizes[i % 8], i) for i in range(count)]
    nic.pass_through(sent)
    assert nic.port.stats.rx_frames == count
    assert nic.port.stats.rx_bytes == sum(map(len, sent))
    assert nic.port.stats.rx_buffers == count // 8 * 9


@pytest.mark.parametrize("size", QUEUE_SIZES)
def test_every_ring_size(make_nic, size):
    nic = make_nic(queue_sizes=(size, size))
    assert nic.device.receive_room() == size
    largest = min(65535, size * PAGE - HEADER)
    sent = [frame(s, i) for i in range(3) for s in (60, largest, 4084, 4085, 60)]
    nic.pass_through(sent)
    assert nic.device.deliver(*frames(size))
    assert not nic.device.deliver(frame(60))
    assert nic.receive(size) == frames(size)


@pytest.mark.parametrize("size", [2, 8, 256])
def test_a_ring_smaller_than_the_device_has(make_nic, size):
    nic = make_nic(ring_size=size)
    assert nic.device.receive_room() == size
    nic.pass_through(frames(3 * size))


def test_a_burst_takes_no_more_than_asked(nic):
    sent = frames(10)
    nic.device.deliver(*sent)
    bursts = [nic.port.recv_burst(3) for _ in range(5)]
    assert [len(burst) for burst in bursts] == [3, 3, 3, 1, 0]
    assert [bytes(one) for burst in bursts for one in burst] == sent


def test_merged_frames_count_as_one_for_a_burst(nic):
    sent = [frame(9014, i) for i in range(6)]
    nic.device.deliver(*sent)
    assert [bytes(one) for one in nic.port.recv_burst(2)] == sent[:2]
    assert nic.port.stats.rx_buffers == 6
    assert nic.receive() == sent[2:]


def test_nothing_received(nic):
    burst = nic.port.recv_burst(64)
    assert len(burst) == 0
    assert list(burst) == []
    assert burst.heads.shape == (0, 128)
    assert burst.lengths.shape == (0,)
    assert nic.port.stats.rx_frames == 0


@pytest.mark.parametrize("n", [0, -1])
def test_burst_size_of_nothing(port, n):
    with pytest.raises(ValueError, match="at least 1"):
        port.recv_burst(n)


@pytest.mark.parametrize("n", ["8", None, 1.5])
def test_burst_size_is_a_number(port, n):
    with pytest.raises(TypeError):
        port.recv_burst(n)


# ---- merges ------------------------------------------------------------------------------------

# Lengths of buffers but the last: where a head, a header or a page ends, and all between.
part = st.one_of(
    st.sampled_from([1, 2, 12, 13, 127, 128, 129, 139, 140, 141, 4095, 4096]),
    st.integers(1, PAGE),
)


@st.composite
def merged_frames(draw):
    """A frame's size and how it spreads over at most 40 buffers, header in the first."""
    size = draw(st.one_of(st.sampled_from(SIZES), st.integers(14, 65535)))
    left, parts = HEADER + size, []
    for length in draw(st.lists(part, max_size=12)):
        if left == 0:
            break
        parts.append(min(left, max(length, HEADER) if not parts else length))
        left -= parts[-1]
    while left:
        parts.append(min(left, PAGE))
        left -= parts[-1]
    return size, parts


@pytest.mark.parametrize("start", [0, 0xFFF0])
def test_random_merges(start):
    nic = Nic(queue_sizes=(64, 64), start_index=start, fill=False)

    @settings(max_examples=80, deadline=None)
    @given(st.lists(merged_frames(), min_size=1, max_size=4), st.integers(1, 5))
    def merges(plan, limit):
        before = nic.port.stats
        expected = []
        for number, (size, parts) in enumerate(plan):
            if nic.device.deliver(frame(size, number), lengths=parts):
                expected.append((frame(size, number), parts))
        got = []
        while burst := nic.port.recv_burst(limit):
            got.append(burst)
        assert [bytes(one) for burst in got for one in burst] == [data for data, _ in expected]
        after = nic.port.stats
        assert after.rx_buffers - before.rx_buffers == sum(len(parts) for _, parts in expected)
        kept = sum(fragments(parts) for _, parts in expected)
        assert nic.held_pages == kept == sum(len(one.frags) for burst in got for one in burst)
        del burst, got
        nic.calm()
        nic.check()

    merges()
    finish(nic)


def fragments(parts):
    """Buffers of which something is left once the head has its 128 bytes."""
    ends = np.cumsum(parts) - HEADER
    return int((ends > HEAD).sum())


@pytest.mark.parametrize("first", [12, 13, 100, 139, 140, 141])
def test_a_head_gathered_from_many_buffers(nic, first):
    sent = frame(200)
    parts = [first] + [1] * 40
    parts.append(212 - sum(parts))
    nic.device.deliver(sent, lengths=parts)
    (one,) = nic.port.recv_burst(1)
    assert bytes(one) == sent
    assert bytes(one.head) == sent[:128]
    assert nic.held_pages == len(one.frags) == fragments(parts)


def test_a_small_frame_in_one_byte_buffers_holds_no_page(nic):
    sent = frame(100)
    nic.device.deliver(sent, lengths=[12] + [1] * 100)
    (one,) = nic.port.recv_burst(1)
    assert bytes(one) == sent
    assert one.frags == ()
    assert nic.held_pages == 0


def test_a_frame_that_fills_the_ring(make_nic):
    nic = make_nic(queue_sizes=(128, 128))
    sent = frame(200)
    nic.device.deliver(sent, lengths=[85] + [1] * 127)
    assert nic.receive() == [sent]
    nic.pass_through(frames(300))


# ---- runts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(14))
def test_runts_are_dropped_and_counted(nic, size):
    sent = [frame(60, 1), frame(size), frame(9014, 2), frame(size), frame(size), frame(60, 3)]
    nic.device.deliver(*sent)
    assert nic.receive() == [sent[0], sent[2], sent[5]]
    stats = nic.port.stats
    assert (stats.rx_frames, stats.rx_runts) == (3, 3)


def test_a_runt_of_many_buffers(nic):
    nic.device.deliver(frame(13), lengths=[12] + [1] * 13)
    nic.device.deliver(frame(60))
    assert nic.receive() == [frame(60)]
    assert nic.port.stats.rx_runts == 1
    assert nic.port.stats.rx_buffers == 15


def test_nothing_but_runts(nic):
    nic.device.deliver(*[frame(5)] * 256)
    assert nic.receive() == []
    assert nic.device.receive_room() == 256
    assert nic.port.stats.rx_runts == 256


# ---- without MRG_RXBUF -------------------------------------------------------------------------


@pytest.mark.rule("BAS-014")
@pytest.mark.parametrize("size", [14, 60, 128, 129, 1514, 4084])
def test_one_buffer_a_frame_without_mrg_rxbuf(make_nic, size):
    nic = make_nic(features=["-mrg_rxbuf"])
    assert nic.port.info()["receive_mode"] == "small"
    nic.pass_through([frame(size, i) for i in range(600)])
    assert nic.port.stats.rx_buffers == 600


def test_no_frame_outgrows_its_page_without_mrg_rxbuf(make_nic):
    nic = make_nic(features=["-mrg_rxbuf"])
    with pytest.raises(ValueError, match="do not fit"):
        nic.device.deliver(frame(4085))


# ---- pages and slots that are held -------------------------------------------------------------


def test_pages_that_are_held_are_counted_and_come_back(make_nic):
    nic = make_nic(queue_sizes=(16, 16), pages=20)
    sent = [frame(1000, i) for i in range(60)]
    kept, delivered = [], 0
    while nic.device.deliver(sent[delivered]):
        delivered += 1
        kept.append(nic.port.recv_burst(4))
    assert delivered == 20
    assert nic.device.receive_room() == 0
    assert nic.port.stats.rx_no_pages > 0
    assert nic.held_pages == 20
    for number, burst in enumerate(kept):
        assert bytes(burst[0]) == sent[number]
    del burst
    kept.clear()
    assert len(nic.port.recv_burst(4)) == 0  # posts what has come back
    assert nic.device.receive_room() == 16
    nic.pass_through(sent[20:])


def test_one_page_is_enough_to_go_on(make_nic):
    nic = make_nic(queue_sizes=(4, 4), pages=1)
    nic.pass_through([frame(1000, i) for i in range(50)])
    assert nic.port.stats.rx_no_pages > 0


def test_held_pages_of_sent_frames_are_reclaimed_when_pages_run_out(make_nic):
    nic = make_nic(queue_sizes=(8, 8), pages=8)
    for number in range(40):
        assert nic.device.deliver(frame(4000, number))
        burst = nic.port.recv_burst(8)
        assert nic.port.send_burst(burst) == 1
        del burst
        assert nic.transmitted() == [frame(4000, number)]
    assert nic.port.stats.tx_reclaimed >= 39


def test_receiving_reclaims_by_itself_when_pages_have_run_out(make_nic):
    nic = make_nic(queue_sizes=(8, 16), pages=8)
    nic.device.deliver(*[frame(1000, i) for i in range(8)])
    assert nic.port.send_burst(nic.port.recv_burst(8)) == 8
    assert len(nic.port.recv_burst(8)) == 0
    assert nic.device.receive_room() == 0
    nic.transmitted()
    assert len(nic.port.recv_burst(8)) == 0
    assert nic.device.receive_room() == 8
    assert nic.port.tx_pending == 0


def test_head_slots_that_are_held_are_counted_and_come_back(make_nic):
    nic = make_nic(queue_sizes=(2, 2))
    slots = nic.port.queues[0].pool.slots
    kept = []
    for number in range(slots):
        assert nic.device.deliver(frame(60, number))
        kept.append(nic.port.recv_burst(1))
    nic.device.deliver(frame(60, slots))
    assert len(nic.port.recv_burst(1)) == 0
    assert nic.port.stats.rx_no_slots == 1
    assert [bytes(burst[0]) for burst in kept] == frames(slots)
    del kept[3]
    (one,) = nic.port.recv_burst(4)
    assert bytes(one) == frame(60, slots)


def test_slots_in_pieces_make_short_bursts(make_nic):
    nic = make_nic(queue_sizes=(64, 64))
    slots = nic.port.queues[0].pool.slots
    kept = []
    for _ in range(slots):
        nic.device.deliver(frame(60))
        kept.append(nic.port.recv_burst(1))
    del kept[::2]
    sent = frames(64)
    nic.device.deliver(*sent)
    bursts = []
    while burst := nic.port.recv_burst(64):
        bursts.append(burst)
    assert [bytes(one) for burst in bursts for one in burst] == sent
    assert len(bursts) > 1


# ---- waiting -----------------------------------------------------------------------------------


def test_waiting_ends_at_the_deadline(port):
    start = time.monotonic()
    assert len(port.recv_burst(1, timeout=0.15)) == 0
    assert 0.15 <= time.monotonic() - start < 5


def test_waiting_ends_with_a_frame(nic):
    thread = threading.Thread(target=nic.device.deliver, args=(frame(60),))
    start = time.monotonic()
    thread.start()
    (one,) = nic.port.recv_burst(8, timeout=60)
    thread.join()
    assert bytes(one) == frame(60)
    assert time.monotonic() - start < 30


@pytest.mark.rule("SPL-036")
def test_waiting_is_woken_by_the_interrupt(nic):
    """The device delivers once the driver has asked for an interrupt, and not before."""
    asks = threading.Event()
    device, flags = nic.device, nic.device.queues[0]._avail

    def deliver_when_asked():
        while flags[0] & 1:
            asks.wait(0.001)
        device.deliver(frame(60))

    thread = threading.Thread(target=deliver_when_asked)
    thread.start()
    assert [bytes(one) for one in nic.port.recv_burst(8, timeout=None)] == [frame(60)]
    thread.join()
    assert device.interrupts[0] == 1


def test_polling_asks_for_no_interrupt(nic):
    nic.pass_through(frames(1000))
    assert nic.device.interrupts[0] == 0
    nic.port.recv_burst(1, timeout=0.01)
    nic.pass_through(frames(1000))
    assert nic.device.interrupts[0] == 0


def test_ctrl_c_ends_a_wait(nic):
    def interrupt(number, stack):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    me = threading.get_ident()
    try:
        with pytest.raises(KeyboardInterrupt):
            with Later(nic, lambda: signal.pthread_kill(me, signal.SIGUSR1)):
                nic.port.recv_burst(1, timeout=None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    nic.pass_through(frames(300))


def test_waiting_without_head_slots_ends_at_the_deadline():
    run_python(
        """
        nic = Nic(queue_sizes=(2, 2))
        kept = []
        for _ in range(nic.port.queues[0].pool.slots):
            nic.device.deliver(frame(60))
            kept.append(nic.port.recv_burst(1))
        nic.device.deliver(frame(60))
        assert len(nic.port.recv_burst(1, timeout=0.05)) == 0
        kept.clear()
        assert len(nic.port.recv_burst(1, timeout=5)) == 1
        finish(nic)
        """
    )
