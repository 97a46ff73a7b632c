"""No wake-up is missed: a device in a thread of its own, and a driver that sleeps for each frame.

PYVIRTNET_WAKE_UPS=1000000 makes it as many.
"""

import os
import select
import threading
from dataclasses import replace

import numpy as np
import pytest
from nic import PLAIN, Nic

from pyvirtnet import _queue, dma
from pyvirtnet.testing import NetDevice, mask
from pyvirtnet.testing._instant import InstantPackedQueue, InstantQueue
from pyvirtnet.transport.sim import SimTransport

ROUNDS = int(os.environ.get("PYVIRTNET_WAKE_UPS") or 20_000)
PATIENCE = 30.0  # seconds: a sleep that lasts so long has missed its wake-up
FORMATS = {
    "split": 0,
    "split-events": mask("event_idx"),
    "packed": mask("ring_packed"),
    "packed-events": mask("ring_packed", "event_idx"),
}
pytestmark = pytest.mark.timeout(max(300, ROUNDS // 2000))


class WithEnd(SimTransport):
    """Keeps an instant device's end of the receive queue."""

    def setup_queue(self, index, addresses):
        bell = super().setup_queue(index, addresses)
        if index == 0:  # of which the model sees no more
            bell = replace(bell, target=lambda _: None)
            (region,) = (
                r for r in dma.memory.regions() if r.iova <= addresses.descriptors < r.iova + r.size
            )
            offset = region.address - region.iova
            parts = (addresses.descriptors, addresses.driver, addresses.device)
            kind = (
                InstantPackedQueue if self.device.accepted & mask("ring_packed") else InstantQueue
            )
            self.end = kind(
                *(part + offset for part in parts),
                addresses.size,
                offset,
                self.start_index,
                events=bool(self.device.accepted & mask("event_idx")),
            )
        return bell


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def port(request, monkeypatch):
    monkeypatch.setattr("nic.SimTransport", WithEnd)
    device = NetDevice(
        features=PLAIN | request.param, queue_sizes=(16, 16), start_index=0xFFF0, fill=False
    )
    nic = Nic(device)
    yield nic.port
    nic.port.close()


def select_then_receive(port):
    """What a loop over select does; how many frames came."""
    waiter = select.poll()
    waiter.register(port, select.POLLIN)
    while not (count := len(port.recv_burst(8))):
        assert waiter.poll(PATIENCE * 1000), "a wake-up was missed"
    return count


def wait(port):
    count = len(port.recv_burst(8, timeout=PATIENCE))
    assert count, "a wake-up was missed"
    return count


@pytest.mark.rule("SPL-036", "PKD-038")
@pytest.mark.parametrize("sleep", [select_then_receive, wait])
def test_no_wake_up_is_missed(port, sleep, monkeypatch):
    monkeypatch.setattr(_queue, "SLICE_SECONDS", 2 * PATIENCE)
    received, interrupts = np.zeros(1, np.uint64), []
    transport = port._transport
    interrupt = transport.interrupt_fd(0)
    device = threading.Thread(
        target=lambda: interrupts.append(transport.end.wake(received, ROUNDS, interrupt, 2026))
    )
    device.start()
    total = 0
    try:
        while total < ROUNDS:
            total += sleep(port)
            received[0] = total
    finally:
        received[0] = np.iinfo(np.uint64).max
        device.join()
    assert total == ROUNDS
    print(f"{ROUNDS} frames, {interrupts[0]} interrupts")
    assert interrupts[0] > 0
