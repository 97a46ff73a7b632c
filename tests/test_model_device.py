"""The device model with a driver that does everything right: steps, merging, order, interrupts."""

import random

import pytest
from model_driver import BASE, EVENTS, FRAMES, MERGED, PAGE, PLAIN, SIZE, Driver

from pyvirtnet.testing import DEFAULT_FEATURES

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFF0])


def numbered(count, size=60):
    return [at.to_bytes(4, "big") + bytes(size - 4) for at in range(count)]


# ---- receiving ---------------------------------------------------------------------------


@STARTS
@pytest.mark.parametrize("features", [PLAIN, MERGED, EVENTS, DEFAULT_FEATURES])
def test_frames_arrive(features, start_index):
    driver = Driver(features=features, start_index=start_index, size=256).up()
    driver.post(256)
    assert driver.device.receive_room() == 256
    assert driver.device.deliver(*numbered(256))
    assert driver.device.receive_room() == 0
    assert driver.receive() == numbered(256)
    driver.device.check()


@STARTS
@pytest.mark.parametrize(
    ("size", "buffers"),
    [(60, 1), (4084, 1), (4085, 2), (4084 + 4096, 2), (9014, 3), (65535, 17)],
)
def test_a_frame_fills_as_many_buffers_as_it_needs(size, buffers, start_index):
    driver = Driver(size=32, start_index=start_index).up()
    driver.post(20)
    frame = random.Random(size).randbytes(size)
    assert driver.device.deliver(frame)
    assert driver.device.receive_room() == 20 - buffers
    assert driver.receive() == [frame]


def test_a_spread_of_the_tests_choice():
    driver = Driver().up()
    driver.post(8)
    frame = bytes(range(100))
    assert driver.device.deliver(frame, lengths=[12, 1, 99])
    assert [length for _, length in driver.rx.reap()] == [12, 1, 99]
    for lengths in ([11, 101], [112, 1], [12, 100, 0]):
        with pytest.raises(ValueError, match="does not spread"):
            driver.device.deliver(frame, lengths=lengths)
    assert driver.device.receive_room() == 5


def test_what_finds_no_room_changes_nothing():
    driver = Driver(seed=3).up()
    assert not driver.device.deliver(bytes(60))
    driver.post(3)
    assert not driver.device.deliver(*numbered(4))
    assert not driver.device.deliver(bytes(60), bytes(3 * PAGE - 12))
    assert driver.device.receive_room() == 3
    assert driver.rx.reap() == []
    assert driver.device.deliver_some([*numbered(2), bytes(PAGE)]) == 2
    assert driver.receive() == numbered(2)
    driver.device.check()


def test_a_frame_too_long_for_an_unmerged_buffer():
    driver = Driver(features=PLAIN).up()
    driver.post(3)
    with pytest.raises(ValueError, match="do not fit a buffer of 4096 unmerged"):
        driver.device.deliver(bytes(PAGE - 11))
    assert driver.device.deliver(bytes(PAGE - 12))
    assert driver.receive() == [bytes(PAGE - 12)]


@STARTS
def test_random_merges_are_whole_and_repeatable(start_index):
    lengths = []
    for _ in range(2):
        driver = Driver(size=64, merge="random", seed=7, start_index=start_index).up()
        rng = random.Random(1)
        seen = []
        for _ in range(200):
            driver.post(len(driver.rx.free))
            frame = rng.randbytes(rng.choice([60, 1514, 9014]))
            assert driver.device.deliver(frame)
            seen.append(64 - driver.device.receive_room())
            assert driver.receive() == [frame]
        driver.device.check()
        lengths.append(seen)
    assert lengths[0] == lengths[1]
    assert len(set(lengths[0])) > 3


def test_frame_by_frame_or_a_batch_at_once():
    for batch, interrupts in ((True, 1), (False, 3)):
        driver = Driver(features=MERGED).up()
        driver.post(3)
        assert driver.device.deliver(*numbered(3), batch=batch)
        assert driver.device.interrupts[0] == interrupts
        assert driver.receive() == numbered(3)


# ---- transmitting ------------------------------------------------------------------------


@STARTS
def test_frames_are_taken_and_given_back_later(start_index):
    driver = Driver(start_index=start_index).up()
    driver.send(*numbered(5))
    assert driver.device.transmit_pending() == 5
    assert driver.device.take(2) == numbered(5)[:2]
    assert driver.tx.reap() == []
    assert driver.device.complete() == 2
    assert len(driver.tx.reap()) == 2
    assert driver.device.take() == numbered(5)[2:]
    assert driver.device.take() == []
    assert driver.device.complete(1) == 1
    assert driver.device.complete() == 2
    assert [length for _, length in driver.tx.reap()] == [0, 0, 0]
    driver.device.check()


