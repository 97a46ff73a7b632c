"""A port's life: looks at its device, resets, the end; fork and exit."""

from __future__ import annotations

import atexit
import operator
import os
import sys
import time
import weakref
from collections.abc import Callable
from functools import wraps
from math import inf
from threading import RLock
from types import TracebackType
from typing import Concatenate, NoReturn, ParamSpec, Self, SupportsIndex, TypeVar

from ._attempt import Attempt
from ._queue import QueuePair
from .bringup import BringUp
from .errors import DeviceGone, Error, FeatureMissing, PortClosed, QueueBusy
from .negotiate import least_ring
from .spec import Feature
from .transport.base import Transport

RETRY_SECONDS = 0.05  # between attempts to reach a device that is away
LEAVE_SECONDS = 0.2  # for calls that were under way at a reset


P = ParamSpec("P")
R = TypeVar("R")


def _change(method: Callable[Concatenate[Life, P], R]) -> Callable[Concatenate[Life, P], R]:
    """Takes the device down or up; what comes in the middle of it is refused or put off."""

    @wraps(method)
    def change(self: Life, /, *args: P.args, **options: P.kwargs) -> R:
        with self._care:
            if self._changing:
                raise QueueBusy(
                    f"{self.name} cannot be reset", "a reset is under way", "let it finish first"
                )
            # Not by calls, after which a signal might come: a port that changes is never closed.
            try:
                self.__dict__["_changing"] = True
                return method(self, *args, **options)
            finally:
                self.__dict__["_changing"] = False
                if self._close_wanted:
                    self._close_wanted = False
                    self.close()

    return change


