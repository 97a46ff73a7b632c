"""The vhost-user front end against DPDK's testpmd: a back end that others have written.

With huge pages where there are any or root can make them, else with ordinary ones: both sides work
so too, slower.
"""

from __future__ import annotations

import os
import selectors
import threading

import numpy as np
import pytest
from dpdk_fixtures import huge, path, start
from needs import needs_testpmd
from vhost_fixtures import SECONDS, conserved, open_port, poll_until_error, until

import pyvirtnet
from pyvirtnet._stamp import Checker, stamp

FRAMES = 1_000_000


pytestmark = needs_testpmd
__all__ = ["huge", "path", "start"]  # fixtures


def exchange(port: pyvirtnet.Port, frames: list[bytes]) -> list[bytes]:
    """Send frames to a device that sends all back; what came."""
    sent, back = 0, []
    while len(back) < len(frames):
        if sent < len(frames):
            sent += port.send_burst(frames[sent : sent + 4])
        burst = port.recv_burst(64, timeout=SECONDS)
        assert len(burst), f"{len(back)} of {sent} came back"
        back += [bytes(frame) for frame in burst]
    return back


def random_frames(*sizes: int) -> list[bytes]:
    return [os.urandom(size) for size in sizes]


SIZES = (60, 61, 127, 128, 129, 1514, 4084, 4085, 9014, 15_000) * 5


def test_io_gives_back_what_it_took(start, path):
    start("io")
    with open_port(path) as port:
        frames = random_frames(*SIZES)
        assert exchange(port, frames) == frames
        assert conserved(port)


@pytest.mark.parametrize("switches", [
    ["-ring_packed"], ["-ring_packed", "-event_idx"], ["-ring_packed", "-indirect_desc"],
    ["-event_idx"], ["-indirect_desc"], ["-in_order", "-event_idx", "-indirect_desc"],
])  # fmt: skip
def test_every_ring_format(start, path, switches):
    """Polled, and waited for."""
    start("io")
    with open_port(path, features=switches) as port:
        assert port.info()["ring_format"] == ("split" if "-ring_packed" in switches else "packed")
        frames = random_frames(*SIZES)
        for _ in range(8):
            assert exchange(port, frames) == frames
        assert conserved(port)


def test_macswap_swaps_and_leaves_the_rest(start, path):
    start("macswap")
    with open_port(path) as port:
        frames = random_frames(*SIZES)
        swapped = [frame[6:12] + frame[:6] + frame[12:] for frame in frames]
        assert exchange(port, frames) == swapped


def test_ordinary_pages_do_too(start, path, monkeypatch):
    """On both sides: --no-huge makes DPDK do without."""
    create = os.memfd_create

    def none(name: str, flags: int) -> int:
        if flags & os.MFD_HUGETLB:
            raise OSError(12, "no huge pages")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", none)
    start("io", huge=False)
    with open_port(path) as port:
        assert port.info()["page_size"] == 4096
        frames = random_frames(60, 1514, 9014)
        assert exchange(port, frames) == frames


