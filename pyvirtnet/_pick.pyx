"""Masks and lists of indices, as numbers of frames: one pass, where numpy takes ten."""

cimport numpy as cnp

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from ._barrier cimport read_once

import numpy as np

cnp.import_array()


cdef uint32_t *pick(object key, Py_ssize_t count, Py_ssize_t *picked) except NULL:
    """Which of `count` frames a mask or a list of indices picks, and how many; to be freed."""
    cdef cnp.ndarray array = np.asarray(key)
    if array.ndim != 1:
        raise IndexError("a burst is indexed by a number, a slice, a mask or a list of indices")
    if cnp.PyArray_TYPE(array) == cnp.NPY_BOOL:
        return _masked(array, count, picked)
    if cnp.PyArray_TYPE(array) != cnp.NPY_INTP or not cnp.PyArray_ISBEHAVED_RO(array):
        array = _whole(array, count)
    return _listed(array, count, picked)


cdef object _whole(cnp.ndarray array, Py_ssize_t count):
    """Indices as intp[n]; what is too large for that is too large for the burst."""
    if array.size == 0:
        return np.empty(0, np.intp)
    if array.dtype.kind not in "iu":
        raise IndexError(f"indices must be whole numbers, not {array.dtype}")
    if array.dtype.kind == "u":
        array = np.minimum(array.astype(np.uint64), np.uint64(count))
    return array.astype(np.intp)


cdef uint32_t *_room(Py_ssize_t frames) except NULL:
    cdef uint32_t *numbers = <uint32_t *>malloc(max(frames, <Py_ssize_t>1) * sizeof(uint32_t))
    if numbers == NULL:
        raise MemoryError
    return numbers


cdef uint32_t *_masked(cnp.ndarray mask, Py_ssize_t count, Py_ssize_t *picked) except NULL:
    cdef Py_ssize_t size = cnp.PyArray_DIM(mask, 0), stride = cnp.PyArray_STRIDE(mask, 0), i, n = 0
    cdef const uint8_t *bits = <const uint8_t *>cnp.PyArray_DATA(mask)
    cdef uint32_t *numbers
    if size != count:
        raise IndexError(f"a mask of {size} for a burst of {count}")
    numbers = _room(count)
    for i in range(count):
        numbers[n] = i  # and again, unless it is picked
        n += bits[i * stride] != 0
    picked[0] = n
    return numbers


cdef uint32_t *_listed(cnp.ndarray indices, Py_ssize_t count, Py_ssize_t *picked) except NULL:
    cdef Py_ssize_t size = cnp.PyArray_DIM(indices, 0), i
    cdef Py_ssize_t stride = cnp.PyArray_STRIDE(indices, 0)
    cdef const uint8_t *values = <const uint8_t *>cnp.PyArray_DATA(indices)
    cdef uint32_t *numbers = _room(size)
    cdef cnp.npy_intp value
    for i in range(size):
        value = <cnp.npy_intp>read_once(values + i * stride)  # it may change meanwhile
        if not -count <= value < count:
            free(numbers)
            raise IndexError(f"index {value} in a list for a burst of {count}")
        numbers[i] = value + count if value < 0 else value
    picked[0] = size
    return numbers
