"""Every ring format on QEMU's device: frames of all sizes, laps, waiting for the interrupt."""

import os
import threading
import time
from collections.abc import Iterator

import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import bind

# Two NICs for this module (event_idx and indirect_desc are on by default), two for test_steering.py
# and test_small_mode.py, which look at what these have not.
OTHERS = "packed=on,mrg_rxbuf=off,mq=on,rss=on,speed=10000,duplex=full"
MACHINE = {"ports": 4, "port_opts": f"packed=on|packed=on|{OTHERS}|{OTHERS}"}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
SECONDS = 20  # longer than anything here takes
FORMATS = {
    "packed": (),
    "packed-plain": ("-event_idx", "-indirect_desc"),
    "split": ("-ring_packed",),
    "split-plain": ("-ring_packed", "-event_idx", "-indirect_desc"),
}


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture(params=FORMATS)
def ports(request: pytest.FixtureRequest, bound: None) -> Iterator[tuple[Port, Port]]:
    switches = FORMATS[request.param]
    with (
        pyvirtnet.open(NIC, features=switches) as tx,
        pyvirtnet.open(PEER, features=switches) as rx,
    ):
        for port in (tx, rx):
            assert port.info()["ring_format"] == request.param.split("-")[0]
            negotiated = {feature.name for feature in port.features.negotiated}
            assert ("EVENT_IDX" in negotiated) == (not request.param.endswith("plain"))
            assert ("INDIRECT_DESC" in negotiated) == (not request.param.endswith("plain"))
        yield tx, rx
        rx.recv_burst(1)
        info = rx.info()
        assert info["free_pages"] + info["posted_pages"] == info["pages"]


def test_frames_of_all_sizes_go_round_the_ring(ports: tuple[Port, Port]) -> None:
    """Each burst before the next: QEMU's hub lets frames overtake others where buffers lack."""
    tx, rx = ports
    sizes = (60, 128, 129, 1514, 4084, 4085, 9014, 65535)
    for number in range(120):
        content = [os.urandom(size) for size in sizes]
        left, got = content, list[bytes]()
        end = time.monotonic() + SECONDS
        while len(got) < len(content) and time.monotonic() < end:
            left = left[tx.send_burst(left) :]
            got += [bytes(frame) for frame in rx.recv_burst(64, timeout=0.1)]
        assert got == content, f"round {number}"
    assert rx.stats.rx_buffers > 10 * rx.info()["ring_sizes"][0]


def test_a_wait_ends_with_its_interrupt(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    for number in range(20):
        timer = threading.Timer(0.02, tx.send_burst, args=([bytes([number]) * 60],))
        timer.start()
        start = time.monotonic()
        (frame,) = rx.recv_burst(1, timeout=SECONDS)
        assert bytes(frame) == bytes([number]) * 60
        assert time.monotonic() - start < SECONDS / 4, "found by a look, not by the interrupt"
        timer.join()


def test_frames_go_on_after_the_receiver_was_full(ports: tuple[Port, Port]) -> None:
    """QEMU keeps one frame, the hub another; with the second it takes what is left in the ring."""
    tx, rx = ports
    size = rx.info()["ring_sizes"][0]
    for count in (size - 56, 56 + 2 + 18):
        assert tx.send_burst([bytes(60)] * count) == count
        time.sleep(0.3)  # QEMU is at it, and nobody receives
    expected = size + 20
    for more in (0, 10, 10, 10):
        assert tx.send_burst([bytes(60)] * more) == more
        expected += more
        got, end = rx.stats.rx_frames, time.monotonic() + SECONDS
        while got < expected and time.monotonic() < end:
            got += len(rx.recv_burst(64, timeout=0.1))
        assert got == expected


@pytest.mark.rule("VQC-003", "PCI-026", "PCI-027")
def test_a_queue_pair_is_reset_alone(ports: tuple[Port, Port]) -> None:
    """QEMU offers RING_RESET from 7.2 on."""
    for size in (None, 64, 16, 256):
        for port in ports:
            port.send_burst([bytes(60)] * 3)  # in flight, or not any more
            port.queues[0].reset(size=size)
            assert port.info()["ring_sizes"] == [size or 256] * 2
        for tx, rx in (ports, ports[::-1]):
            while len(rx.recv_burst(64, timeout=0.1)):
                pass  # what came before
            content = [bytes([n]) * 1514 for n in range(100)]
            left, got = content, list[bytes]()
            end = time.monotonic() + SECONDS
            while len(got) < len(content) and time.monotonic() < end:
                left = left[tx.send_burst(left[:8]) :]
                got += [bytes(frame) for frame in rx.recv_burst(64, timeout=0.05)]
            assert sorted(got) == content
    for port in ports:
        end = time.monotonic() + SECONDS
        while port.tx_pending and time.monotonic() < end:
            port.reclaim()
        assert port.tx_pending == 0