@pytest.mark.parametrize(
    ("order", "places"),
    [("fifo", [0, 1, 2, 3]), ("lifo", [3, 2, 1, 0]), ([2, 0, 3, 1], [2, 0, 3, 1])],
)
def test_the_order_of_completion(order, places):
    driver = Driver().up()
    driver.send(*numbered(4))
    driver.device.take()
    driver.device.complete(order=order)
    heads = [pieces[0][0] for pieces, _ in driver.tx.reap()]
    assert heads == [FRAMES + SIZE // 16 * place for place in places]


@STARTS
def test_shuffled_completion_round_the_ring(start_index):
    driver = Driver(size=16, start_index=start_index, seed=5).up()
    rng = random.Random(9)
    sent, taken, orders = 0, [], set()
    while sent < 70_000:
        count = rng.randint(0, len(driver.tx.free))
        driver.send(*(at.to_bytes(14, "big") for at in range(sent, sent + count)))
        sent += count
        taken += driver.device.take(rng.randint(0, 16))
        driver.device.complete(rng.randint(0, 16), order="shuffled")
        orders.add(tuple(pieces[0][0] for pieces, _ in driver.tx.reap()))
    taken += driver.device.take()
    assert taken == [at.to_bytes(14, "big") for at in range(sent)]
    assert any(list(order) != sorted(order) for order in orders)
    driver.device.check()


@STARTS
def test_receiving_past_the_wrap_of_the_index(start_index):
    driver = Driver(size=256, start_index=start_index).up()
    for first in range(0, 70_000, 250):
        driver.post(len(driver.rx.free))
        frames = [at.to_bytes(14, "big") for at in range(first, first + 250)]
        assert driver.device.deliver(*frames)
        assert driver.receive() == frames
    driver.device.check()


def test_a_frame_in_pieces():
    driver = Driver().up()
    at = driver.buffer()
    driver.put(at, bytes(12) + bytes(range(90)))
    driver.tx.add((at, 7), (at + 7, 20), (at + 27, 75), flags=0)
    driver.tx.publish()
    driver.device.kick(1)
    assert driver.device.take() == [bytes(range(90))]


# ---- interrupts and the life of the device ------------------------------------------------


def test_interrupts_are_counted_and_can_be_declined():
    heard = []
    driver = Driver(features=MERGED, interrupt=heard.append).up()
    driver.post(3)
    driver.device.deliver(bytes(60))
    driver.rx.put16(driver.rx.avail, 1)
    driver.device.deliver(bytes(60))
    assert heard == [0]
    assert driver.device.interrupts == {0: 1}
    driver.device.set_link(False)
    assert heard == [0, None]
    assert driver.device.read_config(6, 2) == b"\0\0"


@STARTS
def test_an_interrupt_at_the_index_that_was_asked_for(start_index):
    driver = Driver(features=EVENTS, start_index=start_index).up()
    driver.post(8)
    driver.rx.put16(driver.rx.avail + 4 + 2 * 8, start_index + 2)
    seen = []
    for _ in range(5):
        driver.device.deliver(bytes(60))
        seen.append(driver.device.interrupts[0])
    assert seen == [0, 0, 1, 1, 1]


def test_a_reset_forgets_everything():
    driver = Driver(features=MERGED).up()
    driver.post(3)
    driver.send(bytes(60))
    driver.device.need_reset()
    assert driver.device.read_status() == 15 | 64
    driver.device.write_status(0)
    assert driver.device.read_status() == 0
    with pytest.raises(RuntimeError, match="DRIVER_OK"):
        driver.device.take()
    again = Driver(driver.device, features=MERGED).up()
    again.post(3)
    assert again.device.deliver(*numbered(3))
    assert again.receive() == numbered(3)


def test_the_device_needs_no_memory_after_a_reset():
    driver = Driver(features=MERGED).up()
    driver.post(3)
    driver.send(bytes(60))
    driver.device.take()
    driver.device.write_status(0)
    driver.map.replace(())
    driver.memory.extend(b"grows only when nothing exports it")
    assert len(driver.memory) > SIZE
    assert BASE not in driver.map._pieces
