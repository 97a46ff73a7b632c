"""One queue reset alone, and set up anew (VIRTIO 1.3, 2.6.1, 4.1.4.3)."""

import pytest
from model_driver import BUFFERS, FRAME, MERGED, PACKED, PAGE, Driver, breaks, broken

from pyvirtnet.testing import Loopback, mask

FORMATS = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])
STARTS = pytest.mark.parametrize("start_index", [0, 0xFFF0])
RESET = mask("ring_reset")


def stop(driver, queue):
    driver.device.reset_queue(queue.index)
    while driver.device.read_queue_reset(queue.index):
        pass


def renew(driver, index):
    """The driver's half of a queue from the beginning, in zeroed memory, and set up."""
    fresh = driver.queue(index)
    driver.put(fresh.desc, bytes(0x8000))
    fresh = driver.queue(index)
    driver.set_up(fresh)
    return fresh


@pytest.mark.rule("VQC-003", "PCI-026")
@STARTS
@FORMATS
def test_a_queue_starts_again_while_the_other_runs(ring, start_index):
    driver = Driver(features=MERGED | ring | RESET, start_index=start_index).up()
    driver.post(5)
    driver.send(*[FRAME] * 3)
    driver.device.take(1)
    for _ in range(3):
        stop(driver, driver.tx)
        with pytest.raises(RuntimeError, match="queue 1 does not run"):
            driver.device.take()
        driver.device.withdrawn(driver.tx.desc, PAGE)
        driver.device.check()
        driver.tx = renew(driver, 1)
        driver.send(FRAME, FRAME)
        assert driver.device.take() == [FRAME, FRAME]
        driver.device.complete(1)
    assert driver.device.deliver(FRAME)
    assert driver.receive() == [FRAME]
    driver.device.check()


@FORMATS
def test_posted_buffers_are_the_drivers_again(ring):
    driver = Driver(features=MERGED | ring | RESET).up()
    driver.post(5)
    stop(driver, driver.rx)
    driver.put(BUFFERS, b"written")
    driver.device.withdrawn(BUFFERS, 5 * PAGE)
    driver.rx = renew(driver, 0)
    driver.next_buffer = BUFFERS
    driver.post(2)
    assert driver.device.deliver(FRAME)
    driver.device.check()


@pytest.mark.rule("PCI-027")
@FORMATS
def test_a_queue_may_come_back_with_another_size(ring):
    driver = Driver(features=MERGED | ring | RESET).up()
    stop(driver, driver.tx)
    driver.size = 4
    driver.tx = renew(driver, 1)
    driver.send(*[FRAME] * 4)
    assert driver.device.take() == [FRAME] * 4


@FORMATS
def test_a_loop_waits_while_a_queue_is_reset(ring):
    device = Loopback(features=MERGED | ring | RESET, queue_sizes=(8, 8))
    driver = Driver(device).up()
    driver.post(8)
    device.reset_queue(0)
    driver.send(FRAME)
    while device.read_queue_reset(0):
        pass
    driver.rx = renew(driver, 0)
    driver.free_pages.clear()
    driver.post(8)
    assert driver.receive() == [FRAME]


def unasked(driver):
    driver.device.reset_queue(2)


def at_once(driver):
    driver.device.reset_queue(1)
    driver.set_up(driver.tx)


def without_waiting(driver):
    driver.device.reset_queue(1)
    assert driver.device.read_queue_reset(1) == 1
    driver.set_up(driver.tx)


def kicked(driver):
    driver.device.reset_queue(1)
    driver.kick(driver.tx)


def kicked_later(driver):
    stop(driver, driver.tx)
    driver.kick(driver.tx)


def memory_gone(driver):
    driver.post()
    driver.device.reset_queue(0)
    driver.device.withdrawn(BUFFERS, PAGE)
    driver.device.check()


def twice(driver):
    stop(driver, driver.tx)
    driver.device.reset_queue(1)


def never_stopped(driver):
    driver.set_up(driver.tx)


def set_up_twice(driver):
    stop(driver, driver.tx)
    driver.set_up(driver.queue(1))
    driver.set_up(driver.queue(1))


RULES = [
    (unasked, "only enabled queues are reset"),
    (at_once, "a queue reset is over when queue_reset reads 0"),
    (without_waiting, "a queue reset is over when queue_reset reads 0"),
    (kicked, "only enabled queues are kicked"),
    (kicked_later, "only enabled queues are kicked"),
    (memory_gone, "memory is unmapped after the device is reset"),
    (twice, "only enabled queues are reset"),
    (never_stopped, "queues are set up before DRIVER_OK"),
    (set_up_twice, "queues are set up before DRIVER_OK"),
]


@pytest.mark.rule("VQC-001", "PCI-025")
@FORMATS
@pytest.mark.parametrize(("act", "rule"), RULES)
def test_rules_of_a_reset(act, rule, ring):
    breaks(lambda driver: act(driver.up()), rule, features=MERGED | ring | RESET)


@FORMATS
def test_only_where_it_was_negotiated(ring):
    driver = Driver(features=MERGED | ring).up()
    assert driver.device.read_queue_reset(1) == 0
    with broken("a queue is reset alone where that was negotiated"):
        driver.device.reset_queue(1)


def test_a_reset_of_the_device_ends_that_of_a_queue():
    driver = Driver(features=MERGED | RESET).up()
    driver.device.reset_queue(1)
    driver.device.write_status(0)
    again = Driver(driver.device, features=MERGED | RESET).up()
    again.send(FRAME)
    assert again.device.take() == [FRAME]
    again.device.check()
