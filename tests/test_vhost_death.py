"""Back ends that die: DeviceGone, wherever it happens, and everything comes back."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import suppress
from itertools import count

import pytest
import vhost_wire as wire
from vhost_fixtures import (
    SECONDS,
    conserved,
    descriptors,
    open_port,
    path,
    poll_until_error,
    round_trip,
    start,
    until,
)

import pyvirtnet
from pyvirtnet import DeviceGone

__all__ = ["path", "start"]  # fixtures


def test_death_at_every_step_of_opening(path, start):
    whole = start()
    open_port(path).close()
    steps = len([m for m in whole.log if m.request != wire.GET_VRING_BASE]) - 2  # resets at close
    whole.kill()
    gc.collect()
    before = descriptors()
    for step in range(1, steps + 1):
        back_end = start()
        seen = 0

        def die(_: wire.Message) -> bytes | None:
            nonlocal seen
            seen += 1
            return back_end.close_link() if seen == step else None  # noqa: B023

        back_end.hooks.update(dict.fromkeys(range(64), die))
        with pytest.raises(DeviceGone, match=f"back end at {path} is gone"):
            open_port(path)
        back_end.kill()
        gc.collect()
        assert descriptors() <= before, f"at step {step}"


def test_death_at_every_step_of_a_reset(path, start):
    """It ends in a reset that can be repeated, on the back end that comes next."""
    for step in count(1):
        back_end, seen = start(), 0
        with open_port(path) as port:
            round_trip(port, 60)

            def die(_: wire.Message) -> bytes | None:
                nonlocal seen
                seen += 1
                return back_end.close_link() if seen == step else None  # noqa: B023

            back_end.hooks.update(dict.fromkeys(range(64), die))
            with suppress(DeviceGone):  # at first it connects again
                port.reset()
            back_end.kill()
            back_end = start()
            port.reset()
            round_trip(port, 60)
            assert conserved(port)
        back_end.kill()
        del port
        gc.collect()  # here, not in the next back end's thread, which would wait for itself
        if seen < step:
            break
    assert step > 20


@pytest.mark.parametrize(
    "use", ["poll", "send", "reclaim", "wait", "wait for ever", "link", "reset"]
)
def test_a_back_end_that_dies_while_rings_run(path, start, use):
    back_end = start()
    with open_port(path) as port:
        round_trip(port, 60, 9014)
        tx = port.alloc_burst(64, 60)
        port.send_burst(tx)
        back_end.kill()
        begin = time.monotonic()
        call = {
            "poll": lambda: port.recv_burst(64),
            "send": lambda: port.send_burst(tx),
            "reclaim": port.reclaim,
            "wait": lambda: port.recv_burst(64, timeout=SECONDS),
            "wait for ever": lambda: port.recv_burst(64, timeout=None),
            "link": lambda: port.link,
            "reset": port.reset,
        }[use]
        with pytest.raises((DeviceGone, pyvirtnet.NoSuchDevice), match=path) as caught:
            until(lambda: False, call)
        assert caught.value.mend
        assert time.monotonic() - begin < SECONDS / 2


def test_everything_comes_back_from_a_dead_back_end(path, start):
    back_end = start()
    with open_port(path) as port:
        held = []
        port.send_burst([bytes(9014)] * 3)
        until(lambda: len(held) == 3, lambda: held.extend(port.recv_burst(1, timeout=1)))
        back_end.hooks.clear()
        back_end.kill()
        while port.send_burst([held[0]] * 32):
            pass
        assert poll_until_error(port)
        info, stats = port.info(), port.stats
        assert port.tx_pending == 0
        assert stats.tx_lost > 0
        assert stats.tx_frames == stats.tx_reclaimed + stats.tx_lost
        assert info["free_pages"] == info["pages"] - sum(len(frame.frags) for frame in held)
        assert all(bytes(frame) == bytes(9014) for frame in held)
        held.clear()
        assert port.info()["free_pages"] == info["pages"]
        for call in (lambda: port.recv_burst(1), lambda: port.send_burst([bytes(60)])):
            with pytest.raises(DeviceGone, match="closed the connection"):
                call()


def test_a_reset_after_the_back_end_was_started_again(path, start):
    back_end = start()
    with open_port(path) as port:
        recv, send = port.recv_burst, port.send_burst
        tx = port.alloc_burst(4, 60)
        back_end.kill()
        assert poll_until_error(port)
        with pytest.raises(pyvirtnet.NoSuchDevice):
            port.reset()
        start()
        port.reset()
        round_trip(port, 60, 9014)
        assert send(tx) == 4, "what was taken from the port before goes on"
        until(lambda: port.stats.rx_frames == 6, lambda: recv(4))
        assert conserved(port)


def test_frames_that_nobody_received_are_counted(path, start):
    back_end = start()
    with open_port(path) as port:
        back_end.device.deliver(*[bytes(60)] * 5, bytes(9014))
        port.reset()
        assert (port.stats.rx_lost, port.stats.rx_frames) == (6, 0)
        assert conserved(port)


def test_death_under_a_thread_that_waits_and_one_that_sends(path, start):
    back_end = start()
    ends: list[BaseException] = []
    with open_port(path) as port:
        tx = port.alloc_burst(32, 60)

        def run(call):
            try:
                until(lambda: False, call)
            except BaseException as error:
                ends.append(error)

        calls = (lambda: port.recv_burst(32, timeout=None), lambda: port.send_burst(tx))
        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: port.stats.rx_frames > 100, lambda: time.sleep(0.001))
        back_end.kill()
        for thread in threads:
            thread.join(SECONDS)
        assert [type(end) for end in ends] == [DeviceGone, DeviceGone]
        assert port.info()["free_pages"] == port.info()["pages"]
