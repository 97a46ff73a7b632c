"""What wakes a sleeper: interrupts and calls, gathered behind one file descriptor."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Iterable
from contextlib import suppress

from .errors import OutOfMemory, mend_of

_MOST = 64  # of what woke us, told at once

# What became of a file descriptor that another thread closes before it is watched: nothing; the
# same, watched already; the number of a file that wakes nobody, of ours, or of another epoll's.
_NOT_THERE = {errno.EBADF, errno.EEXIST, errno.EPERM, errno.EINVAL, errno.ELOOP}


class WakeUp:
    """A file descriptor that is readable from the first wake-up on, until `drain()`.

    An epoll instance, and edge-triggered: nobody reads the eventfds in it, so that any number of
    sleepers can share one, as queues do where interrupt vectors are short.
    """

    def __init__(self) -> None:
        try:
            self._own = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._epoll = select.epoll()
        except OSError as error:
            why, mend = error.strerror or str(error), mend_of(error, "free memory")
            raise OutOfMemory("cannot wait for a device", why, mend) from error
        self._watched: set[int] = set()
        # Who falls asleep, and who brings the device back: perhaps a signal handler in this thread.
        self._watching = threading.RLock()
        self._add(self._own)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, fds: Iterable[int]) -> None:
        """Wake up for these file descriptors from now on, and for no others; -1 is for none."""
        with self._watching:
            for fd in self._watched:
                with suppress(OSError):  # closed, and so taken out already
                    self._epoll.unregister(fd)
            # Its own number may have been another's, whose end nobody here knows of yet.
            self._watched = {fd for fd in fds if fd >= 0 and fd != self._own}
            for fd in self._watched:
                try:
                    self._add(fd)
                except OSError as error:
                    if error.errno not in _NOT_THERE:
                        raise

    def _add(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def call(self) -> None:
        """Wake the sleeper, or keep it from falling asleep."""
        os.eventfd_write(self._own, 1)

    def drain(self) -> None:
        """Forget what woke us: look at everything after this, and sleep if there is nothing."""
        self._epoll.poll(0, _MOST)

    def sleep(self, seconds: float) -> bool:
        """Until a wake-up that was not drained, for so long at the most; was there one?"""
        poll = select.poll()  # one of its own: two threads can't be in the same
        poll.register(self._epoll, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """May be called twice. A sleeper sleeps on: `call` it first."""
        own, self._own = self._own, -1
        if own >= 0:
            os.close(own)
            self._epoll.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # there were not file descriptors enough for it
            self.close()
