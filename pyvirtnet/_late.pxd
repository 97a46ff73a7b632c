"""Frames whose heads stay in their buffers until somebody looks at them."""

from libc.stdint cimport uint32_t

from ._pages cimport Store
from ._post cimport RxRing

cdef bint late_begin(RxRing *rx, uint32_t frames, bint late) noexcept
cdef uint32_t late_receive(RxRing *rx, Store *store, uint32_t want) noexcept
cdef void late_give_back(RxRing *rx, bint all_of_them) noexcept
cdef void late_look(RxRing *rx) noexcept
cdef void late_forget(RxRing *rx) noexcept
