"""Bursts: columns over a store, and which of its frames they select."""

from libc.stdint cimport uint8_t, uint32_t

from ._pages cimport Store

cdef enum:
    LONG_BURST = 1024  # frames: some 10 us of work, as long as it takes to get the GIL again


cdef class Burst:
    cdef Store *store
    cdef bint holds             # one hold of the store is this burst's
    cdef Burst root             # for slices: the burst that holds the store
    cdef Py_ssize_t start       # frame i of the burst is frame start + i * step of the store,
    cdef Py_ssize_t step
    cdef Py_ssize_t count
    cdef uint32_t *index        # or frame index[i]
    cdef object __weakref__

    cdef Burst owner(self)
    cdef object _one(self, uint32_t index)
    cdef object _gather(self, const uint8_t *first, Py_ssize_t stride, int dimensions,
                        Py_ssize_t width, int kind)
    cdef object _rows(self, Py_ssize_t width)
    cdef object _headers(self)
    cdef Burst _like(self)
    cdef Burst _slice(self, key)
    cdef Burst _select(self, key)
    cdef inline uint32_t frame(self, Py_ssize_t i) noexcept nogil:
        return self.index[i] if self.index != NULL else <uint32_t>(self.start + i * self.step)


cdef class RxBurst(Burst):
    pass


cdef class TxBurst(Burst):
    pass


cdef class Frame:
    cdef Burst burst            # the one that holds the store
    cdef uint32_t index         # in the store


cdef RxBurst new_rx_burst(Store *store)
cdef RxBurst empty_rx_burst()
