"""Rules of buffers while the device has them: each fires when a driver breaks it."""

import struct

import pytest
from model_driver import (
    BASE,
    BUFFERS,
    FRAME,
    FRAMES,
    INDIRECT,
    INDIRECTS,
    MERGED,
    NEXT,
    PAGE,
    PLAIN,
    SIZE,
    WRITE,
    Driver,
    breaks,
    broken,
)

from pyvirtnet.testing import NetDevice, Violation, mask
from pyvirtnet.testing.chain import Chain

# ---- the ring and its descriptors --------------------------------------------------------------


def backwards(driver):
    driver.post(2)
    driver.rx.next -= 1
    driver.post(0)


def too_far(driver):
    driver.rx.next += 9
    driver.post(0)


def same_head(driver):
    driver.post()
    driver.rx.offer(0)
    driver.post(0)


def head_out_of_bounds(driver):
    driver.rx.offer(8)
    driver.post(0)


def next_out_of_bounds(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 8)
    driver.rx.offer(0)
    driver.post(0)


def loop(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 1)
    driver.rx.describe(1, BUFFERS + PAGE, PAGE, WRITE | NEXT, 0)
    driver.rx.offer(0)
    driver.post(0)


def shared_descriptor(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 2)
    driver.rx.describe(1, BUFFERS + PAGE, PAGE, WRITE | NEXT, 2)
    driver.rx.describe(2, BUFFERS + 2 * PAGE, PAGE, WRITE)
    driver.rx.offer(0)
    driver.rx.offer(1)
    driver.post(0)


def one(queue, address=BUFFERS, length=PAGE, flags=0):
    def act(driver):
        ring = getattr(driver, queue)
        ring.describe(0, address, length, flags)
        ring.offer(0)
        ring.publish()
        driver.device.kick(ring.index)

    return act


def two_receive(first, second):
    def act(driver):
        driver.rx.add(first, flags=WRITE)
        driver.rx.add(second, flags=WRITE)
        driver.post(0)

    return act


def write_before_read(driver):
    driver.tx.describe(0, BUFFERS, 12, WRITE | NEXT, 1)
    driver.tx.describe(1, BUFFERS + 12, 60, 0)
    driver.tx.offer(0)
    driver.tx.publish()
    driver.device.kick(1)


def send_from_posted(driver):
    driver.post()
    driver.tx.add((BUFFERS, 72), flags=0)
    driver.tx.publish()
    driver.device.kick(1)


def post_what_is_being_sent(driver):
    driver.send(FRAME)
    driver.rx.add((FRAMES, PAGE), flags=WRITE)
    driver.post(0)


CHAINS = [
    (backwards, "the available index never goes back"),
    (too_far, "the available index never goes back, nor exposes more"),
    (same_head, "a buffer is exposed once until it is used"),
    (head_out_of_bounds, "descriptor numbers are below the queue size"),
    (next_out_of_bounds, "descriptor numbers are below the queue size"),
    (loop, "a chain has no loop"),
    (shared_descriptor, "a descriptor in flight belongs to one buffer"),
    (one("rx", flags=8 | WRITE), "only defined flags are set"),
    (one("rx", length=0, flags=WRITE), "an element has a length"),
    (one("rx", length=11, flags=WRITE), "a receive buffer has 12 bytes at least"),
    (one("rx", address=0x1000, flags=WRITE), "buffers lie in DMA memory"),
    (one("rx", address=BASE + SIZE - PAGE + 1, flags=WRITE), "buffers lie in DMA memory"),
    (one("rx"), "receive buffers are all written by the device"),
    (one("tx", flags=WRITE), "transmit buffers are only read by the device"),
    (one("tx", flags=INDIRECT), "INDIRECT only where it was negotiated"),
    (write_before_read, "what the device reads comes before what it writes"),
    (two_receive((BUFFERS, PAGE), (BUFFERS + PAGE - 1, PAGE)), "is lent to it once"),
    (two_receive((BUFFERS, PAGE), (BUFFERS + 64, 64)), "is lent to it once"),
    (one("rx", address=BASE + 0x5000 - PAGE + 1, flags=WRITE), "is lent to it once"),
    (one("tx", address=BASE + 0x5000), "is lent to it once"),
    (send_from_posted, "is lent to it once"),
    (post_what_is_being_sent, "is lent to it once"),
]


@pytest.mark.rule("VQC-004", "SPL-004", "SPL-007", "SPL-012", "NET-082")
@pytest.mark.parametrize("start_index", [0, 0xFFFF])
@pytest.mark.parametrize(("act", "rule"), CHAINS)
def test_chains(act, rule, start_index):
    breaks(lambda driver: act(driver.up()), rule, features=MERGED, start_index=start_index)


@pytest.mark.rule("SPL-003")
def test_a_buffer_is_no_longer_than_the_spec_allows():
    chain = Chain(0, 0)
    for _ in range(2):
        chain.add(0, 1 << 31, True, lambda address, length: memoryview(b""), ("queue", 0))
    with broken("a buffer has 2^32 bytes at most"):
        chain.add(0, 1, True, lambda address, length: memoryview(b""), ("queue", 0))


def test_buffers_side_by_side_do_not_overlap():
    driver = Driver(features=MERGED).up()
    two_receive((BUFFERS, 100), (BUFFERS + 100, 100))(driver)
    assert driver.device.receive_room() == 2


