"""Defects that were found, by what one saw of them."""

import copy
import ctypes
import gc
import mmap
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import tomllib
import weakref
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from nic import PLAIN, Nic, finish, frame, frames

import pyvirtnet
from pyvirtnet import OutOfMemory, PortClosed, _waiting, dma
from pyvirtnet._pcap import records
from pyvirtnet.arena import Arena
from pyvirtnet.dma import Memory
from pyvirtnet.testing import HostileDevice, Loopback, NetDevice, mask
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


class Interrupted:
    """A signal at the n-th access to a device's status."""

    def __init__(self, port, number, handler):
        device = port._transport.device
        inner = device.read_status

        def read_status():
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            return inner()

        self.left, self.device = number, device
        self.before = signal.signal(signal.SIGUSR1, lambda *_: handler())
        device.read_status = read_status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        del self.device.read_status
        signal.signal(signal.SIGUSR1, self.before)


@pytest.mark.parametrize("number", range(1, 8))
def test_a_reset_inside_a_reset_is_refused(number):
    with pyvirtnet.open("sim:loopback") as port:
        refused = []

        def again():
            try:
                port.reset()
            except pyvirtnet.QueueBusy as busy:
                refused.append(busy)

        with Interrupted(port, number, again):
            port.reset()
        assert len(refused) == 1
        port.send_burst([b"x" * 60])
        assert bytes(port.recv_burst(1)[0]) == b"x" * 60


@pytest.mark.parametrize("number", range(1, 8))
def test_a_close_inside_a_reset_comes_after_it(number):
    port = pyvirtnet.open("sim:loopback")
    with Interrupted(port, number, port.close):
        port.reset()
    with pytest.raises(pyvirtnet.PortClosed):
        port.recv_burst(1)


def test_a_close_that_ctrl_c_broke_off_can_be_repeated():
    port = pyvirtnet.open("sim:loopback")

    def interrupt():
        raise KeyboardInterrupt

    with Interrupted(port, 1, interrupt), pytest.raises(KeyboardInterrupt):
        port.close()
    port.close()
    assert port._transport.closed


