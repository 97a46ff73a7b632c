"""Fixtures for tests of the vhost-user front end, and what they say about a port."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from vhost_backend import BackEnd

import pyvirtnet

SECONDS = 60.0  # for what takes milliseconds where nothing else runs


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "vhost.sock")


@pytest.fixture
def start(path: str) -> Iterator[Callable[..., BackEnd]]:
    """Starts back ends at `path`; none has failed, and no driver broke a rule, at the end."""
    gc.collect()  # regions of tests before
    started: list[BackEnd] = []

    def make(*args: Any, at: str = path, **options: Any) -> BackEnd:
        started.append(BackEnd(at, *args, **options))
        return started[-1]

    yield make
    for back_end in started:
        if back_end.alive:
            back_end.kill()
        assert back_end.error is None
        assert back_end.device.violations == []


def open_port(path: str, **options: Any) -> pyvirtnet.Port:
    return pyvirtnet.open(f"vhost-user:{path}", **options)


def round_trip(port: pyvirtnet.Port, *sizes: int) -> None:
    """Frames of these sizes go to the back end, a loopback, and come back whole."""
    for size in sizes or (60,):
        frame = os.urandom(size)
        assert port.send_burst([frame]) == 1
        burst = port.recv_burst(1, timeout=SECONDS)
        assert len(burst) == 1, "the frame did not come back"
        assert bytes(burst[0]) == frame


def until(condition: Callable[[], object], step: Callable[[], object] = lambda: None) -> None:
    """Take steps until the condition holds, for a bound time."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        step()


def poll_until_error(port: pyvirtnet.Port) -> pyvirtnet.Error:
    """What polling an idle port raises, sooner or later."""
    with pytest.raises(pyvirtnet.Error) as caught:
        until(lambda: False, lambda: port.recv_burst(32))
    return caught.value


def conserved(port: pyvirtnet.Port) -> bool:
    """Every page is free or posted, once what was sent is reclaimed."""
    until(lambda: port.tx_pending == 0, port.reclaim)
    info = port.info()
    return bool(info["free_pages"] + info["posted_pages"] == info["pages"])


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))
