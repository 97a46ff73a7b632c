"""What `send_burst` is given, put into a transmit ring: bursts, frames, bytes-likes."""

cimport cython

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t
from posix.unistd cimport usleep

from ._barrier cimport hold, peek32, poke32
from ._burst cimport Burst, Frame
from ._copy cimport as_bytes, copy_in, pages_for
from ._layout cimport NetHdr
from ._offload cimport (
    REFUSED_BARE,
    REFUSED_CSUM,
    REFUSED_ECN,
    REFUSED_FIELD,
    REFUSED_FLAGS,
    REFUSED_GSO,
    REFUSED_GSO_SIZE,
    REFUSED_HEADERS,
    REFUSED_SIZE,
    REFUSED_TYPE,
    header_to_send,
)
from ._pages cimport Store, drop_store, is_ours
from ._reclaim cimport TxRing, tx_free
from ._transmit cimport PUT_TAKEN, tx_put, tx_put_linear

from .errors import PortClosed

cdef enum:
    MIN_FRAME = 14              # an Ethernet header
    HALT_MICROSECONDS = 1000
    MOST_HALTS = 60000

_REFUSED = {
    REFUSED_FLAGS: "its offload flags are more than NEEDS_CSUM and DATA_VALID",
    REFUSED_CSUM: "its checksum is still to be made, and this port leaves none to its device: "
                  'fix_checksums(burst) makes it, open(..., features=["+csum"]) would leave it',
    REFUSED_FIELD: "csum_start and csum_offset do not lead to a checksum in it",
    REFUSED_TYPE: "its gso_type is none that there is",
    REFUSED_GSO: "it is to be segmented, and the device was not asked whether it can: "
                 "open(..., offloads=True)",
    REFUSED_BARE: "it is to be segmented, which goes with NEEDS_CSUM (5.1.6.2.1)",
    REFUSED_GSO_SIZE: "it is to be segmented into segments of gso_size 0",
    REFUSED_HEADERS: "it is to be segmented, and ends within its headers",
    REFUSED_ECN: "it is to be segmented, has CWR set, and HOST_ECN was not negotiated: "
                 "clear the flag, or open(..., offloads=True)",
}


cdef inline uint32_t _put_all(TxRing *tx, Burst rows, int *done) noexcept nogil:
    """Expose the frames of a burst until one is not taken, as `done` then says: how many."""
    cdef Store *store = rows.store
    cdef uint32_t i = 0, count = rows.count
    if store.begin == NULL and store.headers == NULL:
        i = tx_put_linear(tx, store, rows.start, rows.step, rows.index, count)
    while i < count:
        done[0] = tx_put(tx, store, rows.frame(i))
        if done[0] != PUT_TAKEN:
            break
        i += 1
    return i