def test_a_port_that_cannot_be_closed_keeps_no_other_open_at_exit():
    code = """
import pyvirtnet
ports = [pyvirtnet.open("sim:loopback") for _ in range(3)]
def broken(): raise OSError("stuck")
ports[1]._transport.reset = broken
import atexit
from pyvirtnet import life as module
atexit.unregister(module._close_all)
module._close_all()
print([p._transport.closed for p in ports])
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "[True, False, True]\n"
    assert "stuck" in done.stderr


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


def test_a_random_mac_stays_through_a_reset():
    with pyvirtnet.open("sim:loopback", features=["-mac"]) as port:
        mac = port.mac
        port.reset()
        assert port.mac == mac
        assert mac[0] & 3 == 2


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


def test_headers_that_a_device_wrote_over_are_zero_again_after_a_reset():
    """They are written once, when the port is opened, and never on the way of a frame."""
    device = HostileDevice(rate=0.0)
    nic = Nic(device)
    for seed in range(4):
        assert nic.port.send_burst(frames(4)) == 4
        device.misbehave("write_buffers_in_flight", seed)
        nic.port.reset()
        nic.port.send_burst(frames(64))
        assert device.take_with_headers() == [bytes(12) + one for one in frames(64)]
    nic.port.close()


def test_the_configuration_of_a_device_that_was_stopped_is_not_read():
    nic = Nic(NetDevice(mtu=9000))
    nic.device.need_reset()
    for look in (nic.port._look, lambda: nic.port.link, lambda: nic.port.link):
        with pytest.raises(pyvirtnet.DeviceBroken, match="asks to be reset"):
            look()
    assert nic.device.read_status() == 0
    assert nic.port.mtu == nic.port.info()["mtu"] == 9000
    nic.port.reset()
    assert nic.port.link.up
    nic.port.close()


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


def test_a_reset_that_waited_for_a_close_finds_the_port_closed():
    port = pyvirtnet.open("sim:loopback")
    device, failures = port._transport.device, []

    def reset():
        try:
            port.reset()
        except pyvirtnet.Error as error:
            failures.append(type(error))

    with port._care:  # as close() has it
        thread = threading.Thread(target=reset)
        thread.start()
        thread.join(0.1)
        port.close()
    thread.join()
    assert failures == [pyvirtnet.PortClosed]
    assert port.queues == ()
    assert device.read_status() == 0


def test_a_port_that_is_closed_while_memory_is_shown_keeps_it_from_no_other():
    class Port(dma.Mapper):
        def __init__(self, closes=None):
            self.closes, self.seen = closes, []

        def map(self, region):
            self.seen.append(region.iova)
            if self.closes is not None:
                thread = threading.Thread(target=memory.detach, args=(self.closes,))
                thread.start()
                thread.join(0.1)

        def unmap(self, iova, size):
            self.seen.remove(iova)

    memory = dma.Memory()
    first = Port()
    second, third = Port(closes=first), Port()
    for port in (first, second, third):
        memory.attach(port)
    region = memory.allocate(4096)
    assert third.seen == [region.iova]


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


def test_a_reset_to_another_format_may_fail_and_be_repeated():
    """The memory was taken for the format that was only tried."""
    nic = Nic(offered=PLAIN, ring_size=64)
    nic.device.offered |= mask("ring_packed", "indirect_desc")
    vars(nic.transport)["queue_max_size"] = lambda index: 1
    with pytest.raises(pyvirtnet.NotVirtioNet):
        nic.port.reset()
    del nic.transport.queue_max_size
    nic.port.reset()
    assert nic.port.info()["ring_format"] == "packed"
    nic.pass_through(frames(200))
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


def test_a_wait_that_begins_while_another_thread_closes_the_port(tmp_path):
    """It found the device's file descriptors closed, and ended in OSError; or closed and their
    numbers taken again, by a file or by the very thing that waits."""
    waker, closed, live = WakeUp(), os.eventfd(0), os.eventfd(0)
    os.close(closed)
    with open(tmp_path / "file", "wb") as file, select.epoll() as other:
        other.register(waker.fileno())
        waker.watch([closed, file.fileno(), waker.fileno(), other.fileno(), live])
        os.eventfd_write(live, 1)
        assert waker.sleep(20)
    waker.close()
    os.close(live)


def resets_beside_a_poller(reset, expected):
    """Many resets while another thread is in calls without rest, which raise nothing else."""
    nic, done, failed = Nic(offered=PLAIN | mask("ring_reset")), threading.Event(), []

    def poll():
        while not done.is_set():
            for call in (lambda: nic.port.recv_burst(1), lambda: nic.port.send_burst([])):
                try:
                    call()
                except expected:
                    pass
                except BaseException as error:
                    failed.append(error)

    thread, before = threading.Thread(target=poll), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(100):
            reset(nic.port)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(before)
    assert failed == []
    nic.pass_through(frames(300))
    finish(nic)


def test_a_reset_beside_a_thread_that_polls_without_rest():
    """It raised QueueBusy where a call had just begun that would have found the port down."""
    resets_beside_a_poller(pyvirtnet.Port.reset, pyvirtnet.PortClosed)


def test_a_pair_that_is_reset_beside_a_thread_that_polls_without_rest():
    """Its calls find nothing meanwhile, or hold it up; nothing else comes of it."""

    def reset(port):
        with suppress(pyvirtnet.QueueBusy):  # by a call that was under way
            port.queues[0].reset()

    resets_beside_a_poller(reset, ())


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

    threads = [threading.Thread(target=watch) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
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


def test_code_of_a_frame_that_closes_the_port(make_nic):
    """A pool that was given up, or inherited by a forked child, was still copied into."""
    nic = make_nic()

    class Closing(tuple):
        def __iter__(self):
            nic.port.close()
            return super().__iter__()

    with pytest.raises(PortClosed):
        nic.port.send_burst([Closing([frame(60)])])
    assert nic.port.stats.tx_frames == 0


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


class Absent(SimTransport):
    """A device that goes away and comes back."""

    reconnects, away = True, False

    def check(self):
        if self.away:
            raise pyvirtnet.DeviceGone("sim:absent is gone", "the test", "wait")
        super().check()

    def revive(self, patience=None):
        self.check()


def test_a_port_that_waits_for_its_device_keeps_nobodys_frames():
    """The error that it remembered had a traceback, and that the frames of all callers."""
    transport = Absent(Loopback(), "sim:absent")
    with pyvirtnet.Port(transport, reconnect=True) as port:

        def work():
            port.send_burst([bytes(600)])
            burst = port.recv_burst(4)
            assert len(burst) == 1
            transport.away = True
            while port._gone_at is None:
                port.recv_burst(1)
            return weakref.ref(burst)

        held = work()
        gc.collect()
        assert held() is None
        transport.away = False


class Stuck(Loopback):
    """A device that does not let itself be reset."""

    stuck = False

    def write_status(self, status):
        if not self.stuck or status:
            super().write_status(status)


def test_a_device_that_would_not_be_reset_keeps_its_memory():
    """Without an IOMMU it went on writing to pages that the kernel had given to others."""
    device = Stuck()
    with pyvirtnet.Port(SimTransport(device, "sim:stuck")) as port:
        region = weakref.ref(port._memory.region)
        device.stuck = True
        for _ in range(2):
            with pytest.raises(pyvirtnet.DeviceTimeout):
                port.reset()
        gc.collect()
        assert region() is not None
        device.stuck = False
        port.reset()
        gc.collect()
        assert region() is None
        assert port.send_burst([bytes(60)]) == 1


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_port_is_not_copied(duplicate):
    """The end of the copy closed the port."""
    with pyvirtnet.open("sim:loopback") as port:
        with pytest.raises(TypeError, match="a port is neither copied nor pickled"):
            duplicate(port)
        assert port.send_burst([bytes(60)]) == 1
