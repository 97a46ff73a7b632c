"""Defects that were found, by what one saw of them; test_regressions_life.py has those of ports."""

import ctypes
import mmap
import os
import select
import struct
import threading
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
from hurry import side_by_side
from nic import PLAIN, Nic, finish, frame, frames

import pyvirtnet
from pyvirtnet import OutOfMemory, _waiting, dma
from pyvirtnet._pcap import records
from pyvirtnet.arena import Arena
from pyvirtnet.dma import Memory
from pyvirtnet.testing import Loopback, mask
from pyvirtnet.testing.memory import publish
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.wakeup import WakeUp


def test_the_queues_of_a_port_cannot_be_taken_from_it():
    with pyvirtnet.open("sim:loopback") as port:
        assert isinstance(port.queues, tuple)
        with pytest.raises(AttributeError):
            port.queues = ()
        send = port.send_burst
    with pytest.raises(pyvirtnet.PortClosed):
        send([bytes(60)])


@pytest.mark.parametrize("start", [0, 20, 0x7FE5])
@pytest.mark.parametrize("reclaimed", [True, False])
def test_a_device_that_goes_on_without_moving_its_event_is_kicked(start, reclaimed):
    """QEMU's does with packed rings: frames stopped for good once its receiver had been full."""
    nic = Nic(
        offered=PLAIN | mask("ring_packed", "event_idx"), queue_sizes=(32, 32), start_index=start
    )
    queue = nic.device.queues[1]
    event = bytes(queue._device_area)  # the next descriptor is to be announced
    assert nic.port.send_burst(frames(13)) == 13
    assert nic.device.kicks[1] == 1
    nic.device.take()
    nic.device.complete()
    publish(queue._device_area, 0, event)
    if reclaimed:
        nic.port.reclaim()
    assert nic.port.send_burst(frames(5, first=13)) == 5
    assert nic.device.kicks[1] == 2
    finish(nic)


@pytest.mark.parametrize("name", ["recv_burst", "send_burst", "reclaim"])
def test_a_call_through_the_class_says_that_the_port_is_closed(name):
    """It was an IndexError: a stopped port has no queues."""
    arguments = {"recv_burst": [1], "send_burst": [[bytes(60)]], "reclaim": []}[name]
    with pyvirtnet.open("sim:loopback") as port:
        getattr(pyvirtnet.Port, name)(port, *arguments)
    with pytest.raises(pyvirtnet.PortClosed, match="was closed"):
        getattr(pyvirtnet.Port, name)(port, *arguments)


def test_a_call_through_the_class_says_that_the_device_is_gone():
    nic = Nic()
    nic.device.ask_for_reset()
    with pytest.raises(pyvirtnet.DeviceBroken):
        nic.port._look()
    with pytest.raises(pyvirtnet.DeviceBroken):
        pyvirtnet.Port.recv_burst(nic.port, 1)
    nic.port.reset()
    assert len(pyvirtnet.Port.recv_burst(nic.port, 1)) == 0
    finish(nic)


def test_a_frame_that_the_pool_can_never_hold_is_refused():
    with pyvirtnet.open("sim:loopback", pages=8) as port:
        with pytest.raises(ValueError, match="needs 16 pages"):
            port.send_burst([bytes(65535)])
        assert port.send_burst([bytes(60)]) == 1


@pytest.mark.rule("NET-024")
@pytest.mark.parametrize("small", [{"ring_size": 2}, {"pages": 1}])
def test_an_mtu_that_the_receive_ring_cannot_hold_is_declined(small):
    with pyvirtnet.open("sim:loopback?mtu=65535", **small) as port:
        assert pyvirtnet.Feature.MTU not in port.features.negotiated
    with pyvirtnet.open("sim:loopback?mtu=65535") as port:
        assert pyvirtnet.Feature.MTU in port.features.negotiated


def test_calls_without_pages_are_counted_once():
    with pyvirtnet.open("sim:loopback", ring_size=4, pages=4) as port:
        assert port.send_burst(port.alloc_burst(4, 1000)) == 4
        burst = port.recv_burst(4)  # this call reclaims what was sent, and looks for pages again
        assert len(burst) == 4
        assert port.stats.tx_reclaimed == 4
        assert port.stats.rx_no_pages == 1


def test_bus_addresses_are_used_again_when_they_have_run_out(monkeypatch):
    memory = dma.Memory()
    monkeypatch.setattr(dma, "END_IOVA", dma.FIRST_IOVA + 4 * dma.HUGE_PAGE)
    kept = memory.allocate(4096)
    seen = {kept.iova}
    for _ in range(10):
        region = memory.allocate(4096)
        assert region.iova != kept.iova
        seen.add(region.iova)
        del region
    assert len(seen) == 4


