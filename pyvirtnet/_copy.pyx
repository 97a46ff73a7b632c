"""Bytes-likes copied into head slots and pages of a pool, to be sent."""

from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from ._pages cimport (
    HEAD_BYTES,
    HEADER_BYTES,
    MOST_HEADER_BYTES,
    PAGE_BYTES,
    PagePool,
    Store,
    attach_frags,
    drop_store,
    hold_slots,
    page_address,
    page_iova,
    take_pages,
    take_slots,
    take_store,
)


cdef extern from "Python.h":
    int Py_EnterRecursiveCall(const char *where) except *
    void Py_LeaveRecursiveCall()


cdef object as_bytes(item, Py_ssize_t i, str what="frame"):
    """Something with a plain buffer: the item itself where it has one."""
    if isinstance(item, (tuple, list)):
        Py_EnterRecursiveCall(b" in the parts of a frame")
        try:
            return b"".join([as_bytes(part, i, "a part of frame") for part in item])
        finally:
            Py_LeaveRecursiveCall()
    try:
        view = memoryview(item)
        if not isinstance(item, bytes) and "O" in view.format and _has_objects(view.format):
            raise TypeError
    except TypeError:
        raise TypeError(f"{what} {i} is of type {type(item).__name__}; frames are bytes-likes, "
                        "tuples of bytes-likes, or frames of a burst; bytes(packet) for scapy's"
                        ) from None
    return item if view.c_contiguous else view.tobytes()


cdef bint _has_objects(str format):
    """Addresses of Python's objects; names of fields stand between colons (PEP 3118)."""
    return any(["O" in part for part in format.split(":")[::2]])


cdef Py_ssize_t pages_for(Py_ssize_t length) noexcept:
    """Pages that a copy of a frame takes."""
    if length <= HEAD_BYTES:
        return 0
    if length <= PAGE_BYTES - HEADER_BYTES:
        return 1
    return (length - HEAD_BYTES + PAGE_BYTES - 1) // PAGE_BYTES


cdef Store *copy_in(PagePool pool, const uint8_t *data, uint32_t length) noexcept:
    """A store of one frame with a copy of `data`; NULL when pages or slots have run out.

    Header and data together in a head slot or a page are one descriptor; what is too long for a
    page has its head in a slot and the rest in pages.
    """
    cdef Store *store = take_store(&pool.pool, 1)
    cdef bint done
    if store == NULL:
        return NULL
    store.owner = <PyObject *>pool
    Py_INCREF(pool)
    store.nframes, store.lengths[0] = 1, length
    if HEAD_BYTES < length <= PAGE_BYTES - HEADER_BYTES:
        done = _copy_to_page(store, data, length)
    else:
        done = _copy_to_slot(store, data, length)
    if done:
        return store
    drop_store(store, 1)
    return NULL


cdef bint _copy_to_page(Store *store, const uint8_t *data, uint32_t length) noexcept nogil:
    """Header and frame in one page."""
    cdef uint32_t page = 0
    if not attach_frags(store, 1) or take_pages(store.pool, &page, 1) == 0:
        return False
    store.frags[0].page, store.nfrags = page, 1
    store.begin[0] = store.begin[1] = 1  # the frame has no fragment; the store has the page
    store.first_head = page_address(store.pool, page) + HEADER_BYTES
    store.header_iova = page_iova(store.pool, page)
    store.head_room = length
    memset(store.first_head - MOST_HEADER_BYTES, 0, MOST_HEADER_BYTES)
    memcpy(store.first_head, data, length)
    return True


cdef bint _copy_to_slot(Store *store, const uint8_t *data, uint32_t length) noexcept nogil:
    """The head in a head slot, the rest in as many pages as it needs."""
    cdef uint32_t slot = 0, done = min(length, <uint32_t>HEAD_BYTES), i, part, count
    cdef uint32_t[16] pages
    if take_slots(store.pool, 1, &slot) == 0:
        return False
    hold_slots(store, slot, 1)
    memcpy(store.first_head, data, done)
    if done == length:
        return True
    count = (length - done + PAGE_BYTES - 1) // PAGE_BYTES
    if not attach_frags(store, 0):
        return False
    store.nfrags = take_pages(store.pool, pages, count)
    for i in range(store.nfrags):
        store.frags[i].page = pages[i]
    if store.nfrags < count:
        return False
    for i in range(count):
        part = min(length - done, <uint32_t>PAGE_BYTES)
        memcpy(page_address(store.pool, pages[i]), data + done, part)
        store.frags[i].offset, store.frags[i].length = 0, part
        done += part
    store.begin[1] = count
    return True
