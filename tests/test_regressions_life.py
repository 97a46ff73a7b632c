"""Defects that were found in how a port is reset, waits for its device, and ends."""

import copy
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress

import pytest
from hurry import hurry
from nic import PLAIN, Nic, finish, frame, frames

import pyvirtnet
from pyvirtnet import PortClosed, dma
from pyvirtnet.testing import HostileDevice, Loopback, NetDevice, mask
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.wakeup import WakeUp


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


def test_a_random_mac_stays_through_a_reset():
    with pyvirtnet.open("sim:loopback", features=["-mac"]) as port:
        mac = port.mac
        port.reset()
        assert port.mac == mac
        assert mac[0] & 3 == 2


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

    thread = threading.Thread(target=poll)
    with hurry():
        thread.start()
        try:
            for _ in range(100):
                reset(nic.port)
        finally:
            done.set()
            thread.join()
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


def test_counters_add_up_at_every_step_of_a_reset(nic):
    """As another thread may look in between: pairs went from one list to another."""
    nic.pass_through(frames(5))
    seen = set()

    def look(*_):
        seen.add(nic.port.stats.rx_frames)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        nic.port.reset()
    finally:
        sys.settrace(before)
    assert seen == {5}


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
