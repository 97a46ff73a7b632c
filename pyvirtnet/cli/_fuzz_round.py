"""Rounds of fuzzing: ports on lying devices, random calls, and the books that must balance."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

from .. import dma
from ..arena import arena
from ..errors import Error
from ..negotiate import parse
from ..port import Port
from ..spec import Feature
from ._fuzz_caller import Caller
from ._fuzz_clock import repeatable
from ._fuzz_device import ON_REQUEST, FuzzDevice

LIES = (0.0, 0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5)  # chances of a lie a step
TURNS = (0, 1, 4, 8, 16, 64)  # of a device, between two calls
ASIDE = (2000, 2000)  # an accomplice's turns, and moments of idleness after each, at a time


class Finding(Exception):
    """The driver did what it must not."""


class InChild(BaseException):
    """The end of a forked process: the interpreter ends there with everything still held."""


class Round:
    """One round; all of it follows from `seed` and `number`, but for what threads do.

    Rounds with threads are those of a crowd, and those with accomplices.

    note  called with steps and calls made since the last time
    """

    FORKS = 1 / 2000  # of calls
    ACCOMPLICES = 0.3  # of rounds with lies

    def __init__(self, seed: int, number: int, note: Callable[[int, int], object]) -> None:
        self.random = Random(f"{seed}/{number}")
        self.note = note
        self.errors: Counter[str] = Counter()
        self.aside = 0  # steps that accomplices made
        self.lies = self.random.choice(LIES)
        self.devices: list[FuzzDevice] = []

    def play(self) -> None:
        """Raises Finding, or what the driver must not raise."""
        with repeatable(), _collected_on_demand(), _unraisable_is_raised():
            self._play()

    def _play(self) -> None:
        random = self.random
        ports = [port for _ in range(random.choice((1, 1, 2, 3))) if (port := self._open())]
        if not ports:
            return
        caller = Caller(random, ports, self._open)
        for device in self.devices:
            device.on_kick = caller.from_within
        with self._accomplices(self.lies > 0 and random.random() < self.ACCOMPLICES):
            if random.random() < 0.2:
                self._crowd(caller)
            else:
                self._calls(caller, random.choice((50, 200, 1000)), self.FORKS)
        self.errors += caller.errors
        self.aside += sum(device.accomplice.steps for device in self.devices)
        settle(caller, self.devices, honest=self.lies == 0)

    def _open(self) -> Port | None:
        device = FuzzDevice(self.random, self.lies)
        try:
            pages = self.random.choice((None, None, 1, 7, 1000))
            port = Port(device, pages=pages, wanted=self._wanted())
        except (Error, ValueError) as error:
            self.errors[type(error).__name__] += 1
            device.close()
            return None
        if self.random.random() < 0.3:
            for queue in port.queues:
                queue.release_from = 1  # without the interpreter's lock, as pairs of many do
        if self.random.random() < 0.5:
            for queue in port.queues:
                queue.late_after, queue.late_from = 0, 1  # as if nobody had ever looked at a frame
        self.devices.append(device)
        return port

    def _wanted(self) -> frozenset[Feature]:
        """What is there on request is asked for at times."""
        asked = self.random.random() < 0.4
        return parse([feature.name for feature in ON_REQUEST if asked])

    def _calls(self, caller: Caller, count: int, forks: float = 0.0) -> None:
        before = 0
        for _ in range(count):
            for device in list(self.devices):
                if not device.closed:
                    device.act(self.random.choice(TURNS))
            caller.call()
            if self.random.random() < forks:
                fork(caller)
            steps = sum(device.liar.steps for device in self.devices)
            self.note(steps - before, 1)
            before = steps

    def _crowd(self, caller: Caller) -> None:
        """Threads that share ports; only this one moves the devices."""
        others = [
            Caller(Random(self.random.random()), caller.ports, self._open)
            for _ in range(self.random.randrange(1, 4))
        ]
        for each in (caller, *others):
            each.patient = True
        failures: list[BaseException] = []

        def work(other: Caller) -> None:
            try:
                for _ in range(200):
                    other.call()
            except BaseException as error:
                failures.append(error)

        with _running([partial(work, other) for other in others]):
            self._calls(caller, 200)
        for other in others:
            self.errors += other.errors
            other.quiet = True
            other.kept.clear()
        if failures:
            raise failures[0]

    @contextmanager
    def _accomplices(self, wanted: bool) -> Iterator[None]:
        """Devices that write memory all the while, without the interpreter's lock."""
        stop = threading.Event()

        def work(device: FuzzDevice) -> None:
            while not stop.is_set():
                device.meddle(*ASIDE)

        devices = list(self.devices) if wanted else []
        with _running([partial(work, device) for device in devices]):
            try:
                yield
            finally:
                stop.set()


