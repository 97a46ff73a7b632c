"""One queue pair: what `recv_burst` and `send_burst` run on."""

from libc.stdint cimport uint8_t, uint32_t

from ._burst cimport RxBurst
from ._frames cimport Sender
from ._post cimport RxRing


cdef class QueuePair(Sender):
    cdef RxRing rx
    cdef uint8_t rx_busy, tx_busy
    cdef object closed              # None, or why there is no queue now: an Error
    cdef bint stopped               # closed because the device was reset
    cdef bint away                  # closed, yet calls find nothing instead of raising
    cdef object look                # called now and then: is the device there, and is it ours?
    cdef object restart             # called to start this pair alone anew
    cdef uint32_t calls, idle_calls
    cdef double looked              # when
    cdef object rx_call, tx_call    # doorbells of devices in this process
    cdef RxBurst nothing            # the empty burst
    cdef readonly Py_ssize_t index  # which pair of its port it is
    cdef int irq_fd                 # receive interrupt, -1 if there is none
    cdef object waker               # what a sleeper sleeps on; None until there was one
    cdef tuple wake_fds             # the interrupt, and what else wakes it
    cdef bint watched               # somebody has its file descriptor
    cdef bint armed                 # receive interrupts are on
    cdef readonly double spin       # seconds to look for frames before sleeping
    cdef uint8_t shy, shy_left      # short sleeps to let pass before another look

    cdef RxBurst _poll(self, Py_ssize_t n)
    cdef RxBurst _sleep(self, Py_ssize_t n, double seconds)
    cdef object _sleeper(self)
    cdef int _call_sleeper(self) except -1
    cdef int _arm(self) except -1
    cdef void _disarm(self) noexcept
    cdef bint _spin(self) noexcept
    cdef void _adapt(self, double slept) noexcept
    cdef inline int _begin(self) except -1
    cdef int _idle(self) except -1
    cdef int _look_after(self, double seconds) except -1
    cdef Py_ssize_t _send(self, frames) except -1
    cdef RxBurst _receive(self, Py_ssize_t n, int pending)
    cdef bint _let_go(self)
    cdef int _leave(self, uint8_t *busy) except -1
    cdef int _call_rx(self) except -1
    cdef int _call_tx(self) except -1
    cdef int _reclaim(self) except -1
