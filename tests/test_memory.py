"""Memory is given back: by a closed port at once, by its bursts when they go."""

import gc
import threading

import pytest

import pyvirtnet
from pyvirtnet import dma


def regions():
    gc.collect()
    return set(dma.memory.regions())


def test_a_closed_port_that_is_still_referred_to_keeps_no_memory():
    before = regions()
    port = pyvirtnet.open("sim:loopback")
    assert len(regions() - before) == 1
    port.close()
    assert regions() <= before


def test_a_burst_keeps_the_memory_of_its_closed_port_until_it_goes():
    before = regions()
    port = pyvirtnet.open("sim:loopback")
    port.send_burst([b"x" * 3000])
    burst = port.recv_burst(1)
    port.close()
    assert bytes(burst[0]) == b"x" * 3000
    assert len(regions() - before) == 1
    del burst
    assert regions() <= before


def test_a_reset_port_keeps_its_region():
    with pyvirtnet.open("sim:loopback") as port:
        held = regions()
        port.reset()
        assert regions() == held
        port.send_burst([b"y" * 60])
        assert bytes(port.recv_burst(1)[0]) == b"y" * 60


def test_close_wakes_a_thread_that_waits_for_frames():
    port = pyvirtnet.open("sim:loopback")
    ended = []

    def wait():
        with pytest.raises(pyvirtnet.PortClosed, match="was closed"):
            port.recv_burst(1, timeout=None)
        ended.append(True)

    waiter = threading.Thread(target=wait)
    waiter.start()
    while True:  # until the other thread is inside
        try:
            port.recv_burst(1)
        except pyvirtnet.QueueBusy:
            break
    port.close()
    waiter.join(5)
    assert ended
