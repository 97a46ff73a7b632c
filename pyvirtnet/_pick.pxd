"""Masks and lists of indices, as numbers of frames."""

from libc.stdint cimport uint32_t

cdef uint32_t *pick(object key, Py_ssize_t count, Py_ssize_t *picked) except NULL
