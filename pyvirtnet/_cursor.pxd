"""The bytes of a frame in their order, wherever they lie: head first, then the fragments."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from ._pages cimport Frag, Store, heads, page_address

cdef struct Cursor:
    const Store *store
    uint8_t *at
    uint32_t here               # bytes that lie together from there on
    uint32_t frag               # the next fragment
    uint32_t frags


cdef inline uint32_t begin(Cursor *cursor, const Store *store, uint32_t frame) noexcept nogil:
    """To the frame's first byte; the frame's length."""
    cdef uint32_t length = store.lengths[frame]
    cursor.store = store
    cursor.at = heads(store) + <size_t>frame * store.stride
    cursor.here = min(length, store.head_room)
    cursor.frag = cursor.frags = 0
    if store.begin != NULL:
        cursor.frag, cursor.frags = store.begin[frame], store.begin[frame + 1]
    return length


cdef inline bint next_piece(Cursor *cursor) noexcept nogil:
    """To the next fragment, what is left of this one unread."""
    cdef Frag *frag
    if cursor.frag == cursor.frags:
        return False
    frag = &cursor.store.frags[cursor.frag]
    cursor.at = page_address(cursor.store.pool, frag.page) + frag.offset
    cursor.here = frag.length
    cursor.frag += 1
    return True


cdef inline bint take(Cursor *cursor, uint8_t *to, uint32_t length) noexcept nogil:
    """Copy the next `length` bytes; False if there are fewer."""
    if length <= cursor.here:
        memcpy(to, cursor.at, length)
        cursor.at, cursor.here = cursor.at + length, cursor.here - length
        return True
    return take_apart(cursor, to, length)


cdef inline bint take_apart(Cursor *cursor, uint8_t *to, uint32_t length) noexcept nogil:
    cdef uint32_t part
    while length:
        if cursor.here == 0 and not next_piece(cursor):
            return False
        part = min(length, cursor.here)
        memcpy(to, cursor.at, part)
        cursor.at, cursor.here = cursor.at + part, cursor.here - part
        to, length = to + part, length - part
    return True


cdef inline bint skip(Cursor *cursor, uint32_t length) noexcept nogil:
    while length > cursor.here:
        length -= cursor.here
        if not next_piece(cursor):
            return False
    cursor.at, cursor.here = cursor.at + length, cursor.here - length
    return True
