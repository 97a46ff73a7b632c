"""Both ring formats with a driver that does all right: in order or not, events, chains, wraps."""

import random
import struct
from itertools import pairwise

import pytest
from model_driver import EVENTS, INDIRECT, INDIRECTS, MERGED, ORDERED, PACKED, PAGE, WRITE, Driver

from pyvirtnet.testing import Loopback, NetDevice, mask

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFF0])
FORMATS = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])
ORDERS = pytest.mark.parametrize("in_order", [0, ORDERED], ids=["any_order", "in_order"])
EVENT_IDX = mask("event_idx")


def numbered(first, count, size=60):
    return [at.to_bytes(8, "big") + bytes(size - 8) for at in range(first, first + count)]


def device(features, size, **options):
    return NetDevice(features=features, queue_sizes=(size, size), **options)


@STARTS
@FORMATS
@ORDERS
@pytest.mark.parametrize("events", [0, EVENT_IDX], ids=["flags", "events"])
@pytest.mark.parametrize("order", ["fifo", "lifo", "shuffled"])
def test_transmitting_round_the_ring(ring, in_order, events, order, start_index):
    features = MERGED | ring | in_order | events
    if in_order and order != "fifo":
        driver = Driver(device(features, 8)).up()
        driver.send(*numbered(0, 3))
        driver.device.take()
        with pytest.raises(ValueError, match="used in the order"):
            driver.device.complete(order="lifo")
        assert driver.device.complete() == 3
        return
    size = 12 if ring else 16
    driver = Driver(device(features, size, start_index=start_index, seed=2), size=size).up()
    rng = random.Random(5)
    sent, taken, back = 0, [], 0
    while sent < 5000:
        for _ in range(rng.randint(0, 5)):
            parts = rng.randint(1, 3)
            if driver.tx.room < parts:
                break
            at = 0x1_0010_0000 + sent % 1000 * 128
            driver.put(at, bytes(12) + numbered(sent, 1)[0])
            cuts = [*[0, 20, 31][:parts], 72]
            pieces = [(at + a, b - a) for a, b in pairwise(cuts)]
            driver.tx.add(*pieces, flags=0)
            sent += 1
        driver.expose(driver.tx)
        taken += driver.device.take(rng.randint(0, 9))
        driver.device.complete(rng.randint(0, 9), order=order)
        back += len(driver.tx.reap())
    taken += driver.device.take()
    driver.device.complete(order=order)
    assert taken == numbered(0, sent)
    assert back + len(driver.tx.reap()) == sent
    driver.device.check()


@STARTS
@FORMATS
@ORDERS
@pytest.mark.parametrize("used_batch", ["none", "all", "random"])
def test_receiving_round_the_ring(ring, in_order, used_batch, start_index):
    features = EVENTS | ring | in_order
    size = 21 if ring else 32
    made = device(features, size, start_index=start_index, used_batch=used_batch, merge="random")
    driver = Driver(made, size=size).up()
    rng = random.Random(11)
    for first in range(600):
        driver.post(driver.rx.room)
        frames = [rng.randbytes(rng.choice([60, PAGE - 12, 9014])) for _ in range(2)]
        # Pieces of random length may take more buffers than there are: they are drawn anew.
        assert any(driver.device.deliver(*frames) for _ in range(20)), first
        assert driver.receive() == frames
    driver.device.check()


@FORMATS
@pytest.mark.parametrize(("used_batch", "entries"), [("none", 8), ("all", 1)])
def test_one_used_entry_for_a_batch(ring, used_batch, entries):
    driver = Driver(device(MERGED | ring | ORDERED, 16, used_batch=used_batch), size=16).up()
    driver.send(*numbered(0, 8))
    driver.device.take()
    driver.device.complete()
    named = [driver.used_entry(driver.tx, at)[0] for at in range(8)]
    if entries == 1:  # the first place names the last buffer; the others are as they were
        assert named == ([7, *range(1, 8)] if ring else [7, *[0] * 7])
    else:
        assert named == list(range(8))
    assert len(driver.tx.reap()) == 8
    driver.device.check()


@FORMATS
def test_only_whole_buffers_are_skipped(ring):
    """What a skipped buffer holds is taken for written (2.7.9, 2.8.8)."""
    driver = Driver(device(MERGED | ring | ORDERED, 8, used_batch="all")).up()
    driver.post(8)
    frames = [bytes(PAGE - 12), bytes(60), bytes(2 * PAGE - 12), bytes(60)]
    assert driver.device.deliver(*frames)
    named = [driver.used_entry(driver.rx, at) for at in (0, 2)]
    assert named == [(1, 72), (4, 72)], "two entries for five buffers"
    assert driver.receive() == frames


