"""One queue pair: what `recv_burst` and `send_burst` run on."""

from libc.stdint cimport uint8_t, uint32_t

from ._burst cimport RxBurst
from ._pages cimport Store
from ._waiting cimport Waiter


cdef class QueuePair(Waiter):
    cdef uint8_t rx_busy, tx_busy
    cdef bint lent                  # the receiving side is at the transmit ring
    cdef bint stopped               # closed because the device was reset
    cdef object look                # called now and then: is the device there, and is it ours?
    cdef object restart             # called to start this pair alone anew
    cdef uint32_t calls, idle_calls
    cdef public uint32_t late_after  # bursts that nobody has looked at, before heads come late
    cdef public uint32_t late_from   # in bursts of so many frames
    cdef uint32_t in_vain           # looks at the receive ring in a row that found nothing
    cdef double looked              # when
    cdef object rx_call, tx_call    # doorbells of devices in this process
    cdef RxBurst nothing            # the empty burst
    cdef RxBurst kept               # received by a call that a doorbell's error ended
    cdef readonly Py_ssize_t index  # which pair of its port it is

    cdef RxBurst _poll(self, Py_ssize_t n)
    cdef RxBurst _take_kept(self, Py_ssize_t n)
    cdef void _drop_kept(self) noexcept
    cdef int _call_rx_after(self, RxBurst burst) except -1
    cdef RxBurst _sleep(self, Py_ssize_t n, double seconds)
    cdef RxBurst _sleep_inside(self, Py_ssize_t n, double seconds)
    cdef inline int _begin(self) except -1
    cdef int _idle(self) except -1
    cdef int _look_after(self, double seconds) except -1
    cdef Py_ssize_t _send(self, frames) except -1
    cdef RxBurst _receive(self, Py_ssize_t n, int pending)
    cdef inline uint32_t _take_slots(self, uint32_t want, uint32_t *first) noexcept
    cdef inline int _fill(self, Store *store, uint32_t slots, int pending) noexcept
    cdef int _free_slots(self) except -1
    cdef inline bint _late(self, uint32_t frames) noexcept
    cdef int _receive_without_gil(self, Store *store, uint32_t slots, int pending) noexcept
    cdef bint _let_go(self)
    cdef RxBurst _stay_out(self, call, bint lent=*)
    cdef int _leave(self, uint8_t *busy) except -1
    cdef int _call_rx(self) except -1
    cdef int _call_tx(self) except -1
    cdef int _reclaim(self) except -1
