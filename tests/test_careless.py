"""What a careless caller can do ends in an exception, never in a crash."""

import copy
import pickle

import pytest

import pyvirtnet
from pyvirtnet._burst import Burst
from pyvirtnet._pages import PagePool
from pyvirtnet._queue import QueuePair


@pytest.mark.parametrize("kind", [Burst, pyvirtnet.RxBurst, pyvirtnet.TxBurst, pyvirtnet.Frame])
def test_objects_without_memory_cannot_be_made(kind):
    for make in (kind, lambda: kind.__new__(kind), lambda: object.__new__(kind)):
        with pytest.raises(TypeError):
            make()


@pytest.mark.parametrize("kind", [pyvirtnet.RxBurst, pyvirtnet.TxBurst, pyvirtnet.Frame])
def test_there_are_no_subclasses(kind):
    with pytest.raises(TypeError):
        type("Mine", (kind,), {})


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
