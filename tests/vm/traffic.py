"""Frames of every size across a cable, both ways, and whether each of them came."""

import re
import time
from collections.abc import Sequence

from pyvirtnet import Port

SIZES = [60, 128, 129, 1514, 4084, 4085, 9014, 65535]
SMALL = [60, 128, 129, 1514, 4084]  # what one page holds
SECONDS = 30


def exchange(one: Port, other: Port, rounds: int = 20, sizes: Sequence[int] = SIZES) -> None:
    """Every size there and back, contents compared."""
    for tx, rx in ((one, other), (other, one)):
        content = [bytes([n, size % 251]) * (size // 2) for n in range(rounds) for size in sizes]
        assert sorted(carry(tx, rx, content)) == sorted(content)  # a hub may reorder


def carry(tx: Port, rx: Port, content: list[bytes]) -> list[bytes]:
    left, got = content, []
    end = time.monotonic() + SECONDS
    while len(got) < len(content) and time.monotonic() < end:
        left = left[tx.send_burst(left[:64]) :]
        got += [bytes(frame) for frame in rx.recv_burst(64)]
    return got


def flood(tx: Port, rx: Port, count: int) -> None:
    """So many small frames from one burst in DMA memory, each column looked at."""
    burst = tx.alloc_burst(64, 60)
    burst.data[:] = 0x5A
    sent = got = 0
    end = time.monotonic() + SECONDS
    while got < count and time.monotonic() < end:
        if sent < count:
            sent += tx.send_burst(burst[: count - sent])
        frames = rx.recv_burst(256)
        assert (frames.lengths == 60).all()
        assert (frames.heads[:, :60] == 0x5A).all()
        got += len(frames)
    assert got == sent == count


def forward(tx: Port, rx: Port, out: Port, end: Port) -> None:
    """What one port received goes out of another without a copy, fragments too."""
    content = [bytes([n]) * 3000 for n in range(32)]
    tx.send_burst(content)
    got: list[bytes] = []
    stop = time.monotonic() + SECONDS
    while len(got) < len(content) and time.monotonic() < stop:
        burst = rx.recv_burst(64)
        while len(burst) and time.monotonic() < stop:
            burst = burst[out.send_burst(burst) :]
        got += [bytes(frame) for frame in end.recv_burst(64)]
    assert sorted(got) == content


def wake(tx: Port, rx: Port) -> None:
    """A receiver that waits is woken by an interrupt."""
    import threading

    timer = threading.Timer(0.3, lambda: tx.send_burst([b"wake" * 15]))
    timer.start()
    start = time.monotonic()
    (frame,) = rx.recv_burst(4, timeout=SECONDS)
    timer.join()
    assert bytes(frame) == b"wake" * 15
    assert time.monotonic() - start < SECONDS / 2


def answered(report: str, count: int) -> bool:
    """Does ping say that its first `count` requests were answered, each once?

    It goes on sending until so many answers are there: the last one may find one more on its way.
    """
    numbers = re.findall(r"bytes from \S+ icmp_seq=(\d+) ", report)
    return f" {count} received, " in report and sorted(map(int, numbers)) == [*range(1, count + 1)]
