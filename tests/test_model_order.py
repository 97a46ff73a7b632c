"""IN_ORDER in a split ring: the table is taken in order (VIRTIO 1.3, 2.7.5, 2.7.9)."""

import struct

import pytest
from model_driver import BUFFERS, FRAME, INDIRECT, INDIRECTS, MERGED, NEXT, ORDERED, Driver, breaks

IN_ORDER = MERGED | ORDERED


def from_the_middle(driver):
    driver.tx.free.sort(key=lambda slot: (slot + 4) % 8)
    driver.send(FRAME)


def backwards(driver):
    driver.tx.free.reverse()
    driver.send(FRAME)


def one_left_out(driver):
    driver.send(FRAME)
    driver.tx.free.pop(0)
    driver.send(FRAME)


def used_last_taken_first(driver):
    """What a stack of free descriptors does."""
    driver.send(FRAME)
    driver.device.take()
    driver.device.complete()
    driver.tx.reap()
    driver.tx.free.insert(0, driver.tx.free.pop())
    driver.send(FRAME)


def a_chain_that_jumps(driver):
    driver.tx.describe(0, BUFFERS, 40, NEXT, 2)
    driver.tx.describe(2, BUFFERS + 40, 32, 0)
    driver.tx.offer(0)
    driver.tx.publish()
    driver.device.kick(1)


@pytest.mark.rule("SPL-005")
@pytest.mark.parametrize(
    "act", [from_the_middle, backwards, one_left_out, used_last_taken_first, a_chain_that_jumps]
)
def test_descriptors_are_taken_in_order(act):
    rule = "with IN_ORDER descriptors are taken in order"
    breaks(lambda driver: act(driver.up()), rule, features=IN_ORDER)
    act(Driver(features=MERGED).up())


@pytest.mark.parametrize("start_index", [0, 0xFFFC])
def test_a_chain_round_the_end_of_the_table(start_index):
    driver = Driver(features=IN_ORDER, start_index=start_index).up()
    for _ in range(20):
        at = driver.buffer()
        driver.put(at, bytes(12) + FRAME)
        driver.tx.add((at, 12), (at + 12, 20), (at + 32, 40), flags=0)
        driver.expose(driver.tx)
        assert driver.device.take() == [FRAME]
        driver.device.complete()
        assert len(driver.tx.reap()) == 1
    driver.device.check()


@pytest.mark.rule("SPL-011")
def test_an_indirect_table_is_in_order():
    def act(driver):
        driver.up()
        at = driver.buffer()
        rows = [(BUFFERS + 4096, 12, NEXT, 2), (0, 0, 0, 0), (BUFFERS + 5000, 60, 0, 0)]
        driver.put(at, b"".join(struct.pack("<QIHH", *row) for row in rows))
        driver.tx.describe(0, at, 48, INDIRECT)
        driver.tx.offer(0)
        driver.tx.publish()
        driver.device.kick(1)

    breaks(act, "with IN_ORDER a table is in order", features=INDIRECTS | ORDERED)
    act(Driver(features=INDIRECTS))


def test_what_the_device_may_not_do_either():
    driver = Driver(features=IN_ORDER).up()
    driver.send(FRAME, FRAME)
    driver.device.take()
    with pytest.raises(ValueError, match="used in the order they came in"):
        driver.device.complete(order=[1])
    assert driver.device.complete() == 2, "nothing was lost by asking"