@pytest.mark.rule("SPL-004", "SPL-008", "SPL-009", "SPL-010")
@pytest.mark.parametrize(
    ("table", "flags", "rule"),
    [
        ([(BUFFERS, 72, 0, 0)], NEXT, "INDIRECT and NEXT are not set together"),
        ([], 0, "an indirect table holds whole descriptors"),
        ([(BUFFERS, 72, NEXT, 1)], 0, "indirect entries lie in their table"),
        ([(BUFFERS, 72, NEXT, 0)], 0, "a chain has no loop"),
        ([(BUFFERS, 72, INDIRECT, 0)], 0, "an indirect table has no INDIRECT in it"),
        ([(BUFFERS, 72, 16, 0)], 0, "only defined flags are set"),
        ([(BUFFERS, 8, NEXT, at + 1) for at in range(8)] + [(BUFFERS, 8, 0, 0)], 0,
         "a chain is no longer than the queue"),
    ],
)  # fmt: skip
def test_indirect_tables(table, flags, rule):
    def act(driver):
        driver.up()
        at = driver.buffer()
        driver.put(at, b"".join(struct.pack("<QIHH", *entry) for entry in table))
        driver.tx.describe(0, at, 16 * len(table) or 24, INDIRECT | flags, 1)
        driver.tx.offer(0)
        driver.tx.publish()
        driver.device.kick(1)

    breaks(act, rule, features=INDIRECTS)


@pytest.mark.rule("NET-024", "NET-078", "NET-080")
@pytest.mark.parametrize(
    ("features", "length"),
    [
        (PLAIN, 1525),
        (PLAIN | mask("mtu"), 9000 + 14 + 11),
        (PLAIN | mask("guest_csum", "guest_tso4"), 65600),
    ],
)
def test_unmerged_buffers_hold_a_frame(features, length):
    def posts(driver, length):
        driver.up().rx.add((BUFFERS, length), flags=WRITE)
        driver.post(0)

    def device():
        return NetDevice(features=features, mtu=9000 if features & mask("mtu") else None)

    rule = f"a receive buffer has {length + 1} bytes at least"
    breaks(lambda driver: posts(driver, length), rule, device=device(), size=256)
    driver = Driver(device(), size=256)
    posts(driver, length + 1)
    assert driver.device.receive_room() == 1


# ---- what is lent stays as it is ---------------------------------------------------------------


def write_posted(driver):
    driver.post()
    driver.put(BUFFERS + PAGE - 1, b"\0")
    driver.device.deliver(FRAME)


def write_posted_checked(driver):
    driver.post()
    driver.put(BUFFERS + PAGE - 1, b"\0")
    driver.device.check()


def change_descriptor(driver):
    driver.post()
    driver.rx.describe(0, BUFFERS, PAGE + 1, WRITE)
    driver.device.deliver(FRAME)


def change_entry(driver):
    driver.post(2)
    driver.rx.put16(driver.rx.avail + 4 + 2 * (driver.device.start_index % 8), 1)
    driver.device.deliver(FRAME)


def write_used(driver):
    driver.post()
    driver.rx.put16(driver.rx.used + 2, driver.device.start_index + 1)
    driver.device.deliver(FRAME)


def write_used_flags(driver):
    driver.rx.put16(driver.rx.used, 1)
    driver.device.check()


LENT = [
    (write_posted, "a posted receive buffer is left alone"),
    (write_posted_checked, "a posted receive buffer is left alone"),
    (change_descriptor, "the descriptors of a buffer stay as they were exposed"),
    (change_entry, "an available entry stays as it was exposed"),
    (write_used, "only the device writes the used ring"),
    (write_used_flags, "only the device writes the used ring"),
]


@pytest.mark.rule("BAS-041")
@pytest.mark.parametrize("start_index", [0, 0xFFFF])
@pytest.mark.parametrize(("act", "rule"), LENT)
def test_lent_memory(act, rule, start_index):
    breaks(lambda driver: act(driver.up()), rule, features=MERGED, start_index=start_index)


@pytest.mark.rule("BAS-041")
def test_an_indirect_table_stays_as_it_is():
    def act(driver):
        driver.up()
        at = driver.buffer()
        driver.put(at, struct.pack("<QIHH", driver.buffer(), 72, 0, 0))
        driver.tx.describe(0, at, 16, INDIRECT)
        driver.tx.offer(0)
        driver.tx.publish()
        driver.device.kick(1)
        assert driver.device.take() == [bytes(60)]
        driver.put(at, b"\1")
        driver.device.complete()

    breaks(act, "the descriptors of a buffer stay as they were exposed", features=INDIRECTS)


def test_memory_is_not_unmapped_while_the_device_has_it():
    driver = Driver(features=MERGED).up()
    driver.post()
    driver.device.withdrawn(BUFFERS + PAGE, PAGE)
    driver.device.check()
    driver.device.withdrawn(BUFFERS, 1)
    with broken("memory is unmapped after the device is reset"):
        driver.device.check()
    driver = Driver(features=MERGED).up()
    driver.device.write_status(0)
    driver.device.withdrawn(BASE, SIZE)
    assert driver.device.violations == []


def test_what_a_driver_swallows_comes_up_again():
    driver = Driver(features=MERGED).up()
    with pytest.raises(Violation):
        driver.device.kick(5)
    for act in (driver.device.check, driver.device.take, driver.device.receive_room):
        with broken("only enabled queues are kicked"):
            act()
