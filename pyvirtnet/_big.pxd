"""Frames taken out of big receive buffers, each a chain of pages."""

from libc.stdint cimport uint32_t

from ._pages cimport Store
from ._post cimport RxRing


cdef bint big_frame(RxRing *rx, Store *store, uint32_t n) noexcept nogil
