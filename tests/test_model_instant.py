"""The devices that only say what is used, for measuring: against the small drivers in Python."""

import ctypes
import sys

import model_driver
import model_packed_driver
import pytest
from model_driver import BASE, MERGED, PACKED, PAGE, WRITE, Driver

from pyvirtnet.testing import NetDevice
from pyvirtnet.testing._instant import InstantPackedQueue, InstantQueue

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFF0])


def ends(ring, size, start):
    """A driver, and the instant devices of its two queues in place of the model."""
    features = MERGED | ring
    device = NetDevice(features=features, queue_sizes=(size, size), start_index=start, fill=False)
    driver = Driver(device, size=size).up()
    kind = InstantPackedQueue if ring else InstantQueue
    memory = ctypes.addressof(ctypes.c_char.from_buffer(driver.memory))
    return driver, *(
        kind(*(part - BASE + memory for part in (queue.desc, queue.avail, queue.used)),
             size, memory - BASE, start)
        for queue in (driver.rx, driver.tx)
    )  # fmt: skip


@STARTS
@pytest.mark.parametrize(("ring", "size"), [(0, 16), (PACKED, 16), (PACKED, 11), (PACKED, 1)])
def test_frames_round_the_ring(ring, size, start_index):
    driver, receive, transmit = ends(ring, size, start_index)
    for turn in range(60):
        driver.post(driver.rx.room, kick=False)
        assert not driver.rx.wants_kick(), "it needs no kicks"
        assert receive.room() == size
        count = 1 + turn % size
        assert receive.deliver(count, 60) == count
        assert receive.room() == size - count
        assert driver.receive() == [bytes(60)] * count
        driver.send(*[bytes(60)] * count, kick=False)
        assert not driver.tx.wants_kick()
        assert transmit.room() == count
        assert transmit.finish() == count
        assert len(driver.tx.reap()) == count
    driver.post(driver.rx.room, kick=False)
    assert receive.deliver(2 * size, 60) == size
    assert receive.deliver(1, 60) == 0
    assert transmit.finish() == 0


@pytest.mark.parametrize("ring", [0, PACKED])
def test_memory_may_lie_below_its_bus_addresses(monkeypatch, ring):
    """As under valgrind."""
    for module in (model_driver, model_packed_driver, sys.modules[__name__]):
        for name in {"BASE", "BUFFERS", "FRAMES"} & vars(module).keys():
            monkeypatch.setattr(module, name, getattr(module, name) + (1 << 60))
    test_frames_round_the_ring(ring, 16, 0)


@STARTS
@pytest.mark.parametrize(("ring", "size"), [(0, 16), (PACKED, 16), (PACKED, 11)])
def test_frames_in_pieces(ring, size, start_index):
    driver, _, transmit = ends(ring, size, start_index)
    for turn in range(60):
        at = driver.buffer(128)
        parts = 1 + turn % 3
        sent = 0
        while driver.tx.room >= parts:
            driver.tx.add(*[(at, 72)] * parts, flags=0)
            sent += 1
        driver.tx.publish()
        assert transmit.room() == sent
        assert transmit.finish() == sent
        assert driver.tx.reap() == [(((at, 72),) * parts, 0)] * sent
        assert driver.tx.room == size


def test_a_frame_says_that_it_is_one_buffer():
    driver, receive, _ = ends(PACKED, 4, 0)
    at = driver.buffer()
    driver.put(at, bytes(10) + b"\xff\xff")
    driver.rx.add((at, PAGE), flags=WRITE)
    driver.rx.publish()
    receive.deliver(1, 60)
    assert driver.get(at, 12) == bytes(10) + b"\1\0"
