"""Bytes-likes copied into head slots and pages of a pool."""

from libc.stdint cimport uint8_t, uint32_t

from ._pages cimport PagePool, Store


cdef object as_bytes(item, Py_ssize_t i, str what=*)
cdef Py_ssize_t pages_for(Py_ssize_t length) noexcept
cdef Store *copy_in(PagePool pool, const uint8_t *data, uint32_t length) noexcept
