"""DPDK's testpmd as the device, stopped and killed in mid-traffic: every frame is accounted for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from dpdk_fixtures import Start, huge, path, start
from needs import needs_testpmd
from vhost_fixtures import SECONDS, conserved, open_port, until

import pyvirtnet
from pyvirtnet import DeviceGone, DeviceTimeout, Port
from pyvirtnet._stamp import Checker, stamp
from pyvirtnet.cli import _bench_testpmd as dpdk

pytestmark = needs_testpmd
__all__ = ["huge", "path", "start"]  # fixtures

PROMPT = 4.0  # seconds: fewer than an answer has that does not come
WINDOW = 160  # frames on the way, fewer than the ring has posted buffers for
ANSWER_SECONDS = "pyvirtnet.transport.vhost_messages.ANSWER_SECONDS"


class Traffic:
    """Numbered frames through a device that gives them back, received as they come."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.checker = Checker(0)
        self.sent = 0
        self._bursts = [port.alloc_burst(32, 1514) for _ in range(24)]
        self._lost = 0  # what is on the way no more

    @property
    def away(self) -> int:
        return self.sent - self.checker.received - self._lost

    def step(self) -> None:
        if self.away <= WINDOW - 32:
            burst = self._bursts[self.sent // 32 % len(self._bursts)]
            stamp(burst, self.sent)
            taken = self.port.send_burst(burst)
            assert taken in (0, 32)
            self.sent += taken
        self.checker.check(self.port.recv_burst(64))

    def go(self, frames: int) -> None:
        """Until so many more have come back."""
        more = self.checker.received + frames
        until(lambda: self.checker.received >= more, self.step)

    def give_up(self) -> None:
        """What is on the way will not come."""
        self._lost += self.away

    def finish(self) -> None:
        until(lambda: self.away == 0, lambda: self.checker.check(self.port.recv_burst(64)))

    @property
    def wrong(self) -> tuple[int, ...]:
        checker = self.checker
        return checker.corrupt, checker.foreign, checker.duplicated, checker.reordered


def stop(testpmd: dpdk.Testpmd) -> None:
    """All of it: its threads go on until the one that takes the signal has been given a core."""
    os.kill(testpmd._process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, testpmd._process.pid, os.WSTOPPED)


def resume(testpmd: dpdk.Testpmd) -> None:
    os.kill(testpmd._process.pid, signal.SIGCONT)


def accounted(port: Port) -> bool:
    stats = port.stats
    return stats.tx_frames == stats.tx_reclaimed + stats.tx_lost + port.tx_pending


def promptly(call: Callable[[], Any]) -> Any:
    begin = time.monotonic()
    result = call()
    assert time.monotonic() - begin < PROMPT
    return result


def test_stopped_and_continued_loses_nothing(start: Start, path: str) -> None:
    testpmd = start("io")
    with open_port(path) as port:
        traffic = Traffic(port)
        for _ in range(3):
            traffic.go(5000)
            stop(testpmd)
            try:
                for _ in range(1000):  # what it had done already comes; then nothing moves
                    traffic.step()
                before = traffic.checker.received
                assert promptly(lambda: len(port.recv_burst(64, timeout=0.2))) == 0
                assert promptly(lambda: port.link).up
                assert traffic.checker.received == before
            finally:
                resume(testpmd)
        traffic.go(5000)
        traffic.finish()
        assert traffic.wrong == (0, 0, 0, 0)
        assert conserved(port)
        assert accounted(port)


def test_stopped_for_good_ends_in_a_bound_time(
    start: Start, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reset of it times out; memory that it may yet write to is left to it."""
    testpmd = start("io")
    with open_port(path) as port:
        traffic = Traffic(port)
        traffic.go(5000)
        stop(testpmd)
        while port.send_burst(traffic._bursts[0]):
            pass
        memory = port._memory
        with monkeypatch.context() as patch:
            patch.setattr(ANSWER_SECONDS, 0.3)
            with pytest.raises((DeviceTimeout, DeviceGone)) as caught:
                promptly(port.reset)
        assert caught.value.mend
        assert accounted(port)
        assert port.tx_pending == 0
        testpmd.close()
        os.unlink(path)
        start("io")
        port.reset()
        assert port._memory is not memory
        again = Traffic(port)
        again.go(5000)
        again.finish()
        assert again.wrong == (0, 0, 0, 0)
        assert conserved(port)
        assert accounted(port)


def test_stopped_while_it_is_closed(
    start: Start, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    testpmd = start("io")
    port = open_port(path)
    traffic = Traffic(port)
    traffic.go(5000)
    stop(testpmd)
    monkeypatch.setattr(ANSWER_SECONDS, 0.3)
    promptly(port.close)
    with pytest.raises(pyvirtnet.PortClosed):
        port.recv_burst(1)


@pytest.mark.parametrize("reconnect", [True, False], ids=["reconnect", "reset"])
def test_killed_in_mid_traffic_again_and_again(start: Start, path: str, reconnect: bool) -> None:
    """Frames that it had are lost, never more than were on the way; none comes twice or damaged."""
    testpmd = start("io")
    with open_port(path, reconnect=reconnect) as port:
        traffic = Traffic(port)
        lost = 0
        for _ in range(2):
            traffic.go(3000)
            testpmd.close()
            os.unlink(path)
            if reconnect:
                until(lambda: port.info()["posted_pages"] == 0, traffic.step)
            else:
                with pytest.raises(DeviceGone):
                    until(lambda: False, traffic.step)
            assert traffic.away <= WINDOW
            lost += traffic.away
            traffic.give_up()
            assert accounted(port)
            assert port.tx_pending == 0
            assert port.info()["free_pages"] == port.info()["pages"]
            testpmd = start("io")
            if not reconnect:
                port.reset()
            until(lambda: port.link.up, lambda: port.recv_burst(64, timeout=SECONDS / 100))
        traffic.go(3000)
        traffic.finish()
        checker = traffic.checker
        assert traffic.wrong == (0, 0, 0, 0)
        assert checker.received + lost == traffic.sent
        assert checker.lost(traffic.sent) == lost
        assert port.stats.rx_frames == checker.received
        assert conserved(port)
        assert accounted(port)
