"""Frames taken out of big receive buffers, each a chain of pages (VIRTIO 1.3, 5.1.6.3.1)."""

from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

from ._pages cimport HEAD_BYTES, NO_PAGE, SLOT_STRIDE, Frag
from ._post cimport buffer_address, pages_of


cdef bint big_frame(RxRing *rx, Store *store, uint32_t n) noexcept nogil:
    """The one claimed buffer becomes frame `n`. True if it still has all its pages.

    The head takes the first 128 bytes, which lie in the first page; if that is not all, each page
    that the device wrote to becomes a fragment, and the buffer wants as many new ones.
    """
    cdef uint32_t *pages = pages_of(rx, <uint32_t>rx.claimed[0])
    cdef uint32_t length = <uint32_t>(rx.claimed[0] >> 32) - rx.header_bytes
    cdef uint32_t copied = min(length, <uint32_t>HEAD_BYTES)
    cdef uint32_t left = length - copied, offset = rx.header_bytes + copied, part
    cdef Frag *frag
    memcpy(store.first_head + <size_t>n * SLOT_STRIDE,
           buffer_address(rx, pages[0]) + rx.header_bytes, copied)
    store.lengths[n] = length
    while left:
        part = min(left, rx.piece_bytes - offset)
        frag = &store.frags[store.nfrags]
        frag.page, frag.offset, frag.length = pages[0], rx.lead + <int32_t>offset, part
        store.nfrags += 1
        pages[0] = NO_PAGE
        pages, left, offset = pages + 1, left - part, 0
    return length <= HEAD_BYTES
