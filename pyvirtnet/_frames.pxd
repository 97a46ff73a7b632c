"""Frames of any kind, put into the transmit ring of a queue pair."""

from libc.stdint cimport uint32_t

from ._burst cimport Burst, Frame
from ._pages cimport PagePool, Store
from ._reclaim cimport TxRing


cdef class Sender:
    cdef TxRing tx
    cdef readonly PagePool pool
    cdef object name
    cdef object closed              # None, or why there is no queue now: an Error
    cdef public Py_ssize_t release_from     # frames of a call, for which it releases the GIL
    cdef uint32_t halt              # a call without the GIL: 1 halt there, 2 it does

    cdef void _without_gil(self) noexcept nogil
    cdef Py_ssize_t _put_rows(self, burst) except -1
    cdef Py_ssize_t _put_list(self, frames) except -1
    cdef uint32_t _put_without_gil(self, Burst rows, int *done) noexcept
    cdef bint _put_frame(self, Frame frame, Py_ssize_t i) except -1
    cdef bint _put_copy(self, item, Py_ssize_t i) except -1
    cdef bint _put_held(self, Store *store, uint32_t frame, Py_ssize_t i) except -1
    cdef Py_ssize_t _not_put(self, int done, const Store *store, uint32_t frame,
                             Py_ssize_t i) except -1
    cdef object _foreign(self)
    cdef object _size_error(self, Py_ssize_t i, Py_ssize_t size)