@contextmanager
def _running(works: list[Callable[[], object]]) -> Iterator[None]:
    """Each of these in a thread, until all have ended."""
    threads = [threading.Thread(target=work) for work in works]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4 if works else interval)
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


@contextmanager
def _collected_on_demand() -> Iterator[None]:
    """Garbage is collected when a caller says so, and then is this round's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _unraisable_is_raised() -> Iterator[None]:
    """What a finaliser raises counts as well."""
    seen: list[str] = []

    def hook(what: Any) -> None:
        lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
        seen.append("".join(lines))

    before, sys.unraisablehook = sys.unraisablehook, hook
    try:
        yield
    finally:
        sys.unraisablehook = before
    if seen:
        raise Finding(f"in a finaliser: {seen[0]}")


def fork(caller: Caller) -> None:
    """A child that uses what it inherited, and ends one way or the other."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(30):
                caller.call()
            code = 0
        except BaseException:
            traceback.print_exc()
        if code or caller.random.random() < 0.7:
            os._exit(code)
        raise InChild
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise Finding(f"a forked child ended with {status}")


def settle(caller: Caller, devices: list[FuzzDevice], *, honest: bool) -> None:
    """Drop and close everything: all that was taken has to be back."""
    caller.quiet = True
    caller.kept.clear()
    gc.collect()
    for device in devices:
        device.rest()
    for port in caller.ports:
        if port.queues:
            port.reset()
    gc.collect()
    for port in caller.ports:
        check(port)
        if honest:
            check_honest(port)
        port.close()
    caller.ports.clear()
    devices.clear()
    gc.collect()
    check_memory()


def check(port: Port) -> None:
    """Pages, slots and frames of a port that nobody uses."""
    stats = port.stats
    sent = stats.tx_reclaimed + stats.tx_lost + port.tx_pending
    if stats.tx_frames != sent:
        raise Finding(f"{stats.tx_frames} frames sent, {sent} accounted for: {stats}")
    if not port.queues:
        return
    info, pool = port.info(), port.queues[0].pool
    if pool is None or info["pages"] != info["free_pages"] + info["posted_pages"]:
        raise Finding(f"pages are missing: {info}")
    if pool.free_slots != pool.slots or port.tx_pending:
        raise Finding(f"{pool.slots - pool.free_slots} slots, {port.tx_pending} frames missing")


def check_honest(port: Port) -> None:
    """What a device that never lied saw."""
    liar = port._transport.liar  # type: ignore[attr-defined]
    stats = port.stats
    received = stats.rx_frames + stats.rx_runts + stats.rx_bad_headers + stats.rx_lost
    if received != liar.delivered:
        raise Finding(f"{liar.delivered} delivered, {received} accounted for: {stats}")
    if liar.faults:
        raise Finding(f"{liar.faults} receive buffers outside of DMA memory")


def check_memory() -> None:
    """Regions of ports that are gone are gone, and the arena is whole; then begin anew."""
    free = {repr(region): gaps for region, gaps in arena._gaps.items()}
    whole = all(gaps == [(0, region.size)] for region, gaps in arena._gaps.items())
    if not whole:
        raise Finding(f"frames to be sent that nobody has: free are {free}")
    arena.forget()
    if left := list(dma.memory.regions()):
        raise Finding(f"DMA memory that nobody has: {left}")
    dma.memory._next_iova = dma.FIRST_IOVA
