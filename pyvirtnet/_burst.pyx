"""RxBurst, TxBurst and Frame: columns, views and how long their memory lives.

A burst holds its store: head slots, pages, lengths. Every array handed out has the burst as its
base, so what a view shows stays where it is until the last view is gone. Slices select frames of
the same store and keep its first burst.
"""

cimport cython
cimport numpy as cnp

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyIndex_Check, PyNumber_AsSsize_t
from cpython.ref cimport Py_INCREF, PyObject
from cpython.slice cimport PySlice_AdjustIndices, PySlice_Unpack
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import numpy as np

from ._layout cimport Header
from ._pages cimport (
    HEAD_BYTES,
    HEADER_BYTES,
    Frag,
    Store,
    attach_headers,
    drop_store,
    heads,
    new_linear_store,
    page_address,
)
from ._pick cimport pick

cnp.import_array()

MIN_FRAME = 14
MAX_FRAME = 65535
OFFLOAD = np.dtype([("flags", "u1"), ("gso_type", "u1"), ("hdr_len", "<u2"), ("gso_size", "<u2"),
                    ("csum_start", "<u2"), ("csum_offset", "<u2")])

cdef bint _making = False  # set while this module makes a burst or a frame: nobody else may


cdef object _view(object base, void *data, int nd, cnp.npy_intp *shape, cnp.npy_intp *strides,
                  int kind, int flags):
    """An array over memory that `base` keeps alive."""
    cdef cnp.ndarray array = cnp.PyArray_New(
        cnp.ndarray, nd, shape, kind, strides, data, 0, flags, None)
    Py_INCREF(base)
    cnp.PyArray_SetBaseObject(array, base)
    return array


cdef object _bytes_view(object base, uint8_t *data, cnp.npy_intp length):
    return _view(base, data, 1, &length, NULL, cnp.NPY_UINT8, cnp.NPY_ARRAY_CARRAY)