@STARTS
@FORMATS
@ORDERS
def test_indirect_tables_are_followed(ring, in_order, start_index):
    features = INDIRECTS | ring | in_order
    driver = Driver(device(features, 4, start_index=start_index), size=4).up()
    for turn in range(20):
        data = bytes(12) + numbered(turn, 1)[0]
        at = 0x1_0010_0000 + 256 * turn
        driver.put(at, data)
        pieces = [(at, 12), (at + 12, 9), (at + 21, 51)]
        table = at + 128
        for index, (address, length) in enumerate(pieces):
            last = index == 2
            tail = (0, 0) if ring else (0 if last else 1, 0 if last else index + 1)
            driver.put(table + 16 * index, struct.pack("<QIHH", address, length, *tail))
        driver.tx.add((table, 48), flags=INDIRECT)
        driver.expose(driver.tx)
        assert driver.device.take() == [data[12:]]
        driver.device.complete()
        assert len(driver.tx.reap()) == 1
    driver.device.check()


@STARTS
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000])
def test_packed_rings_of_any_size(size, start_index):
    made = device(MERGED | PACKED, size, start_index=start_index)
    driver = Driver(made, size=size).up()
    for first in range(0, 4 * size + 3, max(1, size // 2)):
        frames = numbered(first, max(1, size // 2))
        driver.send(*frames)
        assert driver.device.take() == frames
        driver.device.complete(order="lifo")
        assert len(driver.tx.reap()) == len(frames)
    driver.device.check()


@pytest.mark.parametrize("start_index", [0, 0xFFF0])
@pytest.mark.parametrize(
    "features",
    [PACKED, PACKED | ORDERED, ORDERED, PACKED | EVENT_IDX, PACKED | mask("order_platform")],
)
def test_a_loopback(features, start_index):
    made = Loopback(features=MERGED | features, queue_sizes=(8, 8), start_index=start_index)
    driver = Driver(made).up()
    received, sent = [], 0
    while sent < 300:
        driver.post(driver.rx.room)
        driver.send(*numbered(sent, 5))
        sent += 5
        driver.tx.reap()
        received += driver.receive()
    assert received == numbered(0, sent)
    made.check()


@pytest.mark.parametrize("lap", [1, 2])
def test_a_late_start_finds_what_was_used_before(lap):
    """Descriptors of the lap before look used; they are not what the driver waits for."""
    made = device(MERGED | PACKED, 8, start_index=8 * lap + 3)
    driver = Driver(made)
    for at in range(8):
        driver.tx.put_flags(at, 0x8080)
    driver.up()
    driver.send(*numbered(0, 8))
    assert driver.device.take() == numbered(0, 8)
    driver.device.complete()
    assert len(driver.tx.reap()) == 8
    driver.device.check()


def test_buffers_exposed_before_the_queue_is_enabled():
    driver = Driver(device(MERGED | PACKED, 8)).up(until="queue 0")
    driver.post(3, kick=False)
    driver.up_from("queue 0")
    assert driver.device.missed_kicks() == [0]
    driver.kick(driver.rx)
    assert driver.device.receive_room() == 3
    driver.device.check()


def test_a_used_descriptor_has_a_length_only_where_something_was_written():
    driver = Driver(device(MERGED | PACKED, 8)).up()
    driver.post(1)
    driver.send(bytes(60))
    driver.device.take()
    driver.device.complete()
    driver.device.deliver(bytes(60))
    assert driver.tx.read(0)[1:] == (0x5A5A5A5A, 0, 0x8080)
    assert driver.rx.read(0)[1:] == (72, 0, 0x8080 | WRITE)


@pytest.mark.parametrize("size", [1, 5, 7, 8])
def test_a_driver_may_use_a_part_of_the_ring(size):
    driver = Driver(features=MERGED | PACKED)
    for ring in (driver.rx, driver.tx):
        ring.size, ring.free = size, list(range(size))
    driver.up()
    for _ in range(5):
        driver.send(*[bytes(60)] * size)
        assert driver.device.take() == [bytes(60)] * size
        driver.device.complete()
        assert len(driver.tx.reap()) == size
    driver.device.check()
