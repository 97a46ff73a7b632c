"""Rules of packed rings: each fires when a driver breaks it (VIRTIO 1.3, 2.8)."""

import struct

import pytest
from model_driver import (
    BASE,
    BUFFERS,
    FRAME,
    INDIRECT,
    INDIRECTS,
    MERGED,
    NEXT,
    PACKED,
    PAGE,
    SIZE,
    WRITE,
    Driver,
    breaks,
    broken,
)
from model_packed_driver import AVAIL, DISABLE, USED

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFFF])  # of 8 places: in front, and last
PLAIN = MERGED | PACKED


def one(queue="rx", *, at=0, address=BUFFERS, length=PAGE, name=0, flags=WRITE):
    """A descriptor made available, `at` places ahead."""

    def act(driver):
        ring = getattr(driver, queue)
        position = ring.next + at
        ring.describe(position, address, length, name, flags | ring.available(position))
        driver.kick(ring)

    return act


def several(*descriptors, queue="tx"):
    """Descriptors (name, flags) side by side; the first is made available last."""

    def act(driver):
        ring = getattr(driver, queue)
        for at, (name, flags) in reversed(list(enumerate(descriptors))):
            position = ring.next + at
            address = BUFFERS + 128 * at
            ring.describe(position, address, 72, name, flags | ring.available(position))
        driver.kick(ring)

    return act


# ---- exposing ----------------------------------------------------------------------------------


def same_id(driver):
    driver.post()
    one(name=0, address=BUFFERS + PAGE)(driver)


def used_bit_too(driver):
    driver.rx.describe(driver.rx.next, BUFFERS, PAGE, 0, WRITE | AVAIL | USED)
    driver.kick(driver.rx)


def flags_of_the_other_lap(driver):
    """The wrap counter is not turned over at the end of the ring."""
    driver.tx.next += driver.tx.size
    driver.rx.next = driver.tx.next
    driver.post()
    driver.device.check()


def first_of_a_list_alone(driver):
    ring = driver.tx
    ring.describe(ring.next, BUFFERS, 40, 0, NEXT | ring.available(ring.next))
    driver.kick(ring)


def more_than_there_is_room_for(driver):
    driver.post(8)
    one(name=0, address=driver.buffer())(driver)


def a_list_longer_than_the_room(driver):
    driver.send(*[FRAME] * 7)
    several((7, NEXT), (7, 0))(driver)


def a_list_longer_than_the_ring(driver):
    several(*[(0, NEXT)] * 8)(driver)


EXPOSED = [
    (same_id, "a buffer id is in use once at a time"),
    (one(name=8), "buffer ids are below the queue size"),
    (used_bit_too, "AVAIL is the wrap counter and USED its inverse"),
    (flags_of_the_other_lap, "AVAIL is the wrap counter and USED its inverse"),
    (first_of_a_list_alone, "a list's first descriptor is made available last"),
    (more_than_there_is_room_for, "a list is exposed where the ring has room for all of it"),
    (a_list_longer_than_the_room, "a list is exposed where the ring has room for all of it"),
    (a_list_longer_than_the_ring, "a list is exposed where the ring has room for all of it"),
    *((one(flags=WRITE | 1 << bit), "only defined flags are set")
      for bit in (3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14)),
    (one(length=0), "an element has a length"),
    (one(length=11), "a receive buffer has 12 bytes at least"),
    (one(address=0x1000), "buffers lie in DMA memory"),
    (one(address=BASE + SIZE - PAGE + 1), "buffers lie in DMA memory"),
    (one(flags=0), "receive buffers are all written by the device"),
    (one("tx"), "transmit buffers are only read by the device"),
    (one("tx", flags=INDIRECT), "INDIRECT only where it was negotiated"),
    (several((0, WRITE | NEXT), (0, 0)), "what the device reads comes before what it writes"),
    (one(address=BASE), "is lent to it once"),
    (one("tx", flags=0, address=BASE + 0x5000, length=4), "is lent to it once"),
]  # fmt: skip


@pytest.mark.rule("PKD-014", "PKD-016", "PKD-018", "PKD-019", "PKD-025")
@STARTS
@pytest.mark.parametrize(("act", "rule"), EXPOSED)
def test_what_is_exposed(act, rule, start_index):
    if act is used_bit_too:
        start_index = 0  # in odd laps a blank place may say so
    breaks(lambda driver: act(driver.up()), rule, features=PLAIN, start_index=start_index)


@pytest.mark.rule("PKD-026", "PKD-027", "PKD-028")
@STARTS
@pytest.mark.parametrize(
    ("table", "flags", "rule"),
    [
        ([(72, 0)], NEXT, "an indirect descriptor stands alone"),
        ([(72, 0)], WRITE, None),
        ([], 0, "an indirect table holds whole descriptors"),
        ([(36, NEXT), (36, 0)], 0, "no flag but WRITE in an indirect table"),
        ([(72, INDIRECT)], 0, "no flag but WRITE in an indirect table"),
        ([(72, AVAIL)], 0, "no flag but WRITE in an indirect table"),
        ([(36, WRITE), (36, 0)], 0, "what the device reads comes before what it writes"),
        ([(72, 0), (0, 0)], 0, "an element has a length"),
        ([(8, 0)] * 8, 0, None),
        ([(8, 0)] * 9, 0, "a chain is no longer than the queue"),
    ],
)
def test_indirect_tables(table, flags, rule, start_index):
    driver = Driver(features=INDIRECTS | PACKED, start_index=start_index).up()
    at, data = driver.buffer(), driver.buffer()
    rows = [struct.pack("<QIHH", data, length, 99, own) for length, own in table]
    driver.put(at, b"".join(rows))
    act = one("tx", address=at, length=16 * len(table) or 24, flags=INDIRECT | flags)
    if rule:
        with broken(rule):
            act(driver)
    else:
        act(driver)
        assert len(driver.device.take()) == 1