@cython.no_gc  # no cycles: a burst refers to another burst at most
@cython.auto_pickle(False)
@cython.freelist(256)  # for both kinds below: they add nothing
cdef class Burst:
    """Frames received or to be sent, side by side: what RxBurst and TxBurst have in common.

    `len(burst)`, `burst[i]`, `burst[a:b:c]`, `burst[mask]`, `burst[indices]`, iteration. Slices,
    masks and indices select frames without copying them.
    """

    def __cinit__(self):
        if not _making:
            raise TypeError(f"{type(self).__name__} objects come from a port")

    def __dealloc__(self):
        free(self.index)
        if self.holds:
            drop_store(self.store, 1)

    cdef Burst owner(self):
        return self if self.root is None else self.root

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        cdef Py_ssize_t i
        if isinstance(key, slice):
            return self._slice(key)
        if PyIndex_Check(key) and not isinstance(key, (bool, np.bool_, np.ndarray)):
            i = PyNumber_AsSsize_t(key, IndexError)
            if i < 0:
                i += self.count
            if not 0 <= i < self.count:
                raise IndexError(f"frame {key} of a burst of {self.count}")
            return self._one(self.frame(i))
        return self._select(key)

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            yield self._one(self.frame(i))

    @property
    def lengths(self):
        """uint32[n]: bytes of each frame, the virtio header not counted. Read-only."""
        cdef cnp.npy_intp shape = self.count, stride = self.step * sizeof(uint32_t)
        if self.index != NULL:
            return self._gather(<const uint8_t *>self.store.lengths, sizeof(uint32_t), 1, 1,
                                cnp.NPY_UINT32)
        return _view(self.owner(), self.store.lengths + self.start, 1, &shape, &stride,
                     cnp.NPY_UINT32, cnp.NPY_ARRAY_ALIGNED)

    cdef object _gather(self, const uint8_t *first, Py_ssize_t stride, int dimensions,
                        Py_ssize_t width, int kind):
        """A read-only copy of what lies at `first`, one stride on and so on, for picked frames."""
        cdef cnp.npy_intp shape[2]
        cdef cnp.ndarray copy
        cdef uint8_t *to
        cdef Py_ssize_t i
        shape[0], shape[1] = self.count, width
        copy = cnp.PyArray_EMPTY(dimensions, shape, kind, 0)
        to = <uint8_t *>cnp.PyArray_DATA(copy)
        width *= cnp.PyArray_ITEMSIZE(copy)
        for i in range(self.count):
            memcpy(to + i * width, first + self.index[i] * stride, width)
        cnp.PyArray_CLEARFLAGS(copy, cnp.NPY_ARRAY_WRITEABLE)
        return copy

    cdef object _rows(self, Py_ssize_t width):
        """The heads as one array; frames picked by mask or indices as a read-only copy."""
        cdef cnp.npy_intp shape[2]
        cdef cnp.npy_intp strides[2]
        shape[0], shape[1] = self.count, width
        strides[0], strides[1] = self.step * <cnp.npy_intp>self.store.stride, 1
        if not self.count:
            return np.empty((0, width), np.uint8)
        if self.index != NULL:
            return self._gather(heads(self.store), self.store.stride, 2, width, cnp.NPY_UINT8)
        return _view(self.owner(), heads(self.store) + self.start * <Py_ssize_t>self.store.stride,
                     2, shape, strides, cnp.NPY_UINT8,
                     cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)

    @property
    def offload(self):
        """OFFLOAD[n]: what is left to the device, or was left by it (VIRTIO 1.3, 5.1.6), writable.

        Fields are flags, gso_type, hdr_len, gso_size, csum_start and csum_offset; all zero: nothing
        is. Sent frames need a port with the features. hdr_len is taken from the frame itself. For
        frames picked by a mask or by indices it is a read-only copy. Raises MemoryError.
        """
        return self._headers()[:, :OFFLOAD.itemsize].view(OFFLOAD)[:, 0]

    @property
    def hash_value(self):
        """uint32[n]: the device's hash of each frame, 0 where it gave none. See `hash_type`."""
        return self._headers()[:, 12:16].view("<u4")[:, 0]

    @property
    def hash_type(self):
        """uint16[n]: what the hash was taken over (VIRTIO 1.3, 5.1.6.4.4): 0 nothing, 1 IPv4, 2 TCP
        and 3 UDP over it, 4 IPv6, 5 TCP and 6 UDP over that, 7 to 9 these with extension headers.

        All zero without features=["+hash_report"] and `port.hash_types` set.
        """
        return self._headers()[:, 16:18].view("<u2")[:, 0]

    cdef object _headers(self):
        """The frames' virtio headers, uint8[n, 20], as kept in private memory."""
        cdef cnp.npy_intp shape[2]
        cdef cnp.npy_intp strides[2]
        cdef uint8_t *first
        if not self.count:
            return np.zeros((0, sizeof(Header)), np.uint8)
        if self.store.headers == NULL and not attach_headers(self.store):
            raise MemoryError
        first = <uint8_t *>self.store.headers
        if self.index != NULL:
            return self._gather(first, sizeof(Header), 2, sizeof(Header), cnp.NPY_UINT8)
        shape[0], shape[1] = self.count, sizeof(Header)
        strides[0], strides[1] = self.step * <Py_ssize_t>sizeof(Header), 1
        return _view(self.owner(), first + self.start * <Py_ssize_t>sizeof(Header), 2, shape,
                     strides, cnp.NPY_UINT8, cnp.NPY_ARRAY_ALIGNED | cnp.NPY_ARRAY_WRITEABLE)

    cdef Burst _like(self):
        global _making
        cdef Burst burst
        _making = True  # and nothing below that a garbage collection might come in
        if isinstance(self, RxBurst):
            burst = RxBurst.__new__(RxBurst)
        else:
            burst = TxBurst.__new__(TxBurst)
        _making = False
        burst.store, burst.root = self.store, self.owner()
        return burst

    cdef Burst _slice(self, key):
        cdef Py_ssize_t start, stop, step, i
        cdef Burst burst = self._like()
        PySlice_Unpack(key, &start, &stop, &step)
        burst.count = PySlice_AdjustIndices(self.count, &start, &stop, step)
        if burst.count < 2:
            step = 1  # it may be any number there is; products of others stay in the store
        burst.start, burst.step = self.start + start * self.step, self.step * step
        if self.index != NULL and burst.count:
            burst.index = <uint32_t *>malloc(burst.count * sizeof(uint32_t))
            if burst.index == NULL:
                raise MemoryError
            for i in range(burst.count):
                burst.index[i] = self.index[start + i * step]
        return burst

    cdef Burst _select(self, key):
        cdef Py_ssize_t i
        cdef Burst burst = self._like()
        burst.index = pick(key, self.count, &burst.count)
        burst.step = 1
        for i in range(burst.count):
            burst.index[i] = self.frame(burst.index[i])
        return burst

    cdef object _one(self, uint32_t index):
        """The frame at `index` of the store, as the kind of burst shows it."""
        raise NotImplementedError


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class RxBurst(Burst):
    """Frames received together, from `recv_burst`. See Burst for indexing.

    Its memory goes back to the port when the burst and every view of it are gone, and every
    transmit of it is done.
    """

    @property
    def heads(self):
        """uint8[n, 128]: the first 128 bytes of every frame, one array, writable.

        Bytes of a row past its frame's end are unspecified. For frames picked by a mask or by
        indices it is a read-only copy: write to `burst.heads[mask]` of the whole burst instead.
        """
        return self._rows(HEAD_BYTES)

    cdef object _one(self, uint32_t index):
        return _frame(self.owner(), index)

    def __repr__(self):
        return f"<RxBurst of {self.count} frames>"


