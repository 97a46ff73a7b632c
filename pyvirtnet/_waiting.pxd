"""The receive queue of a pair, and who sleeps on it."""

from libc.stdint cimport uint8_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from ._frames cimport Sender
from ._post cimport RxRing


cdef class Waiter(Sender):
    cdef RxRing rx
    cdef bint away                  # closed, yet calls find nothing instead of raising
    cdef int irq_fd                 # receive interrupt, -1 if there is none
    cdef object waker               # what a sleeper sleeps on; None until there was one
    cdef tuple wake_fds             # the interrupt, and what else wakes it
    cdef tuple told                 # of these, the waker knows
    cdef bint watched               # somebody has its file descriptor
    cdef bint armed                 # receive interrupts are on
    cdef readonly double spin       # seconds to look for frames before sleeping
    cdef uint8_t shy, shy_left      # short sleeps to let pass before another look

    cdef object _sleeper(self)
    cdef int _call_sleeper(self) except -1
    cdef int _forget(self) except -1
    cdef int _arm(self) except -1
    cdef void _disarm(self) noexcept
    cdef bint _spin(self) noexcept
    cdef void _adapt(self, double slept) noexcept


cdef inline double now_seconds() noexcept nogil:
    """Of a clock that only goes forward."""
    cdef timespec clock
    clock_gettime(CLOCK_MONOTONIC, &clock)
    return clock.tv_sec + 1e-9 * clock.tv_nsec
