"""What Ctrl-C breaks off can be done again: no pair lives on, no page is lost, no lock is kept."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import CodeType, FrameType
from typing import Any

import pytest
from vhost_backend import FEATURES
from vhost_fixtures import SECONDS, descriptors, open_port, path, start, until

import pyvirtnet
from pyvirtnet import Port, PortClosed, QueueBusy, dma
from pyvirtnet._attempt import Attempt
from pyvirtnet.testing import Loopback, mask
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.wakeup import WakeUp

__all__ = ["path", "start"]  # fixtures


@pytest.fixture
def in_finalisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt there is told and not raised; nobody keeps it, nor what its frames hold."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@contextmanager
def alarms() -> Iterator[None]:
    """Those that a timer sends are InterruptedErrors, anywhere."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Point:
    """KeyboardInterrupt at one of the points where the interpreter looks at signals: as a function
    is entered, and when a built-in one has returned."""

    def __init__(self, number: int) -> None:
        self.left, self.reached = number, False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event in ("call", "c_return"):
            if self.left == 0:
                sys.setprofile(None)
                self.reached = True
                raise KeyboardInterrupt
            self.left -= 1


def broken_off(work: Callable[[], object], number: int) -> bool:
    """Whether `work` has such a point, at which it is then broken off."""
    point = Point(number)
    before = sys.getprofile()
    sys.setprofile(point)
    try:
        work()
    except KeyboardInterrupt:  # not `suppress`, which has points of its own
        pass
    finally:
        sys.setprofile(before)
    return point.reached


@contextmanager
def ctrl_c_at(code: CodeType, event: str, **wanted: object) -> Iterator[None]:
    """KeyboardInterrupt at the first such event of a function, as the interpreter would raise it
    there; and no other way out of the block."""

    def trace(frame: FrameType, what: str, arg: Any) -> Any:
        if frame.f_code is not code or any(
            frame.f_locals.get(name) != value for name, value in wanted.items()
        ):
            return None
        if what == event:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sys.settrace(before)


@contextmanager
def ctrl_c_in_call(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object]) -> Iterator[None]:
    """As a sleeper is woken, once that is so."""
    with monkeypatch.context() as patch:

        def interrupted(self: WakeUp) -> None:
            if when():
                patch.undo()
                raise KeyboardInterrupt
            call(self)

        call = WakeUp.call
        patch.setattr(WakeUp, "call", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def books(port: Port) -> tuple[int, int, int]:
    info = port.info()
    return info["pages"], info["free_pages"], info["posted_pages"]


# ---- close ---------------------------------------------------------------------------------------


def test_close_again(path, start, monkeypatch) -> None:
    """The second pair lived on, and kicked a file that had got its eventfd's number."""
    start(Loopback(features=FEATURES | mask("mq"), queue_sizes=(256,) * 4))
    port = open_port(path, queue_pairs=2)
    first, second = port.queues
    first.fileno()
    with ctrl_c_in_call(monkeypatch, lambda: True):
        port.close()
    port.close()
    for pair in first, second:
        with pytest.raises(PortClosed):
            pair.send_burst([bytes(60)])


def test_close_again_where_the_pairs_are_let_go(monkeypatch) -> None:
    """An assignment to a port is a call, too."""
    port = pyvirtnet.open("sim:loopback")
    pair = port.queues[0]
    with ctrl_c_at(Port.__setattr__.__code__, "return", name="_queues"):
        port.close()
    port.close()
    with pytest.raises(PortClosed):
        pair.send_burst([bytes(60)])


# ---- reset ---------------------------------------------------------------------------------------


def test_reset_again(monkeypatch) -> None:
    """The pages of the pair that was broken off were lost, until none were left."""
    with pyvirtnet.open("sim:loopback") as port:
        whole = books(port)
        for _ in range(4):
            port.fileno()
            port.send_burst([bytes(60)] * 3)
            with ctrl_c_in_call(monkeypatch, lambda: True):
                port.reset()
            port.reset()
            assert books(port) == whole
        assert port.stats.rx_lost == 12
        assert len(port._made) == 1


@pytest.mark.parametrize("event", ["call", "return"])
def test_a_reset_that_is_broken_off_is_over(event) -> None:
    """Every later one found it under way, and close() waited for its end."""
    port = pyvirtnet.open("sim:loopback")
    with ctrl_c_at(Port._take_down.__code__, event):
        port.reset()
    port.reset()
    assert port.send_burst([bytes(60)]) == 1
    port.close()
    with pytest.raises(PortClosed):
        port.send_burst([bytes(60)])


@pytest.mark.usefixtures("in_finalisers")
def test_signals_at_any_time() -> None:
    """Real ones, all over reset() and close(): each can be repeated, and the books are right."""
    with alarms():
        for step in range(300):
            port = two_pairs()
            pairs = port.queues
            call = port.reset if step % 2 else port.close
            with suppress(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + step))
                call()
                signal.setitimer(signal.ITIMER_REAL, 0)
            with suppress(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 0)
            call()
            if call == port.reset:
                pages, free, posted = books(port)
                assert free + posted == pages
                assert (port.stats.rx_lost, port.tx_pending) == (3, 0)
                port.close()
            for pair in pairs:
                with pytest.raises(PortClosed):
                    pair.send_burst([])


