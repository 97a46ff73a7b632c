"""Used receive buffers become frames of a store."""

from libc.stdint cimport uint32_t

from ._pages cimport Store
from ._post cimport RxRing


cdef int rx_pending(RxRing *rx) noexcept nogil
cdef uint32_t rx_waiting(RxRing *rx) noexcept nogil
cdef int rx_receive(RxRing *rx, Store *store, uint32_t want, uint32_t pending) noexcept nogil
