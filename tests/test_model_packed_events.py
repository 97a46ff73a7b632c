"""Events of packed rings: when the device interrupts, and what it writes first (2.8.9, 2.8.10)."""

import struct

import pytest
from model_driver import EVENTS, FRAME, MERGED, PACKED, PAGE, Driver, breaks
from model_packed_driver import DESC, DISABLE, ENABLE

from pyvirtnet.testing import packed

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFFF])  # of 8 places: in front, and last
PLAIN = MERGED | PACKED


@STARTS
@pytest.mark.parametrize(
    ("features", "place", "flags", "rule"),
    [
        (PLAIN, 0, DESC, "event flags are at most 1"),
        (PLAIN, 0, 3, "event flags are at most 1"),
        (PLAIN, 0, 4, "event flags are at most 1"),
        (EVENTS | PACKED, 0, 3, "event flags are at most 2"),
        (EVENTS | PACKED, 0, 0x8000 | DESC, "event flags are at most 2"),
        (EVENTS | PACKED, 8, DESC, "an event's offset lies in the ring"),
        (EVENTS | PACKED, 0x8008, DESC, "an event's offset lies in the ring"),
    ],
)
def test_the_drivers_event_suppression(features, place, flags, rule, start_index):
    def act(driver):
        driver.up()
        driver.put(driver.rx.avail, struct.pack("<HH", place, flags))
        driver.post()

    breaks(act, rule, features=features, start_index=start_index)


@STARTS
def test_interrupts_are_had_and_declined(start_index):
    driver = Driver(features=PLAIN, start_index=start_index).up()
    driver.post(3)
    seen = []
    for flags in (ENABLE, DISABLE, ENABLE):
        driver.put(driver.rx.avail, struct.pack("<HH", 0, flags))
        driver.device.deliver(FRAME)
        seen.append(driver.device.interrupts[0])
    assert seen == [1, 1, 2]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5, 7, 8, 11, 15])
@pytest.mark.parametrize("start", range(16))
def test_an_interrupt_at_the_descriptor_that_was_asked_for(start, ahead):
    """Wherever the ring stands, and whether the event lies in this lap or in the next."""
    driver = Driver(features=EVENTS | PACKED, start_index=start).up()
    driver.rx.event(start + ahead)
    for sent in range(16):
        driver.post()
        driver.device.deliver(FRAME)
        driver.receive()
        assert driver.device.interrupts[0] == (sent >= ahead)


@STARTS
def test_an_event_inside_a_chain_counts(start_index):
    driver = Driver(features=EVENTS | PACKED, start_index=start_index).up()
    driver.tx.event(start_index + 1)
    for expected in (1, 1):
        at = driver.buffer()
        driver.tx.add((at, 20), (at + 20, 52), flags=0)
        driver.expose(driver.tx)
        driver.device.take()
        driver.device.complete()
        assert driver.device.interrupts[1] == expected


def test_the_first_buffer_of_a_batch_is_marked_last(monkeypatch):
    """A driver that looks in the middle finds nothing, not the half of a frame (2.8.9)."""
    driver = Driver(features=PLAIN).up()
    driver.post(3)
    places, publish = [], packed.publish

    def recorded(ring, at, flags):
        places.append(at // 16)
        publish(ring, at, flags)

    monkeypatch.setattr(packed, "publish", recorded)
    driver.device.deliver(bytes(2 * PAGE))
    assert places == [2, 1, 0]