class Life(BringUp):
    """When the device works, when it is away or down, and when all is over."""

    def __init__(
        self,
        transport: Transport,
        *,
        ring_size: int | None,
        pages: int | None,
        wanted: frozenset[Feature] | None,
        queue_pairs: int,
        reconnect: bool | float,
    ) -> None:
        if reconnect and not transport.reconnects:
            raise ValueError(f"reconnect= is for vhost-user ports, not for {transport.name}")
        super().__init__(
            transport, ring_size=ring_size, pages=pages, wanted=wanted, queue_pairs=queue_pairs
        )
        self._reconnect = inf if reconnect is True else float(reconnect or transport.reconnect)
        self._gone_at: float | None = None  # while a device is away that may come back
        self._next_try = 0.0
        self._changing = False  # reset() or a return of the device is under way
        self._close_wanted = False  # and close() was called in the middle of it
        self._closed = False
        self._open()
        _open_ports.add(self)

    @_change
    def _open(self) -> None:
        self._bring_up()

    @_change
    def reset(self) -> None:
        """Reset the device and start anew: after DeviceBroken, after DeviceGone once it is back,
        or to begin from empty rings.

        Frames in flight are lost; bursts and views stay as they are; counters go on. A pair that
        another call does not leave in time is replaced: take `queues` and `fileno()` anew.
        """
        if self._closed:
            raise self._gone()
        mend = "call it again, of port.queues[i]; if it failed, port.reset() once more"
        pairs = self._queues
        why = PortClosed(f"{self.name} is closed", "the port is being reset", mend)
        self._take_down(why)
        _await_calls(pairs)
        self._transport.revive()
        try:
            self._bring_up()
        except BaseException:
            for queue in self._queues:  # of a device that is reset, where Ctrl-C came
                queue._stop(why)
            raise
        self._left.clear()
        self._gone_at = None

    @_change
    def _restart(self, queue: QueuePair, size: int | None) -> None:
        """Reset one pair's rings, and only then let go of what the device held (2.6.1)."""
        if Feature.RING_RESET not in self._features.negotiated:
            raise self._no_ring_reset()
        rings, mend = (2 * queue.index, 2 * queue.index + 1), "call it again"
        why = PortClosed(f"{self.name} is closed", "a queue pair is being reset", mend)
        memory = self._memory
        if memory is None or queue not in self._queues:
            raise (self._down or why).copy()
        sizes = [memory.sizes[i] if size is None else operator.index(size) for i in rings]
        least = least_ring(self._features.negotiated, self._max_frame)
        for index, wanted in zip(rings, sizes, strict=True):
            memory.check_size(index, wanted, least)
        try:
            held = queue._hold(why)
            if held:
                for index in rings:
                    self._transport.reset_queue(index)
                queue._pause(why)
                memory.sizes[rings[0] : rings[1] + 1] = self._sizes[rings[0] : rings[1] + 1] = sizes
                self._start_pair(queue, *self._set_up_pair(queue, memory))
        except BaseException as error:  # the device may go on writing: all of it has to stop
            if not isinstance(error, Error) or isinstance(error, (QueueBusy, PortClosed)):
                cause, mend = "a queue pair's reset was broken off", "port.reset() starts it anew"
                self._take_down(PortClosed(f"{self.name} is closed", cause, mend))
            else:
                self._take_down(error)
            raise
        if not held:
            raise QueueBusy(
                f"{self.name} cannot reset a queue pair",
                "another thread is in one of its calls",
                "let that call end first",
            )
        self._control.restore(rings)

    def _no_ring_reset(self) -> FeatureMissing:
        why = "the device does not offer RING_RESET"
        mend = "QEMU 7.2 and later: queue_reset=on; port.reset() starts all of them anew"
        if Feature.RING_RESET not in self._features.wanted:
            why = "RING_RESET is offered, and was not asked for"
            mend = "leave -ring_reset out of features="
        return FeatureMissing(f"no queue of {self.name} can be reset alone", why, mend)

    def close(self) -> None:
        """Reset the device, then let go of it. Live views stay readable. May be called twice."""
        self._end("the port was closed", "open the port again")

    def _end(self, cause: str, mend: str) -> None:
        why = PortClosed(f"{self.name} is closed", cause, mend)
        with self._care:
            if self._closed:
                return
            if self._changing:  # by a signal handler or finaliser in the middle of reset()
                self._close_wanted = True
                return
            self._take_down(why)
            self._transport.close()
            self._closed = True  # not before: a close() that Ctrl-C broke off can be repeated
            _open_ports.discard(self)
            self._memory = None
            self._left.clear()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a port is neither copied nor pickled: it has the device")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):  # its methods, bound, may be kept without it
            mend = "keep the port itself: with pyvirtnet.open(...) as port"
            self._end("nobody had the port any more", mend)

    def _take_down(self, why: Error) -> None:
        """Reset first; only then does what the device held go back to its holders (2.4)."""
        why = why.copy()  # the one that is raised has a traceback, whose frames hold our memory
        self._down = why
        self._control.stop(why)
        try:
            self._transport.reset()
        except Error as error:
            if self._transport.may_write(error):
                self._leave_memory()
        queues = self._queues
        for queue in queues:  # they stay in the list: Ctrl-C in between, and all is repeated
            if not queue._stop(why):  # a call is under way: the next rings get memory of their own
                self._memory = None
        if self._queues is queues:  # no reset() has come in between
            self._queues = []
        if self._changes is not None:
            self._changes.call()
        if isinstance(why, DeviceGone):
            self._transport.let_go(why)

    def _look(self) -> None:
        """A queue idles. A device that has gone raises DeviceGone, or is waited for."""
        if self._closed:
            return
        with Attempt(self._care) as mine:
            if not mine or self._changing:
                return
            if self._gone_at is None:
                self._check()
            if self._gone_at is not None and time.monotonic() >= self._next_try:
                self._try_again(self._gone_at)

    def _check(self) -> None:
        try:
            self._transport.check()
        except Error as gone:
            if not self._reconnect:
                self._take_down(gone)
                raise
            why = gone.copy()  # as in _take_down
            paused = [queue._pause(why) for queue in self.queues]
            if not all(paused):
                return  # another thread is in a call: look again later
            if self._transport.may_write(gone):
                self._leave_memory()
            self._gone_at = time.monotonic()

    def _try_again(self, gone_at: float) -> None:
        try:
            self._return()
        except Error as error:
            now = time.monotonic()
            self._next_try = now + RETRY_SECONDS
            if now - gone_at < self._reconnect:
                return
            gone = DeviceGone(
                f"{self.name} is gone",
                f"it did not come back within {self._reconnect:g} s; {error.what}: {error.why}",
                "start the back end again, then port.reset()",
            )
            self._take_down(gone)
            raise gone from error

    @_change
    def _return(self) -> None:
        why = PortClosed(f"{self.name} is closed", "its device is away", "wait until it is back")
        for queue in self._queues:  # started, and then Ctrl-C came
            if queue.pool is not None and not queue._pause(why):
                return  # another thread is in a call: try later
        self._transport.revive(0.0)
        self._bring_up()
        self._left.clear()
        self._gone_at = None

    def _abandon(self) -> None:
        """In a forked child: the device is the parent's; only our copies of files go."""
        self._closed, self._changing, self._care = True, False, RLock()
        why = "it belongs to the process that this one was forked from"
        closed = PortClosed(f"{self.name} is closed", why, "open the port again")
        self._down = closed
        self._control.abandon(closed)
        for queue in self._made:
            queue._abandon(closed)
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        self._transport.abandon()


def open_ports() -> list[Life]:
    """Of this process."""
    while True:
        try:
            return list(_open_ports)
        except RuntimeError:  # another thread opened one meanwhile
            continue


def _await_calls(pairs: list[QueuePair]) -> None:
    """Calls of other threads end soon, and then their pairs serve again."""
    end = time.monotonic() + LEAVE_SECONDS
    while any(pair.pool is not None for pair in pairs) and time.monotonic() < end:
        time.sleep(0.001)


_open_ports: weakref.WeakSet[Life] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Leave no device alive at exit. The kernel does the same for a process that is killed."""
    for port in open_ports():
        try:
            port.close()
        except BaseException:  # one that cannot be closed keeps no other from it
            sys.excepthook(*sys.exc_info())


def _before_fork() -> None:
    for port in open_ports():
        for queue in port.queues:
            queue._before_fork()


def _after_fork() -> None:
    for port in list(_open_ports):
        try:
            port._abandon()
        except BaseException:  # the others are the parent's as well
            sys.excepthook(*sys.exc_info())
    _open_ports.clear()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
