"""Short of head slots or pages: who waits sleeps, who sends is not refused."""

import threading

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.testing import Loopback
from pyvirtnet.transport.sim import SimTransport


def test_who_waits_sleeps_while_every_head_slot_is_held():
    """It looked millions of times a second."""
    with pyvirtnet.open("sim:loopback", ring_size=32) as port:
        kept = []
        while port.stats.rx_no_slots == 0:
            port.send_burst([bytes(60)] * 8)
            kept.append(port.recv_burst(8))
        before = port.stats.rx_no_slots
        assert len(port.recv_burst(8, timeout=0.3)) == 0
        assert port.stats.rx_no_slots - before < 1000
        release = threading.Timer(0.1, kept.clear)
        release.start()
        assert len(port.recv_burst(8, timeout=30)) > 0
        release.join()


class Sending(Loopback):
    """A device whose receive doorbell lets another caller send and reclaim."""

    port: Port | None = None

    def kick(self, index):
        if index == 0 and self.port is not None:
            self.port.send_burst([bytes(60)])
            self.port.reclaim()
        super().kick(index)


def test_who_sends_is_not_refused_while_the_receiver_takes_back_pages():
    """QueueBusy, with one thread that received and one that sent."""
    device = Sending()
    with Port(SimTransport(device, "sim:sending"), ring_size=32, pages=34) as port:
        device.port, kept = port, []
        frames = port.alloc_burst(4, 600)
        for _ in range(100):
            port.send_burst(frames)
            kept.append(port.recv_burst(4))
            if port.stats.rx_no_pages % 8 == 7:
                kept.clear()
        assert port.stats.rx_no_pages > 8
        device.port = None
