"""Threads that are switched as often as can be, so that they come between each other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def hurry() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def side_by_side(*works: Callable[[], object]) -> None:
    """All of them at once, each in a thread of its own, until the last one ends."""
    threads = [threading.Thread(target=work) for work in works]
    with hurry():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
