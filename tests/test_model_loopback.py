"""Loopback and cables of the device model, and the simulator transport over them."""

import gc
import os
import random
import threading
import weakref

import pytest
from model_driver import Driver

import pyvirtnet
from pyvirtnet import dma
from pyvirtnet.errors import DeviceBusy, DeviceGone, NoSuchDevice
from pyvirtnet.testing import DEFAULT_FEATURES, Cable, Loopback, NetDevice, Violation, mask
from pyvirtnet.transport.base import QueueAddresses
from pyvirtnet.transport.sim import SimTransport, open_sim

STARTS = pytest.mark.parametrize("start_index", [0, 0xFFF0])
PLAIN = DEFAULT_FEATURES & ~mask("mrg_rxbuf")


def numbered(first, count):
    return [at.to_bytes(60, "big") for at in range(first, first + count)]


# ---- loopback ----------------------------------------------------------------------------


@STARTS
@pytest.mark.parametrize("merge", ["fill", "random"])
def test_what_is_sent_comes_back(merge, start_index):
    device = Loopback(queue_sizes=(64, 64), merge=merge, start_index=start_index)
    driver = Driver(device, size=64).up()
    rng = random.Random(4)
    sent, received = [], []
    for _ in range(400):
        driver.post(len(driver.rx.free))
        count = rng.randint(0, len(driver.tx.free))
        frames = [rng.randbytes(rng.choice([14, 60, 1514, 4085])) for _ in range(count)]
        driver.send(*frames)
        sent += frames
        driver.tx.reap()
        received += driver.receive()
    while len(received) < len(sent):
        driver.post(len(driver.rx.free))
        fresh = driver.receive()
        assert fresh, "frames are missing"
        received += fresh
    assert received == sent
    device.check()


def test_frames_wait_for_receive_buffers_in_order():
    device = Loopback(queue_sizes=(8, 8), backlog=4)
    driver = Driver(device).up()
    driver.send(*numbered(0, 7))
    assert len(driver.tx.reap()) == 4, "the backlog is bounded; what is beyond it stays"
    driver.post(2)
    assert driver.receive() == numbered(0, 2)
    assert len(driver.tx.reap()) == 2
    driver.post(8)
    assert driver.receive() == numbered(2, 5)
    assert len(driver.tx.reap()) == 1
    assert device.poll() == 0


def test_buffers_posted_without_a_kick_serve_the_next_poll():
    device = Loopback(queue_sizes=(8, 8))
    driver = Driver(device).up()
    driver.send(*numbered(0, 3))
    driver.post(3, kick=False)
    assert driver.receive() == []
    assert device.poll() == 3
    assert driver.receive() == numbered(0, 3)
    assert device.missed_kicks() == [0]


def test_a_frame_that_fits_no_unmerged_buffer_is_dropped_and_counted():
    device = Loopback(queue_sizes=(8, 8))
    driver = Driver(device, features=PLAIN).up()
    driver.post(3)
    driver.send(bytes(60), bytes(4085), bytes(61))
    assert driver.receive() == [bytes(60), bytes(61)]
    assert device.wires[0].dropped == 1


def test_a_violation_in_the_loop_is_not_lost():
    device = Loopback(queue_sizes=(8, 8))
    driver = Driver(device).up()
    with pytest.raises(Violation, match="a frame has 14"):
        driver.send(bytes(13))
    with pytest.raises(Violation, match="a frame has 14"):
        device.check()
    assert len(device.violations) == 1


def test_a_cable_carries_both_ways():
    left, right = (Driver(NetDevice(queue_sizes=(8, 8), seed=seed)) for seed in (1, 2))
    cable = Cable(left.device, right.device)
    left.up()
    left.post(8)
    left.send(*numbered(0, 3))
    right.up()
    right.post(8)
    right.send(*numbered(9, 2))
    assert right.receive() == numbered(0, 3)
    assert left.receive() == numbered(9, 2)
    assert [wire.carried for wire in cable.wires] == [3, 2]
    left.device.check()
    right.device.check()


# ---- the simulator transport -------------------------------------------------------------


@pytest.fixture
def sim():
    transport = open_sim("sim:loopback?queue_size=8&event_idx=off")
    yield transport
    transport.close()


def bring_up(transport, region):
    transport.reset()
    for bits in (1, 2):
        transport.add_status(bits)
    transport.accept_features(transport.offered_features())
    transport.add_status(8)
    assert transport.status() == 11
    bells = []
    for index in (0, 1):
        base = region.iova + index * 0x1000
        bells.append(transport.setup_queue(index, QueueAddresses(8, base, base + 256, base + 512)))
    transport.add_status(4)
    return bells


