"""Frames of a store put into a transmit ring, and shown to the device."""

from libc.stdint cimport uint32_t

from ._pages cimport Store
from ._reclaim cimport TxRing

cdef enum:                      # or a REFUSED_ code of _offload
    PUT_FULL = 0
    PUT_TAKEN = 1


cdef int tx_put(TxRing *tx, Store *store, uint32_t frame) noexcept nogil
cdef uint32_t tx_put_linear(TxRing *tx, Store *store, Py_ssize_t start, Py_ssize_t step,
                            const uint32_t *index, uint32_t count) noexcept nogil
cdef void tx_rewind(TxRing *tx) noexcept
cdef void tx_publish(TxRing *tx) noexcept nogil
