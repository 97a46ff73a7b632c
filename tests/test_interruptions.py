"""What comes in the middle of something else: threads, signal handlers, finalisers, forks."""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from itertools import product
from typing import Any
from unittest.mock import Mock

import pytest
import vhost_wire as wire
from nic import Nic, finish
from test_fork import in_child
from test_vhost_memory import tables
from vhost_backend import FEATURES
from vhost_fixtures import (
    SECONDS,
    descriptors,
    open_port,
    path,
    poll_until_error,
    round_trip,
    start,
    until,
)

import pyvirtnet
from pyvirtnet import DeviceGone, PortClosed
from pyvirtnet.control.queue import ControlQueue
from pyvirtnet.dma import Memory, Region, memory
from pyvirtnet.testing import Loopback, NetDevice, Violation, mask
from pyvirtnet.transport import vhost_messages
from pyvirtnet.transport.vhost_messages import Connection
from pyvirtnet.transport.vhost_table import MemoryTable
from pyvirtnet.wakeup import WakeUp

__all__ = ["path", "start"]  # fixtures


def once(call: Any) -> Any:
    """`call`, the first time only."""
    left = [call]
    return lambda *args: left.pop()(*args) if left else None


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for an exchange that cannot end waits for ever."""
    monkeypatch.setattr(vhost_messages, "ANSWER_SECONDS", 10 * SECONDS)


# ---- waking ------------------------------------------------------------------------------------


def test_a_sleeper_made_where_a_dead_back_end_had_its_number() -> None:
    """It was taken out with the back end's, and calls woke nobody any more."""
    waker = WakeUp()
    waker.watch([waker._own])
    waker.watch([])
    waker.drain()
    waker.call()
    assert waker.sleep(0)
    waker.close()


# ---- exchanges with a back end -----------------------------------------------------------------


def test_memory_that_goes_while_the_back_end_is_looked_at(path, start) -> None:
    """The next table was not sent before the next exchange, which an idle port has none of."""
    back_end = start()
    with open_port(path) as port:
        link, held = port._transport._link, [port.alloc_burst(3000, 1514) for _ in range(3)]
        before, poll = tables(back_end)[-1], link._poller

        class Poller:
            def poll(self, timeout: int) -> Any:
                drop = threading.Thread(target=held.clear)
                drop.start()
                drop.join()
                return poll.poll(timeout)

        link._poller = Poller()
        link.check()
        link._poller = poll
        until(lambda: tables(back_end)[-1] < before)
        round_trip(port)


@pytest.mark.usefixtures("no_patience")
def test_a_port_closed_in_the_middle_of_an_exchange(path, start, monkeypatch) -> None:
    """By a signal handler: it waited 5 seconds for the exchange below it."""
    start()
    port = open_port(path)
    answer, close = Connection._answer, once(port.close)
    monkeypatch.setattr(Connection, "_answer", lambda *args: (close(), answer(*args))[1])
    memory.allocate(1)  # a port that is not there any more need not be shown it
    with pytest.raises(PortClosed):
        port.recv_burst(1)


@pytest.mark.usefixtures("no_patience")
def test_memory_allocated_in_the_middle_of_an_exchange(path, start, monkeypatch) -> None:
    """By a signal handler: the back end was told of it after 5 seconds, or never."""
    back_end = start()
    with open_port(path) as port:
        before, regions, answer = tables(back_end)[-1], [], Connection._answer
        allocate = once(lambda: regions.append(memory.allocate(1)))
        monkeypatch.setattr(Connection, "_answer", lambda *args: (allocate(), answer(*args))[1])
        regions.append(memory.allocate(1))
        assert [tables(back_end)[-1], len(regions)] == [before + 2, 2]
        round_trip(port)


def test_a_back_end_that_dies_while_its_configuration_is_read(path, start) -> None:
    """events() and mtu ended in DeviceGone where a link was down."""
    features = FEATURES | mask("mtu")
    back_end = start(Loopback(features=features, mtu=1500))
    with open_port(path, reconnect=True) as port:
        mtu, transport = port.mtu, port._transport
        check = transport.check
        port.events()
        kill = once(back_end.kill)
        transport.check = lambda: (check(), kill())
        assert not port.link.up
        assert port.mtu == mtu
        assert ("link", port.link) in [(event.what, event.value) for event in port.events()]
        transport.check = check
        start(Loopback(features=features, mtu=1500))
        until(lambda: port.link.up, lambda: port.recv_burst(1))
        round_trip(port)


