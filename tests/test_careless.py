"""What a careless caller can do ends in an exception, never in a crash."""

import copy
import gc
import pickle
from contextlib import suppress
from operator import setitem
from random import Random

import numpy as np
import pytest
from nic import Nic, finish, frames

import pyvirtnet
from pyvirtnet import dma
from pyvirtnet._burst import Burst
from pyvirtnet._pages import PagePool
from pyvirtnet._queue import QueuePair
from pyvirtnet.cli._fuzz_caller import ALLOWED
from pyvirtnet.cli._fuzz_evil import (
    BAD_KEYS,
    NOT_FRAMES,
    NUMBERS,
    EvilArray,
    EvilBuffer,
    EvilIndex,
    EvilItems,
)
from pyvirtnet.transport.base import Doorbell


@pytest.mark.parametrize("kind", [Burst, pyvirtnet.RxBurst, pyvirtnet.TxBurst, pyvirtnet.Frame])
def test_objects_without_memory_cannot_be_made(kind):
    for make in (kind, lambda: kind.__new__(kind), lambda: object.__new__(kind)):
        with pytest.raises(TypeError):
            make()


@pytest.mark.parametrize("kind", [pyvirtnet.RxBurst, pyvirtnet.TxBurst, pyvirtnet.Frame])
def test_there_are_no_subclasses(kind):
    with pytest.raises(TypeError):
        type("Mine", (kind,), {})


def test_a_live_queue_pair_in_a_cycle_ends_with_its_pool():
    """The pool was taken from it before it gave its pages back."""

    class Bell:
        def __call__(self, value):
            pass

    def live():
        pool = PagePool(dma.memory.allocate(1 << 20), 1 << 16, 64, 64, 64)
        pair = QueuePair("x", print)
        pair._set_up(pool, 0, 16, 8192, 16, mergeable=True, max_frame=1514)
        bell = Bell()
        bell.pair = pair
        pair._start(Doorbell("call", bell, 0), Doorbell("call", bell, 0), -1)

    gc.collect()
    regions = len(list(dma.memory.regions()))
    live()
    gc.collect()
    assert len(list(dma.memory.regions())) == regions


def test_a_queue_pair_that_was_never_set_up_is_closed():
    queue = QueuePair.__new__(QueuePair)
    for call in (lambda: queue.recv_burst(1), lambda: queue.send_burst([bytes(60)]), queue.reclaim):
        with pytest.raises(pyvirtnet.PortClosed):
            call()
    with pytest.raises(RuntimeError):
        queue._start(None, None, -1)
    assert queue.posted == queue.tx_pending == 0
    pool = PagePool.__new__(PagePool)
    with pytest.raises(RuntimeError):
        QueuePair("x", print)._set_up(pool, 0, 2, 0, 2, mergeable=True, max_frame=1514)


@pytest.mark.parametrize(("offset", "size"), [(64, 2), (1 << 20, 2), (0, 3), (0, 1), (0, 1 << 16)])
def test_rings_lie_in_front_of_the_pool(offset, size):
    with pyvirtnet.open("sim:loopback") as port, pytest.raises(ValueError):
        QueuePair("x", print)._set_up(
            port.queues[0].pool, 0, 2, offset, size, mergeable=True, max_frame=1514
        )


def test_a_queue_pair_that_runs_is_not_set_up_or_started():
    with pyvirtnet.open("sim:loopback") as port:
        queue = port.queues[0]
        with pytest.raises(RuntimeError):
            queue._set_up(queue.pool, 0, 2, 0, 2, mergeable=True, max_frame=1514)
        with pytest.raises(RuntimeError):
            queue._start(None, None, -1)


def test_bursts_are_not_copied_behind_their_back():
    with pyvirtnet.open("sim:loopback") as port:
        port.send_burst([bytes(60)])
        burst = port.recv_burst(1)
        for value in (burst, burst[:1], burst[0], port.alloc_burst(1, 60), port.queues[0]):
            for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError):
                    duplicate(value)


# ---- wrong types and sizes, wherever a caller has something to put -------------------------------

