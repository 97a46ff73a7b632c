"""Waiting: for frames by a timeout or a file descriptor, for news of the device; and its end."""

import os
import select
import selectors
import signal
import threading
import time

import pytest
from later import Later
from nic import PLAIN, Nic, frame, frames
from test_fork import in_child
from vhost_fixtures import SECONDS, open_port, path, start, until

import pyvirtnet
from pyvirtnet import (
    DeviceBroken,
    DeviceGone,
    Event,
    FeatureMissing,
    Link,
    NeedsReset,
    PortClosed,
    _queue,
)
from pyvirtnet.testing import Loopback, NetDevice, mask
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.wakeup import WakeUp

__all__ = ["path", "start"]  # fixtures

FORMATS = {
    "split": 0,
    "split-events": mask("event_idx"),
    "packed": mask("ring_packed"),
    "packed-events": mask("ring_packed", "event_idx"),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def nic(request, make_nic):
    return make_nic(offered=PLAIN | request.param, queue_sizes=(16, 16))


def readable(source, seconds=0):
    return bool(select.select([source], [], [], seconds)[0])


def asleep(nic, index=0):
    """Does the driver ask this queue's device for an interrupt, in a ring without EVENT_IDX?"""
    return not nic.device.queues[index]._avail[0] & 1


# ---- file descriptors ----------------------------------------------------------------------------


def test_readable_until_nothing_is_found(nic):
    """Past every wrap of the ring."""
    port, wait = nic.port, nic.port.fileno()
    assert len(port.recv_burst(8)) == 0
    for turn in range(100):
        assert not readable(wait)
        assert nic.device.deliver(*frames(5, 60, turn))
        assert readable(wait)
        assert len(port.recv_burst(3)) == 3
        assert readable(wait)
        assert len(port.recv_burst(3)) == 2
        assert len(port.recv_burst(3)) == 0
        assert port.fileno() == wait


def test_frames_that_came_before_anybody_asked(nic):
    nic.device.deliver(*frames(3))
    assert readable(nic.port)
    assert len(nic.port.recv_burst(8)) == 3
    assert len(nic.port.recv_burst(8)) == 0
    assert not readable(nic.port)


def test_runts_alone_wake_again(nic):
    """With EVENT_IDX the entry that interrupts is one of theirs: it is asked for again."""
    port = nic.port
    port.fileno()
    assert len(port.recv_burst(8)) == 0
    for turn in range(50):
        nic.device.deliver(frame(5))
        assert readable(port)
        assert len(port.recv_burst(8)) == len(port.recv_burst(8)) == 0
        assert not readable(port), turn
    nic.device.deliver(frame(60))
    assert readable(port)
    assert len(port.recv_burst(8)) == 1


def test_runts_alone_during_a_wait(nic):
    port, wait = nic.port, nic.port.fileno()
    for _ in range(50):
        nic.device.deliver(frame(5))
        assert len(port.recv_burst(8, timeout=0.0001)) == 0
    nic.device.deliver(frame(60))
    assert readable(wait)
    assert len(port.recv_burst(8)) == 1


def test_who_polls_a_busy_port_is_not_interrupted(make_nic):
    """Interrupts are asked for when nothing is found, and taken back with the next frame."""
    nic = make_nic()
    nic.port.fileno()
    assert len(nic.port.recv_burst(8)) == 0
    assert asleep(nic)
    nic.device.deliver(*frames(20))
    assert len(nic.port.recv_burst(8)) == 8
    assert not asleep(nic)
    before = nic.device.interrupts[0]
    nic.device.deliver(*frames(20))
    assert nic.device.interrupts[0] == before
    assert len(nic.receive()) == 32
    assert asleep(nic)


def test_nobody_asked_for_a_descriptor(make_nic):
    """Then polling asks for no interrupts."""
    nic = make_nic()
    assert len(nic.port.recv_burst(8)) == 0
    assert not asleep(nic)
    assert len(nic.port.recv_burst(8, timeout=0.001)) == 0
    assert not asleep(nic)


@pytest.mark.parametrize(
    "kind", [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector]
)
def test_every_selector(make_nic, kind):
    one, other = make_nic(), make_nic()
    with kind() as selector:
        for nic in (one, other):
            selector.register(nic.port, selectors.EVENT_READ, nic)
            nic.receive()
        assert selector.select(0) == []
        for nic in (one, other, one):
            nic.device.deliver(frame(60))
            assert [key.data for key, _ in selector.select(SECONDS)] == [nic]
            assert nic.receive() == [frame(60)]
            assert selector.select(0) == []


def test_each_pair_has_its_own(make_nic):
    offered = PLAIN | mask("mq", "ctrl_vq")
    nic = make_nic(offered=offered, queue_sizes=(16,) * 6, queue_pairs=3)
    queues = nic.port.queues
    assert queues[0].fileno() == nic.port.fileno()
    assert len({queue.fileno() for queue in queues}) == 3
    for queue in queues:
        assert len(queue.recv_burst(1)) == 0
    for at, queue in enumerate(queues):
        nic.device.deliver(frame(60), pair=at)
        assert [readable(one) for one in queues] == [one is queue for one in queues]
        assert (len(queue.recv_burst(8)), len(queue.recv_burst(8))) == (1, 0)


class OneVector(SimTransport):
    """A device with one interrupt for everything, as PCI functions with short tables."""

    def interrupt_fd(self, index):
        return super().interrupt_fd(None)

    def _interrupt(self, index):
        super()._interrupt(None)


def test_queues_that_share_an_interrupt_are_all_woken(monkeypatch):
    monkeypatch.setattr("nic.SimTransport", OneVector)
    offered = PLAIN | mask("mq", "ctrl_vq")
    nic = Nic(offered=offered, queue_sizes=(16,) * 6, queue_pairs=3)
    queues = nic.port.queues
    for queue in queues:
        queue.fileno()
        assert len(queue.recv_burst(1)) == 0
    for turn in range(30):
        nic.device.deliver(frame(60), pair=turn % 3)
        assert all(readable(queue) for queue in queues)
        assert sum(len(queue.recv_burst(8)) for queue in queues) == 1
        assert sum(len(queue.recv_burst(8)) for queue in queues) == 0
        assert not any(readable(queue) for queue in queues)
    with Later(nic, lambda: nic.device.deliver(frame(61), pair=2), index=4):
        assert len(queues[2].recv_burst(1, timeout=None)) == 1
    nic.port.close()


def test_a_device_without_interrupts(make_nic, monkeypatch):
    monkeypatch.setattr(SimTransport, "interrupt_fd", lambda *_: -1)
    nic = make_nic()
    with pytest.raises(FeatureMissing, match="cannot interrupt"):
        nic.port.fileno()
    timer = threading.Timer(0.02, lambda: nic.device.deliver(frame(60)))
    timer.start()
    assert len(nic.port.recv_burst(1, timeout=None)) == 1
    timer.join()


def test_without_file_descriptors_there_is_no_waiting(nic, monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", full)
        with pytest.raises(pyvirtnet.OutOfMemory, match="ulimit"):
            nic.port.fileno()
    assert nic.port.fileno() >= 0


def test_a_wake_up_forgets_what_it_is_told_to():
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    wakeup = WakeUp()
    wakeup.watch([fds[0], fds[1], -1])
    wakeup.watch([fds[1], fds[2]])
    wakeup.drain()
    for fd, wakes in zip(fds, (False, True, True), strict=True):
        for _ in range(3):
            os.eventfd_write(fd, 1)
            assert wakeup.sleep(0) is wakes
            wakeup.drain()
            assert not wakeup.sleep(0)
    os.close(fds[1])
    wakeup.watch([fds[2]])
    wakeup.close()
    wakeup.close()


# ---- the end of a wait ---------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_closing_ends_a_wait(make_nic, timeout):
    nic = make_nic()
    with Later(nic, nic.port.close), pytest.raises(PortClosed):
        nic.port.recv_burst(1, timeout=timeout)


def test_closing_wakes_a_selector(make_nic):
    nic = make_nic()
    wait = nic.port.fileno()
    nic.receive()
    with Later(nic, nic.port.close):
        assert readable(wait, SECONDS)
    assert readable(wait)
    with pytest.raises(PortClosed):
        nic.port.recv_burst(1)
    with pytest.raises(PortClosed):
        nic.port.fileno()
    assert readable(wait)


def test_the_descriptor_outlives_resets(make_nic):
    nic = make_nic()
    wait = nic.port.fileno()
    for _ in range(5):
        nic.port.reset()
        assert nic.port.fileno() == wait
        assert nic.receive() == []
        assert not readable(wait)
        nic.device.deliver(frame(60))
        assert readable(wait)
        assert nic.receive() == [frame(60)]


def test_a_queue_that_is_broken_is_readable(make_nic):
    nic = make_nic()
    wait = nic.port.fileno()
    nic.receive()
    queue = nic.device.queues[0]
    queue._used[2:4] = (5000).to_bytes(2, "little")
    nic.device.raise_interrupt(0)
    for _ in range(3):
        assert readable(wait)
        with pytest.raises(DeviceBroken):
            nic.port.recv_burst(1)
    nic.port.close()
    nic.device.violations.clear()


def test_ctrl_c_ends_a_wait(nic):
    def interrupt(*_):
        raise KeyboardInterrupt

    before, me = signal.signal(signal.SIGALRM, interrupt), threading.get_ident()
    try:
        with pytest.raises(KeyboardInterrupt):
            with Later(nic, lambda: signal.pthread_kill(me, signal.SIGALRM)):
                nic.port.recv_burst(1, timeout=None)
    finally:
        signal.signal(signal.SIGALRM, before)
    nic.device.deliver(frame(60))
    assert len(nic.port.recv_burst(1, timeout=SECONDS)) == 1


def test_waiting_takes_no_processor(nic):
    """Neither does a wait for news."""
    nic.port.events()
    for wait in (
        lambda: nic.port.recv_burst(1, timeout=0.6),
        lambda: nic.port.events(timeout=0.6),
    ):
        before = time.process_time()
        assert len(wait()) == 0
        assert time.process_time() - before < 0.3


def test_frames_that_come_fast_are_looked_for_before_sleeping(make_nic, monkeypatch):
    """Not for long, and no more once they come slowly."""
    monkeypatch.setattr(_queue, "SLICE_SECONDS", 0.02)
    nic, drain = make_nic(), WakeUp.drain
    queue = nic.port.queues[0]

    def soon(wakeup):
        """The device delivers just before the driver sleeps, so that it wakes at once."""
        nic.device.deliver(frame(60))
        drain(wakeup)

    assert queue.spin == 0
    with monkeypatch.context() as patch:
        patch.setattr(WakeUp, "drain", soon)
        looks = 0
        for _ in range(1000):
            assert len(nic.port.recv_burst(1, timeout=SECONDS)) == 1
            looks += queue.spin > 0
    assert 0 < looks < 50  # this device sends nothing while it is looked for
    assert len(nic.port.recv_burst(1, timeout=0.05)) == 0
    assert queue.spin == 0


# ---- news of the device --------------------------------------------------------------------------


def test_news_end_a_wait_for_them(make_nic):
    nic = make_nic(offered=PLAIN | mask("ctrl_vq", "guest_announce"))
    assert nic.port.events(timeout=None)[0] == Event("link", Link(True, None, None))
    assert nic.port.events(timeout=0.01) == []
    timer = threading.Timer(0.02, nic.device.set_link, args=(False,))
    timer.start()
    assert nic.port.events(timeout=None) == [Event("link", Link(False, None, None))]
    timer.join()
    timer = threading.Timer(0.02, lambda: nic.device.change(announcing=True))
    timer.start()
    assert nic.port.events(timeout=SECONDS) == [Event("announce", None)]
    timer.join()


def test_news_make_a_port_readable(make_nic):
    nic = make_nic()
    nic.port.events()
    wait = nic.port.fileno()
    nic.receive()
    assert not readable(wait)
    nic.device.set_link(False)
    assert readable(wait)
    assert nic.port.events() == [Event("link", Link(False, None, None))]
    nic.receive()
    assert not readable(wait)


def test_news_need_no_interrupt(make_nic, monkeypatch):
    monkeypatch.setattr(SimTransport, "interrupt_fd", lambda *_: -1)
    nic = make_nic()
    nic.port.events()
    timer = threading.Timer(0.02, nic.device.set_link, args=(False,))
    timer.start()
    assert nic.port.events(timeout=None) == [Event("link", Link(False, None, None))]
    timer.join()


def test_a_device_that_needs_a_reset_is_news(make_nic):
    """Once; then it is what every call raises, until the port is reset."""
    nic = make_nic()
    nic.port.events()
    for _ in range(2):
        timer = threading.Timer(0.02, nic.device.need_reset)
        timer.start()
        assert nic.port.events(timeout=None) == [Event("needs-reset", None)]
        timer.join()
        for call in (nic.port.events, lambda: nic.port.recv_burst(1)):
            with pytest.raises(NeedsReset, match="asks to be reset"):
                call()
        nic.port.reset()
        nic.pass_through(frames(3))


def test_a_device_that_needs_a_reset_ends_a_wait_for_frames(make_nic):
    """And is still news to who waits for that."""
    nic = make_nic()
    nic.port.events()
    timer = threading.Timer(0.02, nic.device.need_reset)
    timer.start()
    with pytest.raises(DeviceBroken, match="asks to be reset"):
        nic.port.recv_burst(1, timeout=None)
    timer.join()
    assert nic.port.events() == [Event("needs-reset", None)]
    nic.port.reset()
    nic.pass_through(frames(3))


def test_several_threads_wait_for_news(make_nic):
    """The second one got a RuntimeError: concurrent poll() invocation."""
    nic = make_nic(offered=PLAIN | mask("status"))
    nic.port.events()
    told, failed = [], []

    def wait():
        end = time.monotonic() + SECONDS
        try:
            while not told and time.monotonic() < end:
                told.extend(nic.port.events(timeout=0.3))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    nic.device.set_link(False)
    for thread in threads:
        thread.join(SECONDS)
    assert not failed
    assert Event("link", Link(False, None, None)) in told


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_wait_for_news_takes_no_such_time(nic, timeout):
    """Not a number was for ever, at full speed."""
    with pytest.raises(ValueError, match="seconds from 0 up"):
        nic.port.events(timeout=timeout)


def test_who_waits_for_news_of_a_closed_port(make_nic):
    """It was DeviceGone, and PortClosed the second time."""
    nic = make_nic()
    nic.port.close()
    for _ in range(2):
        with pytest.raises(PortClosed, match="was closed"):
            nic.port.events(timeout=1)


def test_a_forked_child_that_asks_for_news(make_nic):
    """It was a ValueError: I/O operation on closed epoll object."""
    nic = make_nic(offered=PLAIN | mask("status"))
    nic.port.events(timeout=0.001)
    nic.port.events(timeout=0.001)

    def child():
        for ask in (nic.port.events, lambda: nic.port.link):
            with pytest.raises(PortClosed, match="forked from"):
                ask()

    assert in_child(child) == 0


def test_closing_ends_a_wait_for_news(make_nic):
    nic = make_nic()
    nic.port.events()
    timer = threading.Timer(0.02, nic.port.close)
    timer.start()
    with pytest.raises((PortClosed, DeviceGone)):
        nic.port.events(timeout=None)
    timer.join()


# ---- vhost-user ----------------------------------------------------------------------------------


def test_vhost_user_wakes(path, start):
    start(Loopback(features=mask("version_1", "mrg_rxbuf", "event_idx")))
    with open_port(path) as port:
        wait = port.fileno()
        for number in range(50):
            assert port.send_burst(frames(1, 60, number)) == 1
            got = []
            while not got:
                assert readable(wait, SECONDS)
                got = [bytes(one) for one in port.recv_burst(8)]
            assert got == frames(1, 60, number)


def test_a_back_end_that_dies_is_news(path, start):
    back_end = start()
    with open_port(path) as port:
        wait = port.fileno()
        until(lambda: not readable(wait), lambda: port.recv_burst(1))
        back_end.kill()
        assert readable(wait, SECONDS)
        with pytest.raises(DeviceGone):
            port.events()


def test_a_port_that_came_back_is_readable_by_the_same_descriptor(path, start):
    back_end = start(Loopback(features=mask("version_1", "mrg_rxbuf")))
    with open_port(path, reconnect=True) as port:
        wait = port.fileno()
        back_end.kill()
        until(lambda: not port.link.up, lambda: port.recv_burst(1))
        start(Loopback(features=mask("version_1", "mrg_rxbuf")))
        until(lambda: port.link.up, lambda: port.recv_burst(1, timeout=0.01))
        until(lambda: not readable(wait), lambda: port.recv_burst(8))
        assert port.send_burst(frames(1)) == 1
        assert readable(wait, SECONDS)
        until(lambda: [bytes(one) for one in port.recv_burst(8)] == frames(1))


def test_a_wait_on_a_device_that_is_not_there(make_nic):
    nic = make_nic(NetDevice(features=PLAIN))
    nic.port.close()
    with pytest.raises(PortClosed):
        nic.port.recv_burst(1, timeout=None)