def test_a_port_closed_before_its_mtu_is_read(path, start) -> None:
    """By another thread, which was waited for: DeviceGone instead of the last word."""
    start(Loopback(features=FEATURES | mask("mtu"), mtu=1500))
    port = open_port(path)
    care, close = port._care, once(port.close)

    class Care:
        def __enter__(self) -> None:
            close()
            care.acquire()

        def __exit__(self, *_: object) -> None:
            care.release()

    port._care = Care()
    assert port.mtu == 1500
    assert port._closed


def test_memory_that_goes_while_a_table_is_composed(path, start, monkeypatch) -> None:
    """The file of a region in it was closed before it was sent: a healthy back end was gone."""
    back_end = start()
    with open_port(path) as port:
        held, regions = [memory.allocate(1), memory.allocate(1)], []
        compose = MemoryTable.compose

        def drop_and_allocate() -> None:
            held.pop()
            regions.append(memory.allocate(1))

        change = once(drop_and_allocate)
        monkeypatch.setattr(MemoryTable, "compose", lambda self: (compose(self), change())[0])
        regions.append(memory.allocate(1))
        assert tables(back_end)[-1] == len(port._transport._table)
        held.pop()
        assert tables(back_end)[-1] == len(port._transport._table)
        round_trip(port)


def test_a_table_that_is_refused_later_is_an_error(path, start, monkeypatch) -> None:
    """It was nobody's: the device was given addresses that it does not know."""
    back_end = start()
    with open_port(path) as port:
        regions, answer = [], Connection._answer
        no = wire.answer(wire.SET_MEM_TABLE, struct.pack("<Q", 1))

        def allocate() -> None:
            back_end.hooks[wire.SET_MEM_TABLE] = lambda _: no
            regions.append(memory.allocate(1))

        inside = once(allocate)
        monkeypatch.setattr(Connection, "_answer", lambda *args: (inside(), answer(*args))[1])
        assert port.link.up
        assert "failed" in str(poll_until_error(port))