@cython.final
@cython.no_gc
@cython.auto_pickle(False)
cdef class TxBurst(Burst):
    """Frames laid out in DMA memory by `alloc_burst`, to be filled and sent, as often as you like.

    The device reads the memory from `send_burst` on until it is done: what is written meanwhile
    may or may not be in the frame. `tx_pending` or `reclaim()` of the queue pair that sent it tell
    when it is done.
    """

    @property
    def data(self):
        """uint8[n, size]: the frames, one a row, writable (a read-only copy for picked ones)."""
        return self._rows(self.store.head_room)

    def set_lengths(self, lengths):
        """Send only the first `lengths[i]` bytes of row i: one number, or one for each frame."""
        cdef Py_ssize_t i
        cdef cnp.ndarray wanted = np.asarray(lengths)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise TypeError(f"lengths are whole numbers, not {wanted.dtype}")
        wanted = np.broadcast_to(wanted, (self.count,)).astype(np.int64, order="C")
        if self.count and (wanted.min() < MIN_FRAME or wanted.max() > self.store.head_room):
            raise ValueError(
                f"lengths must lie between {MIN_FRAME} and {self.store.head_room} bytes")
        for i in range(self.count):
            self.store.lengths[self.frame(i)] = (<const int64_t *>cnp.PyArray_DATA(wanted))[i]

    cdef object _one(self, uint32_t index):
        return _bytes_view(self.owner(), heads(self.store) + <size_t>index * self.store.stride,
                           self.store.lengths[index])

    def __repr__(self):
        return f"<TxBurst of {self.count} frames of {self.store.head_room} bytes>"


@cython.final
@cython.no_gc
@cython.freelist(256)
@cython.auto_pickle(False)
cdef class Frame:
    """One frame of a burst. It keeps the whole burst's memory."""

    def __cinit__(self):
        if not _making:
            raise TypeError("frames come from a burst: burst[i]")

    def __len__(self):
        return self.burst.store.lengths[self.index]

    @property
    def head(self):
        """uint8[min(128, len(frame))]: the linear head, a writable view."""
        cdef Store *store = self.burst.store
        return _bytes_view(self.burst, heads(store) + <size_t>self.index * store.stride,
                           min(store.lengths[self.index], <uint32_t>HEAD_BYTES))

    @property
    def frags(self):
        """Tuple of uint8 arrays: the rest of the frame, zero-copy views into receive pages."""
        cdef Store *store = self.burst.store
        cdef uint32_t i
        cdef Frag *frag
        if store.begin == NULL:
            return ()
        views = []
        for i in range(store.begin[self.index], store.begin[self.index + 1]):
            frag = &store.frags[i]
            views.append(_bytes_view(
                self.burst, page_address(store.pool, frag.page) + frag.offset, frag.length))
        return tuple(views)

    def __bytes__(self):
        """A copy of the whole frame."""
        cdef Store *store = self.burst.store
        cdef uint32_t length = store.lengths[self.index], i
        cdef uint32_t linear = min(length, <uint32_t>HEAD_BYTES)
        cdef Frag *frag
        cdef bytes copy = PyBytes_FromStringAndSize(NULL, length)
        cdef char *to = PyBytes_AS_STRING(copy)
        memcpy(to, heads(store) + <size_t>self.index * store.stride, linear)
        to += linear
        if store.begin != NULL:
            for i in range(store.begin[self.index], store.begin[self.index + 1]):
                frag = &store.frags[i]
                memcpy(to, page_address(store.pool, frag.page) + frag.offset, frag.length)
                to += frag.length
        return copy

    def __repr__(self):
        return f"<Frame of {len(self)} bytes>"


cdef Frame _frame(Burst burst, uint32_t index):
    global _making
    _making = True
    cdef Frame frame = Frame.__new__(Frame)
    _making = False
    frame.burst, frame.index = burst, index
    return frame


cdef RxBurst new_rx_burst(Store *store):
    """The burst that holds `store`; it takes over the caller's hold."""
    global _making
    _making = True
    cdef RxBurst burst = RxBurst.__new__(RxBurst)
    _making = False
    burst.store, burst.step, burst.count, burst.holds = store, 1, store.nframes, True
    return burst


cdef RxBurst empty_rx_burst():
    """A burst of no frames."""
    cdef Store *store = new_linear_store(0)
    if store == NULL:
        raise MemoryError
    return new_rx_burst(store)


def make_tx_burst(block, size_t address, iova, uint32_t frames, uint32_t size):
    """A TxBurst over `block`, zeroed DMA memory at `address`, which it keeps.

    Each frame has a row of `tx_stride(size)` bytes; its header ends and its data begin at
    byte 64 of the row.
    """
    global _making
    _making = True
    cdef TxBurst burst = TxBurst.__new__(TxBurst)
    _making = False
    cdef uint32_t i
    burst.store = new_linear_store(frames)
    if burst.store == NULL:
        raise MemoryError
    burst.step, burst.count, burst.holds = 1, frames, True
    burst.store.head_room, burst.store.stride = size, tx_stride(size)
    burst.store.first_head = <uint8_t *>address + 64
    burst.store.header_iova = iova + 64 - HEADER_BYTES
    burst.store.owner = <PyObject *>block
    Py_INCREF(block)
    for i in range(frames):
        burst.store.lengths[i] = size
    return burst


def tx_stride(uint32_t size):
    """Bytes from one frame of a TxBurst to the next: whole cache lines, header included."""
    return (64 + size + 63) & ~63
