"""Memory is given back: by a closed port at once, by its bursts when they go. None grows."""

import gc
import os
import subprocess
import sys
import threading

import pytest
from nic import Nic
from vhost_fixtures import path, start

import pyvirtnet
from pyvirtnet import dma
from pyvirtnet.arena import Arena
from pyvirtnet.testing import SPOKEN

__all__ = ["path", "start"]  # fixtures


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
    waiter.join(60)
    assert ended


# ---- of the whole process


def test_two_ports_and_a_burst_stay_below_what_an_ordinary_user_may_lock(monkeypatch):
    """8 MiB (RLIMIT_MEMLOCK), of ordinary pages, with everything that the rings may have."""
    create = os.memfd_create

    def ordinary(name, flags):
        if flags & os.MFD_HUGETLB:
            raise OSError(12, "no huge pages")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", ordinary)
    before = regions()
    arena = Arena(dma.memory)
    for switches in ((), ("-ring_packed",)):
        nics = [Nic(offered=SPOKEN, mtu=1500, features=switches) for _ in range(2)]
        assert nics[0].port.info()["ring_format"] == ("split" if switches else "packed")
        block = arena.take(64 * 192)
        assert sum(region.size for region in regions() - before) <= 8 << 20
        del block
        for nic in nics:
            nic.port.close()


LIMIT_KIB = 64 << 10
GROWTH_KIB = 256

RESIDENT = """
import sys, pyvirtnet
from pyvirtnet.cli._soak_loop import resident
with pyvirtnet.open(sys.argv[1]) as port:
    received, held = 0, []
    while received < 3000:  # the whole pool, both ways
        port.send_burst([bytes(9014)] * 8)
        burst = port.recv_burst(64)
        received += len(burst)
        held = [*held[-20:], burst]
    assert port.info()["ring_sizes"] == [256, 256]
    print(resident())
"""


def measured(code: str, *arguments: str) -> list[int]:
    """What a fresh process prints."""
    command = [sys.executable, "-P", "-c", code, *arguments]
    return [int(word) for word in subprocess.check_output(command, text=True, timeout=120).split()]


@pytest.mark.unsanitized("its memory is mostly the sanitizer's")
def test_a_process_with_one_port_takes_64_mib_at_most():
    (kib,) = measured(RESIDENT, "sim:loopback")
    assert 10 << 10 < kib <= LIMIT_KIB


@pytest.mark.unsanitized("its memory is mostly the sanitizer's")
def test_and_over_vhost_user(path, start):
    start()
    (kib,) = measured(RESIDENT, f"vhost-user:{path}")
    assert 10 << 10 < kib <= LIMIT_KIB


GROWTH = """
from pyvirtnet.cli._bench_core_loop import Bed
from pyvirtnet.cli._soak_loop import descriptors, resident

bed = Bed()
port = bed.port
deliver, finish = bed._ends[0].deliver, bed._ends[1].finish
recv, send = port.recv_burst, port.send_burst

def forward(frames):
    for _ in range(frames // 64):
        for size in (60, 1514):
            deliver(32, size)
            burst = recv(32)
            burst.heads, burst.lengths, burst[3].frags, burst[1:]
            send(burst)
            finish()

forward(100_000)
before, held = resident(), descriptors()
forward(10_000_000)
assert port.stats.rx_frames == port.stats.tx_frames >= 10_000_000
print(resident() - before, descriptors() - held)
"""


def test_nothing_grows_over_ten_million_frames():
    growth, held = measured(GROWTH)
    assert growth <= GROWTH_KIB
    assert held == 0