def test_ctrl_c_in_a_time_out(path, start, monkeypatch) -> None:
    """The next exchange took the late answer for its own."""
    back_end = start()
    with open_port(path) as port:
        back_end.hooks[wire.GET_CONFIG] = lambda _: b""
        with monkeypatch.context() as patch:
            patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.1)
            patch.setattr(Connection, "_late", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                _ = port.link
        with pytest.raises(DeviceGone, match="interrupted"):
            _ = port.link


# ---- memory ------------------------------------------------------------------------------------


def test_memory_that_goes_while_another_port_is_closed() -> None:
    """KeyError, and the ports behind it never heard that it went."""
    files, source, told = descriptors(), Memory(), []

    class Seen:
        physical = False

        def map(self, region: Region) -> None:
            pass

        def unmap(self, iova: int, size: int) -> None:
            told.append(iova)

    class Table(Seen):
        def __init__(self) -> None:
            self.table = MemoryTable()

        def map(self, region: Region) -> None:
            self.table.add(region)

        def unmap(self, iova: int, size: int) -> None:
            self.table.close()  # as if another thread did
            self.table.remove(iova)

    source.attach(Table())  # type: ignore[arg-type]
    source.attach(Seen())  # type: ignore[arg-type]
    region = source.allocate(1)
    iova = region.iova
    del region
    assert told == [iova]
    assert descriptors() == files


def test_a_mapper_that_fails_to_take_memory_back_keeps_no_file_open() -> None:
    source = Memory()

    class Broken:
        physical = False

        def map(self, region: Region) -> None:
            pass

        def unmap(self, iova: int, size: int) -> None:
            raise OSError("it fails")

    source.attach(Broken())  # type: ignore[arg-type]
    region = source.allocate(1)
    with pytest.raises(OSError, match="it fails"):
        region.final()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(region.fd)


def test_memory_allocated_while_addresses_are_reserved(monkeypatch) -> None:
    """By a signal handler: it waited for its own thread for ever."""
    source, inner = Memory(), []
    regions = Memory.regions
    allocate = once(lambda: inner.append(source.allocate(1 << 21)))
    monkeypatch.setattr(Memory, "regions", lambda self: (allocate(), regions(self))[1])
    outer = source.allocate(1 << 21)
    assert abs(outer.iova - inner[0].iova) >= 1 << 21


def test_memory_allocated_while_a_mapper_is_attached() -> None:
    """By a signal handler: the mapper never saw it."""
    source, held = Memory(), []
    held.append(source.allocate(1))
    allocate = once(lambda: held.append(source.allocate(1)))

    class Seeing:
        physical = False

        def map(self, region: Region) -> None:
            allocate()
            seen.append(region)

    seen: list[Region] = []
    source.attach(Seeing())  # type: ignore[arg-type]
    assert seen == held


# ---- commands ----------------------------------------------------------------------------------


COMMANDS = mask("version_1", "mrg_rxbuf", "ctrl_vq", "ctrl_rx")
SPLIT, PACKED = COMMANDS, COMMANDS | mask("ring_packed")


@pytest.mark.parametrize(
    ("features", "call"),
    [
        *product((SPLIT, PACKED), ("_expose", "_publish", "_take")),
        (PACKED, "_marks"),
    ],
)
def test_a_reset_in_the_middle_of_a_command(make_nic, monkeypatch, features, call) -> None:
    """By a signal handler: the command was written into the new queue, which the device refused;
    or it was answered, and its effect was gone."""
    port = make_nic(NetDevice(features=features)).port
    for i in range(34):
        port.promiscuous = bool(i % 2)
    queue = type(port._control._queue)
    real, reset = getattr(queue, call), once(port.reset)
    monkeypatch.setattr(queue, call, lambda *args: (reset(), real(*args))[1])
    with pytest.raises(PortClosed, match="reset"):
        port.promiscuous = False
    assert len(port.recv_burst(1)) == 0
    for i in range(70):
        port.promiscuous = bool(i % 2)


@pytest.mark.parametrize("features", [SPLIT, PACKED], ids=["split", "packed"])
def test_a_reset_just_after_a_command(make_nic, monkeypatch, features) -> None:
    """By a signal handler: it stood in the books, and the device had forgotten it."""
    nic = make_nic(NetDevice(features=features))
    submit, reset = ControlQueue.submit, once(nic.port.reset)
    monkeypatch.setattr(ControlQueue, "submit", lambda *args: (submit(*args), reset())[0])
    nic.port.promiscuous = False
    assert nic.port.promiscuous is False
    assert not nic.device.control.filter.promiscuous


# ---- kicks -------------------------------------------------------------------------------------


def test_a_reset_beside_a_thread_that_receives() -> None:
    """Both kicked for the buffers of the new ring."""
    errors: list[BaseException] = []

    def receive() -> None:
        try:
            while not over:
                with suppress(PortClosed):
                    port.recv_burst(64)
        except BaseException as error:
            errors.append(error)

    over: list[bool] = []
    with pyvirtnet.open("sim:loopback") as port:
        thread = threading.Thread(target=receive)
        thread.start()
        try:
            for _ in range(300):
                port.reset()
        finally:
            over.append(True)
            thread.join()
    assert errors == []


def test_a_kick_that_another_thread_s_reset_has_overtaken() -> None:
    """It was a violation in that thread, of a device that was no longer there to be kicked."""
    nic = Nic()
    kick = nic.port._transport._ringer(nic.device.kick)
    other = threading.Thread(target=nic.port.reset)
    other.start()
    other.join()
    kick(0)
    finish(nic)


def test_a_kick_after_a_reset_of_the_same_thread_is_a_violation() -> None:
    nic = Nic()
    kick = nic.port._transport._ringer(nic.device.kick)
    nic.port.close()
    with pytest.raises(Violation, match="no kick before DRIVER_OK"):
        kick(0)


# ---- forks -------------------------------------------------------------------------------------


def test_a_port_that_a_forked_child_fails_to_abandon(monkeypatch) -> None:
    """The ports behind it were closed at the child's end: the parent's devices were reset."""
    with pyvirtnet.open("sim:loopback") as first, pyvirtnet.open("sim:loopback") as second:

        def fail() -> None:
            raise OSError

        def check() -> None:
            for port in (first, second):
                assert port._closed

        for port in (first, second):
            monkeypatch.setattr(port._transport, "abandon", fail)
        assert in_child(check) == 0


def test_a_back_end_s_files_are_closed_once(path, start, monkeypatch) -> None:
    """A child forked in the middle of closing them closed numbers that were taken again."""
    start()
    port = open_port(path)
    transport, close, closed = port._transport, os.close, []

    def note(fd: int) -> None:
        closed.append(fd)
        left = list(transport._events.values())
        assert all(fd not in (events.kick, events.call) for events in left)
        close(fd)

    monkeypatch.setattr(os, "close", note)
    port.close()
    assert len(closed) >= 4
    with pytest.raises((PortClosed, DeviceGone)):
        port.recv_burst(1)
