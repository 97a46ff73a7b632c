"""Kicks and interrupts of every ring format, where indices and laps wrap (2.7.10, 2.8.10)."""

import threading

import pytest
from later import EVENTS, PACKED, asks
from nic import PLAIN, Nic, finish, frame, frames

from pyvirtnet.testing import mask

FORMATS = {
    "split": 0,
    "split-events": EVENTS,
    "split-in_order": EVENTS | mask("in_order"),
    "packed": PACKED,
    "packed-events": PACKED | EVENTS,
    "packed-in_order": PACKED | EVENTS | mask("in_order"),
}
STARTS = [0, 0x7FFF, 0xFFF0, 0xFFFF]
each_format = pytest.mark.parametrize("features", FORMATS.values(), ids=FORMATS)


@each_format
@pytest.mark.parametrize("start", STARTS)
def test_waiting_is_woken_by_the_interrupt(features, start):
    """The device delivers once the driver has asked, and not before; again and again."""
    nic = Nic(offered=PLAIN | features, queue_sizes=(8, 8), start_index=start)
    device, pause = nic.device, threading.Event()

    def deliver_when_asked(number):
        while not asks(device.queues[0], features):
            pause.wait(0.0005)
        device.deliver(frame(60, number))

    for number in range(20):
        thread = threading.Thread(target=deliver_when_asked, args=(number,))
        thread.start()
        assert [bytes(one) for one in nic.port.recv_burst(8, timeout=None)] == frames(1, 60, number)
        thread.join()
        assert not asks(device.queues[0], features)
        assert device.interrupts[0] == number + 1
    finish(nic)


@pytest.mark.parametrize("features", [EVENTS, PACKED | EVENTS], ids=["split", "packed"])
def test_polling_asks_for_no_interrupt_ever(features):
    """used_event is moved on: it comes round after 65536 buffers, in either direction."""
    nic = Nic(offered=PLAIN | features, queue_sizes=(256, 256))
    content, done, sent = frames(256), 0, 0
    tx = nic.port.alloc_burst(256, 60)
    while min(done, sent) <= 1 << 16:
        done += nic.device.deliver_some(content)
        while len(nic.port.recv_burst(256)):
            pass
        sent += nic.port.send_burst(tx)
        nic.device.take()
        nic.device.complete()
    assert (nic.device.interrupts[0], nic.device.interrupts[1]) == (0, 0)
    finish(nic)