@pytest.mark.parametrize("address", [None, 5, b"sim:loopback"])
def test_an_address_that_is_no_string_is_a_type_error(address):
    with pytest.raises(TypeError, match="string"):
        pyvirtnet.open(address)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_is_no_negative_time(timeout):
    with pyvirtnet.open("sim:loopback") as port, pytest.raises(ValueError, match="timeout"):
        port.recv_burst(1, timeout=timeout)


def test_the_version_is_the_package_s():
    with open(Path(__file__).parent.parent / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["version"] == pyvirtnet.__version__


def test_memory_taken_by_a_signal_handler_in_the_middle_of_taking():
    class Source:
        def __init__(self):
            self.calls = 0

        def allocate(self, size):
            self.calls += 1
            if self.calls == 1:
                inner.append(arena.take(100))  # as a handler would, under the same lock
            return dma.memory.allocate(size)

    inner = []
    arena = Arena(Source())
    outer = arena.take(100)
    assert outer.address != inner[0].address
    assert outer._region is not inner[0]._region
    inner.clear()
    again = arena.take(100)
    assert again._region is outer._region
    assert again.address != outer.address


@pytest.mark.parametrize(("frames", "size"), [(1.5, 60), (2, 60.0), ("2", 60), (None, 60)])
def test_a_burst_of_no_whole_number_of_frames_is_a_type_error(frames, size):
    with pyvirtnet.open("sim:loopback") as port, pytest.raises(TypeError):
        port.alloc_burst(frames, size)


@pytest.mark.parametrize("step", [1 << 62, -(1 << 62), 2])
def test_a_slice_of_one_frame_has_the_stride_of_its_neighbours(step):
    with pyvirtnet.open("sim:loopback") as port:
        burst = port.alloc_burst(4, 60)
        for one in (burst[2::step][:1], burst[2:2:step], burst[2:3:step][::step]):
            assert one.data.strides == burst.data.strides or len(one) == 0
            assert one.lengths.strides == (4,)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_runt_in_a_wait_is_not_the_last_interrupt(monkeypatch, ring):
    """With EVENT_IDX the wish was for an interrupt at the entry that the runt had taken."""
    extra = ("ring_packed",) if ring == "packed" else ()
    nic = Nic(offered=PLAIN | mask("event_idx", *extra))
    woken = []

    class Poll:
        def __init__(self):
            self.inner = real()
            self.register = self.inner.register

        def poll(self, milliseconds):
            nic.device.deliver(frame(60))
            woken.append(bool(self.inner.poll(0)))
            return woken[-1]

    real = select.poll
    monkeypatch.setattr(select, "poll", Poll)
    nic.device.deliver(b"runt")
    assert [bytes(one) for one in nic.port.recv_burst(8, timeout=None)] == [frame(60)]
    assert woken == [True]
    finish(nic)


def test_a_driver_in_another_process_sees_no_half_of_a_model_s_index():
    """Struct.pack_into clears what it writes first: used indices were 0 for a moment."""
    shared = mmap.mmap(-1, 4096)
    low, high = 0x4000, 0x7FFF
    view = memoryview(shared)
    publish(view, 2, low.to_bytes(2, "little"))
    child = os.fork()
    if child == 0:
        for count in range(300_000):
            publish(view, 2, (low + count % (high - low)).to_bytes(2, "little"))
        os._exit(0)
    word, seen = ctypes.c_uint16.from_buffer(shared, 2), set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        seen.update([word.value for _ in range(1000)])
    assert len(seen) > 1
    assert low <= min(seen) <= max(seen) < high


def test_a_frame_whose_header_asks_for_nothing_may_fill_the_ring():
    """It was refused for good, as one piece too long, while the ring held another."""
    nic = Nic(offered=PLAIN | mask("csum", "guest_csum"), features=["+csum"], queue_sizes=(4, 4))
    nic.device.deliver(frame(3 * 4096 - 12))  # a head and three fragments
    burst = nic.port.recv_burst(1)
    assert not burst.offload["flags"].any()
    assert [nic.port.send_burst(burst) for _ in range(2)] == [1, 0]
    assert nic.transmitted() == [bytes(burst[0])]
    assert nic.port.send_burst(burst) == 1
    del burst
    finish(nic)


def test_a_record_that_keeps_nothing_of_its_frame_tells_its_length():
    """In pcapng, what fills a frame up to whole words overwrote it."""
    with pyvirtnet.open("sim:loopback") as port:
        port.send_burst([frame(60)])
        block = records(port.recv_burst(1), 0, 0, ng=True)
    assert struct.unpack_from("=6I", block, 8) == (0, 0, 0, 0, 60, 32)


def test_two_threads_that_say_at_once_what_wakes_a_sleeper():
    """One fell asleep, the other brought the device back: FileExistsError for the sleeper."""
    waker, errors = WakeUp(), []
    fds = [os.eventfd(0) for _ in range(8)]

    def watch():
        try:
            for _ in range(500):
                waker.watch(fds)
        except OSError as error:
            errors.append(error)

    side_by_side(*[watch] * 4)
    assert errors == []
    waker.drain()
    os.eventfd_write(fds[-1], 1)
    assert waker.sleep(0)
    waker.close()
    for fd in fds:
        os.close(fd)


def test_a_reset_in_the_middle_of_watching(make_nic, monkeypatch):
    """A signal handler's, in the same thread: it waited for itself."""
    nic, add, added = make_nic(), WakeUp._add, []

    def add_and_reset(waker, fd):
        add(waker, fd)
        added.append(fd)
        if len(added) == 2:  # after the eventfd of its own
            nic.port.reset()

    monkeypatch.setattr(WakeUp, "_add", add_and_reset)
    nic.port.fileno()
    assert len(added) > 2
    assert woken(nic)


def test_a_file_descriptor_that_was_not_to_be_had(make_nic, monkeypatch):
    """recv_burst ended in AttributeError from then on."""
    nic = make_nic()
    with monkeypatch.context() as patch:
        patch.setattr(_waiting, "WakeUp", Mock(side_effect=OutOfMemory("no", "more", "files")))
        with pytest.raises(OutOfMemory):
            nic.port.fileno()
    assert len(nic.port.recv_burst(1)) == 0
    assert woken(nic)


def test_two_threads_that_ask_for_the_file_descriptor_at_once(make_nic, monkeypatch):
    """The one's number was closed as soon as the other had its own."""
    nic, numbers = make_nic(), []

    def make():
        if not numbers:  # as if the other came here
            numbers.append(-1)
            numbers.append(nic.port.fileno())
        return WakeUp()

    monkeypatch.setattr(_waiting, "WakeUp", make)
    assert nic.port.fileno() == numbers[1]
    assert woken(nic)


def test_watching_that_was_interrupted(make_nic, monkeypatch):
    """By Ctrl-C: nothing ever woke a sleeper again."""
    nic = make_nic()
    with monkeypatch.context() as patch:
        patch.setattr(WakeUp, "watch", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            nic.port.fileno()
    nic.port.fileno()
    assert woken(nic)


def woken(nic):
    """Does a frame make the port readable, once nothing is there?"""
    number = nic.port.fileno()
    assert len(nic.port.recv_burst(1)) == 0
    quiet = not select.select([number], [], [], 0)[0]
    assert nic.device.deliver(frame(60))
    return quiet and bool(select.select([number], [], [], 10)[0])


@pytest.mark.parametrize("another", [False, True], ids=["this thread", "another"])
def test_memory_that_comes_back_while_more_is_taken(monkeypatch, another):
    """It was nobody's until the next time something was taken: DMA memory that nobody has."""
    source = Memory()
    arena = Arena(source)
    blocks = [arena.take(64), arena.take(1 << 22)]
    allocate = source.allocate

    def drop_and_allocate(size):
        drop = threading.Thread(target=blocks.clear) if another else None
        if drop is None:
            blocks.clear()
        else:
            drop.start()
            drop.join()
        return allocate(size)

    monkeypatch.setattr(source, "allocate", drop_and_allocate)
    block = arena.take(1 << 23)
    assert not arena._returned
    assert [region.size for region in source.regions()] == [1 << 23]
    del block


class Hurried(Loopback):
    """A device whose transmit doorbell Ctrl-C comes before, once."""

    kicks = 0

    def kick(self, index):
        if index == 1:
            self.kicks += 1
            if self.kicks == 2:
                raise KeyboardInterrupt
        super().kick(index)


@pytest.mark.parametrize("ring", [PLAIN, PLAIN | mask("ring_packed")], ids=["split", "packed"])
def test_a_doorbell_that_is_interrupted_rings_with_the_next_call(ring):
    """The device was asleep for good: no later frame is the one that it wants to be woken for."""
    device = Hurried(features=ring | mask("event_idx"))
    with pyvirtnet.Port(SimTransport(device, "sim:interrupted")) as port:
        assert port.send_burst([bytes(60)]) == 1
        with pytest.raises(KeyboardInterrupt):
            port.send_burst([bytes(61)])
        port.send_burst([])
        assert device.kicks == 3
        assert [len(frame) for frame in port.recv_burst(4)] == [60, 61]
