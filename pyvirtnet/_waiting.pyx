"""Sleeping until a receive queue has frames: what wakes it, and when interrupts are asked for."""

cimport cython

from ._post cimport rx_set_interrupts
from ._receive cimport rx_pending

from .errors import FeatureMissing
from .wakeup import WakeUp

# If the last sleep was shorter than this, frames are looked for so long before the next one.
cdef double SPIN_SECONDS = 100e-6

cdef enum:
    SHYEST = 127                # short sleeps without a look, after looks in vain


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class Waiter(Sender):
    """The receive queue of a pair, and who sleeps until something comes there."""

    def fileno(self):
        """A file descriptor that is readable when frames may have come, or the device has news.

        For select, epoll and asyncio. It stays readable until `recv_burst` finds nothing, so
        receive until then before you sleep; and it may be readable in vain. The same number for
        as long as the pair exists. Raises FeatureMissing where there are no interrupts.
        """
        if self.closed is not None and not self.away:
            raise self._gone()
        if self.irq_fd < 0:
            raise FeatureMissing(f"{self.name} has no file descriptor to wait for",
                                 "its device cannot interrupt this driver",
                                 "recv_burst(n, timeout=...) waits without")
        if not self.watched:
            sleeper = self._sleeper()  # first: there may be no file descriptors left for it
            self.watched = True
            sleeper.call()  # the first call that finds nothing asks for interrupts
        return self._sleeper().fileno()

    cdef object _sleeper(self):
        if self.waker is None:
            made = WakeUp()
            if self.waker is None:  # nobody else has made one meanwhile
                self.waker = made
        while self.told is not self.wake_fds:  # or the device has come back meanwhile
            fds = self.wake_fds
            self.waker.watch(fds)
            self.told = fds
        return self.waker

    cdef int _call_sleeper(self) except -1:
        if self.waker is not None:
            self.waker.call()
        return 0

    cdef int _arm(self) except -1:
        """Nothing is there: be woken by what comes from now on, and by what came just now (2.7.7).

        Wake-ups are forgotten first, then interrupts are asked for, then the ring is looked at.
        """
        self.waker.drain()
        if self.closed is None:
            rx_set_interrupts(&self.rx, True)
            self.armed = True
            if rx_pending(&self.rx) != 0:
                self.waker.call()
        elif not self.away:  # the end: nobody sleeps through that
            self.waker.call()
        return 0

    cdef int _forget(self) except -1:
        """The device is away: what woke us did so in vain, unless that has changed meanwhile."""
        self.waker.drain()
        if not self.away:
            self.waker.call()
        return 0

    cdef void _disarm(self) noexcept:
        self.armed = False
        if self.closed is None:
            rx_set_interrupts(&self.rx, False)

    cdef bint _spin(self) noexcept:
        """Look for a frame a while, if it is likely to come sooner than sleeping is worth."""
        cdef bint found = False
        cdef double end
        if self.spin == 0 or self.closed is not None:
            return False
        with nogil:
            end = now_seconds() + self.spin
            while not found and now_seconds() < end:
                found = rx_pending(&self.rx) != 0
        self.shy = 0 if found else min(2 * self.shy + 1, <int>SHYEST)
        self.shy_left = self.shy
        return found

    cdef void _adapt(self, double slept) noexcept:
        """A frame that came soon after falling asleep: the next one may be worth looking for.

        Not where the device needs our processor to send it: looks in vain become rare.
        """
        self.spin = 0
        if slept < SPIN_SECONDS:
            if self.shy_left:
                self.shy_left -= 1
            else:
                self.spin = SPIN_SECONDS