ODD = (
    *NUMBERS,
    *BAD_KEYS,
    *NOT_FRAMES,
    float("nan"),
    float("inf"),
    range(3),
    object(),
    Ellipsis,
    np.zeros(3, object),
    np.zeros((2, 2, 2)),
    np.float64(1e300),
    [np.zeros((3, 60), np.uint8)[:, ::-1]],
    [memoryview(bytes(120))[::2]],
)


class Meddler:
    """What arguments call when they are looked at: the port that looks at them."""

    def __init__(self, port):
        self.port, self.random, self.depth = port, Random(3), 0

    def from_within(self):
        if self.depth < 2:
            self.depth += 1
            calls = (lambda: self.port.recv_burst(4), self.port.reclaim, gc.collect,
                     lambda: self.port.send_burst([bytes(60)]))  # fmt: skip
            with suppress(*ALLOWED):
                self.random.choice(calls)()
            self.depth -= 1

    def arguments(self):
        for kind in (EvilIndex, EvilArray, EvilBuffer):
            yield from (kind(self), [kind(self)], (kind(self), kind(self)))
        yield EvilItems(self, [bytes(60), bytearray(60), [bytes(60)]])
        yield slice(EvilIndex(self), EvilIndex(self), EvilIndex(self))


PLACES = {
    "recv_burst": lambda port, burst, tx, odd: port.recv_burst(odd),
    "send_burst": lambda port, burst, tx, odd: port.send_burst(odd),
    "a frame": lambda port, burst, tx, odd: port.send_burst([bytes(60), odd]),
    "a piece of a frame": lambda port, burst, tx, odd: port.send_burst([(bytes(60), odd)]),
    "frames of alloc_burst": lambda port, burst, tx, odd: port.alloc_burst(odd, 60),
    "bytes of alloc_burst": lambda port, burst, tx, odd: port.alloc_burst(1, odd),
    "set_lengths": lambda port, burst, tx, odd: tx.set_lengths(odd),
    "a burst's index": lambda port, burst, tx, odd: burst[odd],
    "a TxBurst's index": lambda port, burst, tx, odd: tx[odd],
    "a burst's item": lambda port, burst, tx, odd: setitem(burst, 0, odd),
    "heads": lambda port, burst, tx, odd: setitem(burst.heads, ..., odd),
    "lengths": lambda port, burst, tx, odd: setitem(burst.lengths, 0, odd),
    "swap_macs": lambda port, burst, tx, odd: pyvirtnet.swap_macs(odd),
    "swap_flows": lambda port, burst, tx, odd: pyvirtnet.swap_flows(odd),
    "fix_checksums": lambda port, burst, tx, odd: pyvirtnet.fix_checksums(odd),
    "checksums_ok": lambda port, burst, tx, odd: pyvirtnet.checksums_ok(odd),
    "mac": lambda port, burst, tx, odd: setattr(port, "mac", odd),
    "promiscuous": lambda port, burst, tx, odd: setattr(port, "promiscuous", odd),
    "announce": lambda port, burst, tx, odd: port.announce(odd),
    "coalesce": lambda port, burst, tx, odd: port.coalesce(rx_usecs=odd),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy on NaN
@pytest.mark.parametrize("place", PLACES)
def test_odd_arguments(place):
    """An error that says so, or what was meant; the port goes on, and nothing is lost."""
    nic = Nic(queue_sizes=(32, 32), pages=96)
    raised = 0
    meddler = Meddler(nic.port)
    for odd in (*ODD, *meddler.arguments()):
        nic.device.deliver_some(frames(3, 200))
        burst, tx = nic.port.recv_burst(8), nic.port.alloc_burst(2, 60)
        try:
            PLACES[place](nic.port, burst, tx, odd)
        except ALLOWED:
            raised += 1
        nic.transmitted()
    assert raised > 20
    del burst, tx, odd, meddler
    gc.collect()
    nic.pass_through(frames(40))
    assert nic.port.send_burst(frames(5)) == 5
    finish(nic)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("-inf"), "1", b"", [], object(), 1j])
def test_odd_timeouts(timeout):
    with pyvirtnet.open("sim:loopback") as port, pytest.raises((TypeError, ValueError)):
        port.recv_burst(1, timeout=timeout)