@pytest.mark.parametrize("pieces", ["60", "1514", "2000,2000,2000,2000,1014"])
def test_receiving_what_it_makes(start, path, pieces):
    """txonly: UDP packets from 198.18.0.1 to 198.18.0.2, of several buffers where they are long."""
    size = sum(map(int, pieces.split(",")))
    start("txonly", txpkts=pieces)
    with open_port(path) as port:
        for _ in range(200):
            burst = port.recv_burst(64, timeout=SECONDS)
            assert len(burst)
            assert (burst.lengths == size).all()
            assert (burst.heads[:, 12:14] == (8, 0)).all()
            assert (burst.heads[:, 26:34] == (198, 18, 0, 1, 198, 18, 0, 2)).all()
            assert int.from_bytes(burst.heads[0, 16:18].tobytes(), "big") == size - 14
            for frame in burst:
                assert sum(part.nbytes for part in frame.frags) == max(0, size - 128)
        stats = port.stats
        assert stats.rx_bytes == stats.rx_frames * size
        assert stats.rx_buffers == stats.rx_frames * -(-(12 + size) // 4096)
        assert stats.rx_runts == 0


def test_everything_sent_arrives(start, path):
    testpmd = start("rxonly")
    with open_port(path) as port:
        before = testpmd.stats().rx
        tx = port.alloc_burst(64, 60)
        tx.data[:] = np.arange(60)
        sent = 0
        while sent < 200_000:
            sent += port.send_burst(tx)
        until(lambda: port.tx_pending == 0, port.reclaim)
        until(lambda: testpmd.stats().rx - before == sent)
        stats = testpmd.stats()
        assert stats.rx_bytes == sent * 60


@pytest.mark.rule("SPL-034", "PKD-035")
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_a_million_frames_in_a_closed_loop(start, path, ring):
    """None is lost, damaged, doubled or out of order, though 192 are always on the way."""
    start("io")
    with open_port(path, features=[] if ring == "packed" else ["-ring_packed"]) as port:
        assert port.info()["ring_format"] == ring
        bursts = [port.alloc_burst(32, 60) for _ in range(16)]
        checker = Checker(0)
        sent = received = 0
        while received < FRAMES:
            if sent < FRAMES and sent - received <= 160:
                tx = bursts[sent // 32 % len(bursts)]
                stamp(tx, sent)
                assert port.send_burst(tx) == 32
                sent += 32
            burst = port.recv_burst(64)
            if not len(burst) and sent - received > 160:
                burst = port.recv_burst(64, timeout=SECONDS)
                assert len(burst), f"{sent - received} frames are missing"
            checker.check(burst)
            received += len(burst)
        counts = (checker.corrupt, checker.foreign, checker.duplicated, checker.reordered)
        assert counts == (0, 0, 0, 0)
        assert checker.received == sent == received
        assert checker.lost(sent) == 0
        assert conserved(port)


def test_regions_come_and_go_under_traffic(start, path):
    start("io")
    with open_port(path) as port:
        for i in range(10):
            held = [port.alloc_burst(1500, 1514) for _ in range(2)]
            for burst in held:
                burst.data[:] = i
                frames = [bytes(frame) for frame in burst[1490:]]
                assert exchange(port, frames) == frames
            del held, burst
        frames = random_frames(*SIZES)
        assert exchange(port, frames) == frames


def test_two_ports_and_a_burst_from_one_to_the_other(start, path):
    start("io", ports=2)
    other = path[:-1] + "1"
    with open_port(path) as one, open_port(other) as two:
        frames = random_frames(60, 1514, 9014)
        for frame in frames:
            assert one.send_burst([frame]) == 1
            burst = one.recv_burst(1, timeout=SECONDS)
            assert two.send_burst(burst) == 1
            assert bytes(two.recv_burst(1, timeout=SECONDS)[0]) == frame


def test_resetting_under_traffic(start, path):
    start("macswap")
    with open_port(path) as port:
        tx = port.alloc_burst(64, 1514)
        for _ in range(20):
            port.send_burst(tx)
            port.recv_burst(8)
            port.reset()
        frames = random_frames(60, 9014)
        until(lambda: not len(port.recv_burst(64)))
        assert len(exchange(port, frames)) == 2
        assert conserved(port)


def test_a_wait_ends_with_its_interrupt(start, path):
    start("io")
    with open_port(path) as port:
        timer = threading.Timer(0.05, port.send_burst, args=([bytes(60)],))
        timer.start()
        assert len(port.recv_burst(1, timeout=None)) == 1
        timer.join()


@pytest.mark.parametrize("features", [[], ["-ring_packed"]], ids=["packed", "split"])
def test_four_queue_pairs(start, path, features):
    """Each is a loop of its own; a thread each, asleep most of the time; again after a reset."""
    start("io", queues=4)
    with open_port(path, queue_pairs=4, features=features) as port:
        for _ in range(2):
            wrong = []

            def work(queue, wrong=wrong):
                for number in range(200):
                    frames = random_frames(60 + number, 9014)
                    assert queue.send_burst(frames) == 2
                    got = []
                    while len(got) < 2:
                        burst = queue.recv_burst(8, timeout=SECONDS)
                        if not len(burst):
                            break
                        got += [bytes(frame) for frame in burst]
                    if got != frames:
                        wrong.append((queue.index, number))

            threads = [threading.Thread(target=work, args=(queue,)) for queue in port.queues]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            port.reset()
        assert [queue.stats.rx_frames for queue in port.queues] == [800] * 4
        assert conserved(port)
    with open_port(path, queue_pairs=2) as port:
        frames = random_frames(*SIZES)
        assert exchange(port, frames) == frames


def test_a_device_that_sleeps_is_woken_and_wakes(start, path):
    """select over the pairs' descriptors, which DPDK's interrupts make readable."""
    start("io", queues=2)
    with open_port(path, queue_pairs=2) as port, selectors.DefaultSelector() as selector:
        for queue in port.queues:
            selector.register(queue, selectors.EVENT_READ)
        for number in range(500):
            queue = port.queues[number % 2]
            frame = random_frames(60)[0]
            assert queue.send_burst([frame]) == 1
            got = []
            while not got:
                assert selector.select(SECONDS), f"frame {number} did not wake"
                for one in port.queues:
                    got += [(one, bytes(frame)) for frame in one.recv_burst(8)]
            assert got == [(queue, frame)]


# ---- death


def test_a_killed_testpmd_is_gone_and_a_new_one_serves_after_a_reset(start, path):
    testpmd = start("io")
    with open_port(path) as port:
        frames = random_frames(*SIZES)
        assert exchange(port, frames) == frames
        port.send_burst(port.alloc_burst(64, 60))
        testpmd.close()
        error = poll_until_error(port)
        assert isinstance(error, pyvirtnet.DeviceGone)
        assert path in str(error)
        stats = port.stats
        assert stats.tx_frames == stats.tx_reclaimed + stats.tx_lost
        assert port.info()["free_pages"] == port.info()["pages"]
        os.unlink(path)  # killed, it left its socket
        start("io")
        port.reset()
        assert exchange(port, frames) == frames
        assert conserved(port)


def test_a_port_carries_on_with_a_new_testpmd(start, path):
    testpmd = start("io")
    with open_port(path, reconnect=True) as port:
        tx = port.alloc_burst(32, 60)
        for _ in range(2):
            before = port.stats.rx_frames
            until(
                lambda least=before + 5000: port.stats.rx_frames > least,
                lambda: (port.send_burst(tx), port.recv_burst(64)),
            )
            testpmd.close()
            until(lambda: not port.link.up)
            os.unlink(path)
            testpmd = start("io")
            until(lambda: port.link.up, lambda: port.recv_burst(64))
        until(lambda: not len(port.recv_burst(64)))
        frames = random_frames(*SIZES)
        assert exchange(port, frames) == frames
        assert conserved(port)


def test_testpmd_as_the_client(start, path):
    """It connects to us, and again after we were gone."""
    start("io", extra=",client=1")
    frames: list[bytes] = random_frames(60, 9014)
    for _ in range(2):
        with open_port(f"{path}?server=on") as port:
            assert exchange(port, frames) == frames
        assert not os.path.exists(path)
