"""A real device without mergeable receive buffers: frames that fit a page."""

import time

import pyvirtnet
from pyvirtnet.cli import bind

from . import test_formats

MACHINE = test_formats.MACHINE
NIC, PEER = "0000:00:06.0", "0000:00:07.0"
SECONDS = 20


def test_frames_of_up_to_a_page_arrive_and_longer_ones_do_not() -> None:
    assert bind.main(["bind", NIC, PEER]) == 0
    try:
        with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
            assert rx.info()["ring_format"] == "packed"
            assert rx.info()["receive_mode"] == "small"
            sizes = [60, 128, 129, 1514, 4084] * 100
            frames = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
            assert tx.send_burst([bytes(4085)]) == 1  # the device drops it: no buffer holds it
            left, got = frames, []
            end = time.monotonic() + SECONDS
            while len(got) < len(frames) and time.monotonic() < end:
                left = left[tx.send_burst(left) :]
                got += [bytes(frame) for frame in rx.recv_burst(64)]
            state = f"{len(got)} came, {len(left)} not sent, {tx.tx_pending} pending: {rx.info()}"
            assert len(got) == len(frames), state
            assert sorted(got) == sorted(frames)  # the hub lets some overtake others
            stats = rx.stats
            assert stats.rx_frames == stats.rx_buffers == len(frames)
    finally:
        assert bind.main(["restore", NIC, PEER]) == 0
