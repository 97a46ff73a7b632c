"""When a device is kicked: where it chooses to be, never needlessly, with data (2.9, 2.7.10)."""

import random

import pytest
from model_driver import EVENTS, FRAME, MERGED, PACKED, Driver, breaks, broken

from pyvirtnet.testing import mask

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFFA])
FORMATS = pytest.mark.parametrize("ring", [0, PACKED], ids=["split", "packed"])
DATA = mask("notification_data")


def round_trip(driver):
    driver.device.take()
    driver.device.complete()
    driver.tx.reap()


def expose(driver, count):
    """Expose that many frames at once; whether the device was kicked."""
    for _ in range(count):
        at = driver.buffer(128)
        driver.put(at, bytes(12) + FRAME)
        driver.tx.add((at, 72), flags=0)
    return driver.expose(driver.tx)


@pytest.mark.rule("SPL-029")
@STARTS
@FORMATS
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3, 7, 8])
def test_a_kick_at_the_place_that_was_asked_for(ring, batch, after, start_index):
    driver = Driver(features=EVENTS | ring, start_index=start_index).up()
    for _ in range(4):
        driver.device.ask_kick_after(1, after)
        exposed = 0
        while exposed < after:
            exposed += batch
            assert expose(driver, batch) == (exposed >= after)
            round_trip(driver)
        assert expose(driver, 1), "from then on every kick is wanted"
        round_trip(driver)
        driver.device.check()


@pytest.mark.rule("SPL-030")
@STARTS
@FORMATS
def test_a_kick_too_early(ring, start_index):
    def act(driver):
        driver.up().device.ask_kick_after(1, 3)
        driver.send(FRAME, FRAME, kick=False)
        driver.kick(driver.tx)

    rule = "no kick where the device asked for none"
    breaks(act, rule, features=EVENTS | ring, start_index=start_index)
    act(Driver(features=EVENTS | ring, start_index=start_index, strict_kicks=False))


@pytest.mark.rule("SPL-030")
@STARTS
@FORMATS
def test_a_kick_for_nothing(ring, start_index):
    driver = Driver(features=EVENTS | ring, start_index=start_index).up()
    driver.send(FRAME)
    with broken("no kick where the device asked for none"):
        driver.kick(driver.tx)
    driver = Driver(features=MERGED | ring, start_index=start_index).up()
    driver.send(FRAME)
    driver.kick(driver.tx)
    driver.device.check()


@pytest.mark.rule("SPL-026", "SPL-030")
@STARTS
@FORMATS
@pytest.mark.parametrize("events", [MERGED, EVENTS])
def test_a_kick_that_was_declined(events, ring, start_index):
    driver = Driver(features=events | ring, start_index=start_index).up()
    driver.device.silence(1)
    assert not expose(driver, 2)
    round_trip(driver)
    driver.device.check()
    driver.device.silence(1, on=False)
    driver.device.check()
    assert expose(driver, 1)
    driver.device.silence(1)
    driver.send(FRAME, kick=False)
    with broken("no kick where the device asked for none"):
        driver.kick(driver.tx)


@pytest.mark.rule("SPL-027", "SPL-029")
@STARTS
@FORMATS
@pytest.mark.parametrize("events", [MERGED, EVENTS])
def test_a_kick_that_is_missing(events, ring, start_index):
    driver = Driver(features=events | ring, start_index=start_index).up()
    driver.send(FRAME, kick=False)
    assert driver.device.missed_kicks() == [1]
    with broken("a kick follows where the device asked for one"):
        driver.device.check()
    if events == EVENTS:
        driver = Driver(features=events | ring, start_index=start_index).up()
        driver.device.ask_kick_after(1, 2)
        driver.send(FRAME, kick=False)
        driver.device.check()
        driver.send(FRAME, kick=False)
        assert driver.device.missed_kicks() == [1]


@FORMATS
def test_a_device_chooses_its_kicks_only_with_event_idx(ring):
    driver = Driver(features=MERGED | ring).up()
    with pytest.raises(ValueError, match="EVENT_IDX"):
        driver.device.ask_kick_after(1, 2)


@FORMATS
def test_wishes_that_change_at_random_round_the_ring(ring):
    """The driver that asks before each kick never misses one and never gives one too many."""
    driver = Driver(features=EVENTS | ring, start_index=0xFF00).up()
    rng, kicks = random.Random(3), [0, 0]
    for _ in range(1000):
        wish = rng.choice(("as it is", "as it is", "none", "every", "after"))
        if wish == "after":
            driver.device.ask_kick_after(1, rng.randint(1, 8))
        elif wish != "as it is":
            driver.device.silence(1, on=wish == "none")
        kicks[expose(driver, rng.randint(0, min(4, driver.tx.room)))] += 1
        driver.next_buffer = 0x1_0004_0000 + rng.randrange(64) * 4096
        driver.device.check()
        if rng.random() < 0.7:
            round_trip(driver)
    assert min(kicks) > 100


# ---- NOTIFICATION_DATA, 2.9 --------------------------------------------------------------------


@STARTS
@FORMATS
def test_notifications_with_data(ring, start_index):
    driver = Driver(features=EVENTS | ring | DATA, start_index=start_index).up()
    for _ in range(20):
        driver.send(FRAME, FRAME, FRAME)
        round_trip(driver)
    driver.device.check()


@pytest.mark.parametrize(("size", "start", "sent", "data"), [(8, 0, 3, 3), (8, 0x7FFE, 3, 0x8001),
                                                             (8, 0xFFFE, 3, 1)])  # fmt: skip
def test_the_data_of_a_split_ring(size, start, sent, data):
    driver = Driver(features=MERGED | DATA, size=size, start_index=start).up()
    driver.send(*[FRAME] * sent, kick=False)
    driver.device.notify(1, data)
    driver.device.check()


@pytest.mark.parametrize(("size", "sent", "data"), [(8, 3, 0x8003), (8, 8, 0), (7, 7, 0)])
def test_the_data_of_a_packed_ring(size, sent, data):
    driver = Driver(features=MERGED | PACKED | DATA, size=size).up()
    driver.send(*[FRAME] * sent, kick=False)
    driver.device.notify(1, data)
    driver.device.check()


@pytest.mark.rule("PKD-011")
@STARTS
@FORMATS
@pytest.mark.parametrize("wrong", [1, -1, 0x8000])
def test_wrong_data(ring, wrong, start_index):
    def act(driver):
        driver.up().send(FRAME, kick=False)
        driver.device.notify(1, (driver.tx.position + wrong) % 65536)

    rule = "a notification names what is exposed next"
    breaks(act, rule, features=MERGED | ring | DATA, start_index=start_index)


@FORMATS
def test_data_where_it_belongs(ring):
    def without(driver):
        driver.up().send(FRAME, kick=False)
        driver.device.kick(1)

    def with_data(driver):
        driver.up().send(FRAME, kick=False)
        driver.device.notify(1, driver.tx.position)

    breaks(without, "a notification carries its data", features=MERGED | ring | DATA)
    rule = "a notification carries data only where that was negotiated"
    breaks(with_data, rule, features=MERGED | ring)