@pytest.mark.rule("PKD-028")
@STARTS
def test_an_indirect_descriptor_ends_no_list(start_index):
    act = several((0, NEXT), (0, INDIRECT))
    features = INDIRECTS | PACKED
    rule = "an indirect descriptor stands alone"
    breaks(lambda driver: act(driver.up()), rule, features=features, start_index=start_index)


# ---- while the device has it -------------------------------------------------------------------


def change_a_descriptor(driver):
    driver.post()
    place = driver.rx.next - 1
    driver.rx.describe(place, BUFFERS, PAGE - 1, 0, WRITE | driver.rx.available(place))
    driver.device.deliver(FRAME)


def change_flags(driver):
    driver.post()
    driver.rx.put_flags(driver.rx.next - 1, WRITE)
    driver.device.check()


def change_a_later_descriptor(driver):
    several((0, NEXT), (0, 0))(driver)
    driver.device.take()
    driver.tx.describe(driver.tx.next + 1, BUFFERS, 72, 0, driver.tx.available(driver.tx.next + 1))
    driver.device.complete()


def write_the_devices_wish(driver):
    driver.rx.put16(driver.rx.used + 2, DISABLE)
    driver.device.check()


def write_a_posted_buffer(driver):
    driver.post()
    driver.put(BUFFERS + PAGE - 1, b"\0")
    driver.device.deliver(FRAME)


LENT = [
    (change_a_descriptor, "the descriptors of a buffer stay as they were exposed"),
    (change_flags, "the descriptors of a buffer stay as they were exposed"),
    (change_a_later_descriptor, "the descriptors of a buffer stay as they were exposed"),
    (write_the_devices_wish, "only the device writes the device event suppression structure"),
    (write_a_posted_buffer, "a posted receive buffer is left alone"),
]


@pytest.mark.rule("PKD-009", "PKD-010")
@STARTS
@pytest.mark.parametrize(("act", "rule"), LENT)
def test_lent_memory(act, rule, start_index):
    breaks(lambda driver: act(driver.up()), rule, features=PLAIN, start_index=start_index)


@STARTS
def test_a_table_stays_as_it_is(start_index):
    driver = Driver(features=INDIRECTS | PACKED, start_index=start_index).up()
    at = driver.buffer()
    driver.put(at, struct.pack("<QIHH", driver.buffer(), 72, 0, 0))
    one("tx", address=at, length=16, flags=INDIRECT)(driver)
    driver.device.take()
    driver.put(at, b"\1")
    with broken("the descriptors of a buffer stay as they were exposed"):
        driver.device.complete()


@STARTS
def test_what_a_used_descriptor_was_written_over_is_the_drivers_again(start_index):
    """Out of order, the first place goes to the second buffer: the first one has lost nothing."""
    driver = Driver(features=PLAIN, start_index=start_index).up()
    driver.send(*[FRAME] * 2)
    driver.device.take()
    driver.device.complete(order=[1])
    assert len(driver.tx.reap()) == 1
    driver.tx.describe(start_index, 0xDEAD, 0, 0xDEAD, driver.tx.read(start_index)[3])
    driver.device.check()
    assert driver.device.complete() == 1
    driver.device.check()


# ---- set-up ------------------------------------------------------------------------------------


@pytest.mark.rule("PKD-001", "PCI-020")
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"size": 0}, "a size is from 1 up to the maximum"),
        ({"size": 9}, "a size is from 1 up to the maximum"),
        ({"desc": BASE + 8}, "the descriptor ring is aligned to 16"),
        ({"driver": BASE + 0x4002}, "the driver event suppression is aligned to 4"),
        ({"device": BASE + 0x5002}, "the device event suppression is aligned to 4"),
        ({"desc": BASE + SIZE - 64}, "virtqueues lie in DMA memory"),
        ({"driver": BASE + 16}, "memory that the device may write is lent to it once"),
    ],
)
def test_queue_set_up(changes, rule):
    def act(driver):
        driver.up(until="queue 0")
        driver.set_up(driver.rx, **changes)

    breaks(act, rule, features=PLAIN)


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("flags", [USED, AVAIL | USED, WRITE])
def test_the_ring_starts_zeroed(place, flags):
    def act(driver):
        driver.rx.put_flags(place, flags)
        driver.up()

    breaks(act, "the descriptor ring starts zeroed", features=PLAIN)


@STARTS
def test_what_another_thread_exposes_between_two_looks(start_index):
    """It was a violation: the device had just seen that the descriptor was not exposed."""
    driver = Driver(features=PLAIN, start_index=start_index).up()
    queue = driver.device.queues[1]
    look = queue._is_available

    def looked_too_early(position):
        seen = look(position)
        if not seen:
            queue._is_available = look
            driver.send(FRAME, kick=False)
        return seen

    queue._is_available = looked_too_early
    assert queue.fetch() == []
    assert len(queue.fetch()) == 1
    assert not driver.device.violations