@cython.auto_pickle(False)
@cython.no_gc_clear
cdef class Sender:
    """The transmit queue of a pair, and how frames of any kind get into it."""

    cdef Py_ssize_t _put_list(self, frames) except -1:
        """As `_put_rows`, for a list of frames and bytes-likes."""
        cdef Py_ssize_t i = 0
        if isinstance(frames, (bytes, bytearray, memoryview, str, Frame)):
            raise TypeError("send_burst takes a list of frames: put the one frame into [ ]")
        for item in frames:
            if self.closed is not None:  # since the call began; after a fork, even its pool is
                raise self._gone()
            if not (self._put_frame(item, i) if isinstance(item, Frame)
                    else self._put_copy(item, i)):
                break
            i += 1
        return i

    cdef Py_ssize_t _put_rows(self, burst) except -1:
        """Expose a prefix of `burst`, unpublished: how many. Raises for what cannot be sent."""
        cdef Burst rows = burst
        cdef Store *store = rows.store
        cdef uint32_t i
        cdef int done = PUT_TAKEN
        if rows.count == 0:
            return 0
        if not is_ours(store):
            raise self._foreign()
        hold(&store.refs, rows.count)
        if rows.count >= self.release_from and tx_free(&self.tx) >= self.release_from:
            i = self._put_without_gil(rows, &done)
        else:
            i = _put_all(&self.tx, rows, &done)
        if done != PUT_TAKEN:
            drop_store(store, rows.count - i)
            return self._not_put(done, store, rows.frame(i), i)
        return i

    cdef uint32_t _put_without_gil(self, Burst rows, int *done) noexcept:
        cdef uint32_t i
        with nogil:
            self._without_gil()
            i = _put_all(&self.tx, rows, done)
        return i

    cdef bint _put_frame(self, Frame frame, Py_ssize_t i) except -1:
        cdef Store *store = frame.burst.store
        if not is_ours(store):
            raise self._foreign()
        hold(&store.refs, 1)
        return self._put_held(store, frame.index, i)

    cdef bint _put_copy(self, item, Py_ssize_t i) except -1:
        """Copy a bytes-like, or a tuple of them, into a head slot and pages of the pool."""
        cdef Py_buffer view
        cdef Store *store
        data = as_bytes(item, i)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if self.closed is not None:  # what the item's own code has done; it may have forked
                raise self._gone()
            if not MIN_FRAME <= view.len <= self.tx.max_frame:
                raise self._size_error(i, view.len)
            store = copy_in(self.pool, <const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        if store == NULL:
            if pages_for(view.len) > self.pool.pool.npages:
                raise ValueError(f"a copy of frame {i} needs {pages_for(view.len)} pages; "
                                 f"{self.name} has {self.pool.pool.npages}: open it with pages=N")
            self.tx.stats.full += 1
            return False
        return self._put_held(store, 0, i)

    cdef bint _put_held(self, Store *store, uint32_t frame, Py_ssize_t i) except -1:
        """Frame `i` of the call, of a store that is held for it."""
        cdef int done = tx_put(&self.tx, store, frame)
        if done == PUT_TAKEN:
            return True
        try:
            self._not_put(done, store, frame, i)
        finally:
            drop_store(store, 1)
        return False

    cdef Py_ssize_t _not_put(self, int done, const Store *store, uint32_t frame,
                             Py_ssize_t i) except -1:
        """Frame `i` was refused, which raises, or found no room: `i` were taken.

        One that no ring of this size takes raises, too.
        """
        cdef NetHdr header
        cdef uint32_t pieces = 1
        if store.headers != NULL and done >= 0:  # one with work in it is a piece of its own
            pieces += header_to_send(store, frame, store.lengths[frame], self.tx.format.features,
                                     &header) > 0
        if store.begin != NULL:
            pieces += store.begin[frame + 1] - store.begin[frame]
        if done == REFUSED_SIZE:
            raise self._size_error(i, store.lengths[frame])
        if done < 0:
            raise ValueError(f"frame {i} cannot be sent by {self.name}: {_REFUSED[done]}")
        if pieces > self.tx.size:  # an indirect table is no way out (2.7.5.3.1)
            raise ValueError(f"frame {i} lies in {pieces} pieces; the transmit ring of "
                             f"{self.name} has {self.tx.size} entries")
        self.tx.stats.full += 1
        return i

    cdef void _without_gil(self) noexcept nogil:
        """Here tests halt a call, to do what other threads may do meanwhile."""
        cdef uint32_t left = MOST_HALTS
        if peek32(&self.halt) == 1:
            poke32(&self.halt, 2)
            while peek32(&self.halt) == 2 and left:
                usleep(HALT_MICROSECONDS)
                left -= 1

    @property
    def _halt(self) -> int:
        """For tests. 1: the next call that releases the GIL halts; 2: it does; 0: it goes on."""
        return peek32(&self.halt)

    @_halt.setter
    def _halt(self, uint32_t halt):
        poke32(&self.halt, halt)

    def _gone(self):
        why = self.closed  # raised as a copy: each has a traceback of its own
        return type(why)(why.what, why.why, why.mend)

    cdef object _foreign(self):
        return PortClosed(f"{self.name} cannot send this burst",
                          "its memory belongs to the process that this one was forked from",
                          "send a copy: bytes(frame)")

    cdef object _size_error(self, Py_ssize_t i, Py_ssize_t size):
        return ValueError(f"frame {i} has {size} bytes; {self.name} sends {MIN_FRAME} to "
                          f"{self.tx.max_frame}")