def test_a_transport_over_a_loopback(sim):
    region = dma.memory.allocate(1 << 16)
    bells = bring_up(sim, region)
    assert [(bell.kind, bell.value) for bell in bells] == [("call", 0), ("call", 1)]
    assert sim.read_config(0, 6) == bytes.fromhex("020000000001")
    assert sim.queue_max_size(1) == 8
    assert sim.queue_max_size(2) == 0
    late = dma.memory.allocate(1 << 16)  # memory that comes after the device went live
    memory, data = region.buffer(), late.buffer()
    data[12:72] = bytes(range(60))
    for index, (address, length, flags) in enumerate(
        [(late.iova + 4096, 4096, 2), (late.iova, 72, 0)]
    ):
        at = index * 0x1000
        memory[at : at + 8] = address.to_bytes(8, "little")
        memory[at + 8 : at + 12] = length.to_bytes(4, "little")
        memory[at + 12] = flags
        memory[at + 256 + 2] = 1
        fd = sim.interrupt_fd(index)
        bells[index].target(bells[index].value)
        assert os.get_blocking(fd) is False
    assert bytes(data[4096 : 4096 + 72]) == bytes(10) + b"\1\0" + bytes(range(60))
    assert os.eventfd_read(sim.interrupt_fd(0)) == 1
    sim.device.set_link(False)
    assert sim.interrupt_fd(None) not in (sim.interrupt_fd(0), sim.interrupt_fd(1))
    sim.device.check()


def test_a_reset_device_keeps_no_memory(sim):
    region = dma.memory.allocate(1 << 16)
    bring_up(sim, region)
    sim.reset()
    gone, mapped = weakref.ref(region), weakref.ref(region._map)
    del region
    gc.collect()
    assert gone() is None
    assert mapped() is None
    sim.device.check()


@pytest.mark.rule("BAS-042")
def test_memory_freed_under_a_live_device_is_a_violation(sim):
    region = dma.memory.allocate(1 << 16)
    bring_up(sim, region)
    del region
    gc.collect()
    with pytest.raises(Violation, match="unmapped after the device is reset"):
        sim.device.check()


def test_a_closed_transport():
    transport = open_sim("sim:loopback")
    fd = transport.interrupt_fd(0)
    transport.close()
    transport.close()
    with pytest.raises(DeviceGone):
        transport.status()
    with pytest.raises(OSError):
        os.eventfd_read(fd)
    assert transport not in dma.memory._mappers


def test_a_device_of_the_tests_own():
    device = NetDevice(queue_sizes=(4, 4), start_index=0xFFF0)
    transport = SimTransport(device=device)
    assert transport.start_index == 0xFFF0
    assert transport.device is device
    transport.close()


def test_options_of_the_address():
    address = (
        "sim:loopback?mrg_rxbuf=off&csum=on&mtu=1500&queue_size=64&start=0xfff0&seed=3"
        "&merge=random&mac=02:00:00:00:00:09&link=off&fill=off&pairs=2&strict_kicks=off"
    )
    transport = open_sim(address)
    device = transport.device
    try:
        assert transport.name == address
        assert device.offered == PLAIN | mask("csum", "mtu", "ctrl_vq", "mq")
        assert (device.mtu, device.start_index, device.fill) == (1500, 0xFFF0, False)
        assert [transport.queue_max_size(at) for at in range(5)] == [64, 64, 64, 64, 0]
        assert device.config[:12] == bytes.fromhex("020000000009 0000 0200 dc05")
    finally:
        transport.close()


@pytest.mark.parametrize("batch", ["random", "all", "none"])
def test_packed_rings_of_any_size_in_the_address(batch):
    address = f"sim:loopback?ring_packed=on&in_order=on&queue_size=100&used_batch={batch}"
    with pyvirtnet.open(address) as port:
        assert port.info()["ring_sizes"] == [100, 100]
        sent = numbered(0, 50)
        assert port.send_burst(sent) == 50
        assert [bytes(frame) for frame in port.recv_burst(64)] == sent


def test_an_end_that_is_plugged_in_leaves_the_other_its_lock():
    """Another thread may be in a call of that end, and two were: a chain was looked at twice."""
    left = open_sim("sim:cable/lock/0")
    before = left.device.lock
    with before:  # as that thread has it
        done = []
        thread = threading.Thread(target=lambda: done.append(open_sim("sim:cable/lock/1")))
        thread.start()
        thread.join(0.05)
        assert left.device.lock is before
        assert left.device.on_kick is None
    thread.join()
    assert left.device.lock is done[0].device.lock is before
    assert left.device.on_kick == done[0].device.on_kick
    left.close()
    done[0].close()


def test_both_ends_of_a_cable():
    left = open_sim("sim:cable/test/0?queue_size=8&backlog=3")
    with pytest.raises(DeviceBusy):
        open_sim("sim:cable/test/0")
    right = open_sim("sim:cable/test/1?queue_size=8&mac=02:00:00:00:00:02")
    assert left.device is not right.device
    a, b = Driver(left.device), Driver(right.device)
    a.up().send(*numbered(0, 5))
    b.up().post(8)
    assert b.receive() == numbered(0, 5)
    right.close()
    again = open_sim("sim:cable/test/1?queue_size=8")
    c = Driver(again.device).up()
    c.post(8)
    a.send(*numbered(5, 2))
    assert c.receive() == numbered(5, 2)
    left.close()
    again.close()


@pytest.mark.parametrize(
    "address", ["sim:", "sim:other", "sim:loopback?nonsense=on", "sim:loopback?mtu=big",
                "sim:loopback?mrg_rxbuf=maybe", "sim:loopback?merge=odd",
                "sim:loopback?used_batch=odd", "sim:loopback?mac=02",
                "sim:loopback?queue_size=100", "sim:loopback?start=65536", "sim:cable/x/2",
                "sim:cable//0", "sim:loopback?pairs=0"],
)  # fmt: skip
def test_addresses_that_name_nothing(address):
    with pytest.raises(NoSuchDevice, match="mend: "):
        open_sim(address)