def two_pairs() -> Port:
    """With a waker each, and frames on the way."""
    port = pyvirtnet.open("sim:loopback?queue_size=16&pairs=2", queue_pairs=2)
    for pair in port.queues:
        pair.fileno()
    assert port.send_burst([bytes(60)] * 3) == 3
    return port


@pytest.mark.usefixtures("in_finalisers")
def test_reset_at_every_point() -> None:
    """It can be repeated, and the books are right, wherever it was broken off: a third of them."""
    for number in count(0, 3):
        port = two_pairs()
        done = not broken_off(port.reset, number)
        port.reset()
        pages, free, posted = books(port)
        assert (free + posted, port.stats.rx_lost, port.tx_pending) == (pages, 3, 0)
        assert port.send_burst([bytes(60)]) == len(port.recv_burst(2)) == 1
        pairs = port.queues
        port.close()
        for pair in pairs:
            with pytest.raises(PortClosed):
                pair.send_burst([])
        if done:
            assert number > 50
            return


@pytest.mark.usefixtures("in_finalisers")
def test_close_at_every_point() -> None:
    """It can be repeated, and leaves nothing."""
    two_pairs().close()
    gc.collect()
    files, mappers = descriptors(), len(dma.memory._mappers)
    for number in count():
        port = two_pairs()
        pairs = port.queues
        done = not broken_off(port.close, number)
        port.close()
        for pair in pairs:
            with pytest.raises(PortClosed):
                pair.send_burst([])
        del port, pairs, pair
        if descriptors() != files:  # what is broken off may lie in a cycle
            gc.collect()
            dma.memory._sweep()
        assert (descriptors(), len(dma.memory._mappers)) == (files, mappers)
        if done:
            assert number > 50
            return


def test_a_reset_that_was_broken_off_says_so(monkeypatch) -> None:
    """A pair that had been started already found nothing, of a device that was reset."""
    with pyvirtnet.open("sim:loopback") as port:
        port.fileno()
        with ctrl_c_in_call(monkeypatch, lambda: port.queues and port.queues[0].posted):
            port.reset()
        for call in (lambda: port.recv_burst(1), lambda: port.send_burst([bytes(60)])):
            with pytest.raises(PortClosed, match=r"being reset\n.*once more"):
                call()
        port.reset()
        assert port.send_burst([bytes(60)]) == len(port.recv_burst(2)) == 1


@pytest.mark.parametrize("inner", ["port", "pair"])
def test_a_pair_s_reset_in_the_middle_of_which_another_is_asked_for(monkeypatch, inner) -> None:
    """By a signal handler: the pair stayed away for good, and said nothing."""
    with pyvirtnet.open("sim:loopback?ring_reset=on") as port:
        pair = port.queues[0]
        calls = {"port": port.reset, "pair": pair.reset}
        with monkeypatch.context() as patch:
            patch.setattr(SimTransport, "reset_queue", lambda *_: calls[inner]())
            with pytest.raises((QueueBusy, PortClosed)):
                pair.reset()
        with pytest.raises(PortClosed, match=r"broken off\n.*port.reset"):
            pair.recv_burst(1)
        port.reset()
        assert port.send_burst([bytes(60)]) == len(port.recv_burst(2)) == 1


def test_a_close_in_the_middle_of_a_close(monkeypatch) -> None:
    """By a signal handler, while descriptors are closed."""
    port = pyvirtnet.open("sim:loopback")
    port.fileno()
    close = os.close

    def closing(fd: int) -> None:
        monkeypatch.setattr(os, "close", close)
        close(fd)
        port.close()

    monkeypatch.setattr(os, "close", closing)
    port.close()
    with pytest.raises(PortClosed):
        port.recv_burst(1)


# ---- a look at the device ------------------------------------------------------------------------


def test_a_lock_is_taken_and_let_go_of() -> None:
    """Ctrl-C after `acquire` and before `try`: other threads' close() hung for ever."""
    lock = threading.RLock()
    with Attempt(lock) as mine:
        assert mine
        theirs: list[bool] = []

        def other() -> None:
            for seconds in 0.0, 0.01:
                with Attempt(lock, seconds) as taken:
                    theirs.append(taken)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert theirs == [False, False]
    with pytest.raises(KeyboardInterrupt), Attempt(lock):
        raise KeyboardInterrupt
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert theirs[2:] == [True, True]


@pytest.mark.usefixtures("in_finalisers")
def test_a_look_that_is_broken_off_keeps_no_lock() -> None:
    with alarms(), pyvirtnet.open("sim:loopback") as port:
        for step in range(300):
            with suppress(InterruptedError):
                signal.setitimer(signal.ITIMER_REAL, 5e-6 + 1e-7 * step)
                while True:
                    port._look()
        closer = threading.Thread(target=port.close, daemon=True)
        closer.start()
        closer.join(SECONDS)
        assert not closer.is_alive()


# ---- a back end that comes back ------------------------------------------------------------------


def test_while_a_back_end_is_brought_up_again(path, start, monkeypatch) -> None:
    """A pair that had been started already could never be set up again: RuntimeError."""
    back_end = start()
    with open_port(path, reconnect=True) as port:
        port.fileno()
        back_end.kill()
        until(lambda: not len(port.recv_burst(1)) and port.info()["posted_pages"] == 0)
        start()
        with ctrl_c_in_call(monkeypatch, lambda: port.queues[0].posted):
            while True:
                port.recv_burst(1)
        until(lambda: port.send_burst([bytes(60)]) and len(port.recv_burst(8)))


# ---- memory --------------------------------------------------------------------------------------


def test_while_memory_is_made(monkeypatch) -> None:
    """Its file stayed open, and so the memory was never free again."""
    files = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dma.memory.allocate(1 << 21)
    assert descriptors() == files


# ---- a doorbell that is a call -------------------------------------------------------------------


class Interrupting(Loopback):
    """Its next receive doorbell raises."""

    bad = False

    def kick(self, index: int) -> None:
        if index == 0 and self.bad:
            self.bad = False
            raise KeyboardInterrupt
        super().kick(index)


@pytest.mark.parametrize("taken", [8, 3])
def test_frames_that_came_before_the_doorbell(taken) -> None:
    """They were received, by the counters, and nobody had them."""
    device = Interrupting(queue_sizes=(16, 16))
    with Port(SimTransport(device)) as port:
        assert port.send_burst([bytes([i]) * 60 for i in range(8)]) == 8
        device.bad = True
        with pytest.raises(KeyboardInterrupt):
            port.recv_burst(8)
        got: list[int] = []
        while len(burst := port.recv_burst(taken)):
            assert len(burst) <= taken
            got += [bytes(frame)[0] for frame in burst]
        assert got == list(range(8))
        assert port.stats.rx_frames == 8
        assert port.send_burst([bytes(60)]) == 1
        assert len(port.recv_burst(8)) == 1


def test_such_frames_are_lost_in_a_reset() -> None:
    """They came out of empty rings, and kept the memory of a closed port."""
    device = Interrupting(queue_sizes=(16, 16))
    with Port(SimTransport(device)) as port:
        assert port.send_burst([bytes(60)] * 8) == 8
        device.bad = True
        with pytest.raises(KeyboardInterrupt):
            port.recv_burst(8)
        port.reset()
        assert len(port.recv_burst(8)) == 0
        assert port.stats.rx_lost == 8
