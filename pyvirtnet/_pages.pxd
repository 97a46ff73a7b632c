"""Pages, head slots and burst storage, by index over DMA memory.

A page is one receive buffer of 4096 bytes. A head slot is a virtio header and 128 bytes behind
it, adjacent, so that a linear frame is one descriptor. A store is what one burst holds: a run of
head slots, the frames' lengths, the fragments in pages, and a count of who still needs it.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport observe, peek32, poke32
from ._layout cimport Header

cdef enum:
    PAGE_BYTES = 4096
    # Pages that all begin a 4096-byte boundary share one set of the first-level cache for their
    # first lines; one line more a page spreads them ("colouring").
    PAGE_STRIDE = PAGE_BYTES + 64
    HEADER_BYTES = 12           # struct virtio_net_hdr, 5.1.6
    MOST_HEADER_BYTES = 20      # with HASH_REPORT; a legacy device without MRG_RXBUF has 10
    # A page begins this far into its first cache line, so that the header ends a line and the
    # frame begins one. Devices leave a header alone that is already right: its line then stays
    # shared, and a small frame costs one line's way from core to core instead of two.
    PAGE_LEAD = 64 - HEADER_BYTES
    HEAD_BYTES = 128            # the linear head
    SLOT_HEAD = 64              # where the head begins in its slot; the header ends there
    SLOT_STRIDE = SLOT_HEAD + HEAD_BYTES
    NO_PAGE = 0xFFFFFFFF
    STORE_CLASSES = 17          # stores of 1, 2, 4 … 65536 frames

cdef enum:                      # received heads, as long as nobody has asked for them:
    UNSEEN = 1                  # they are in their slots
    LATE = 2                    # they are to be copied there from the frames' pages

cdef struct Frag:
    uint32_t page
    int16_t offset              # in the page; below 0 behind a header of 20 bytes
    uint16_t length

cdef struct Store:
    uint32_t refs               # the Python burst, and each frame in a transmit ring (atomic)
    uint32_t nframes
    uint32_t nfrags
    uint32_t head_room          # bytes of a frame that lie in its head at the most
    uint64_t header_iova        # of the first frame's virtio header; the head follows it
    uint32_t stride             # from one header to the next
    uint32_t slot               # first head slot, if it is the pool's
    uint32_t nslots             # 0: the heads are not head slots
    uint32_t capacity_class
    uint32_t generation         # forks that this process's line had seen when it was made
    uint8_t *first_head         # for who writes it; `heads` is for everybody else
    uint32_t *pages             # late heads: the page of each frame
    uint16_t unseen             # 0, UNSEEN or LATE
    uint8_t listed              # held once by the receive ring, for its late heads
    Header *headers             # private, one a frame; NULL while all are zeroes
    uint32_t *begin             # nframes + 1 indices into frags; NULL while no frame has any
    Frag *frags
    Pool *pool                  # where pages and slots go back to; NULL: nothing to go back
    PyObject *owner             # keeps the memory alive
    Store *next                 # in a free list
    uint32_t *lengths

cdef struct Pool:
    uint8_t *pages
    uint64_t pages_iova
    uint32_t npages
    uint32_t nfree
    uint32_t *free              # a stack: what was used last is posted first, warm in the cache
    uint8_t *slots
    uint64_t slots_iova
    uint32_t nslots
    uint32_t first_word         # no free slot lies in a word of the map before this one
    uint64_t *slot_map          # a set bit is a free slot
    uint32_t max_frags          # of one store: the receive ring's size
    uint8_t lock
    Store *stores[STORE_CLASSES]
    uint32_t unseen             # bursts in a row at whose heads nobody has looked
    void *frag_blocks           # free list, linked through the first word


cdef inline uint8_t *page_address(const Pool *pool, uint32_t page) noexcept nogil:
    return pool.pages + <size_t>page * PAGE_STRIDE


cdef inline uint64_t page_iova(const Pool *pool, uint32_t page) noexcept nogil:
    return pool.pages_iova + <uint64_t>page * PAGE_STRIDE


cdef void look_at(Store *store) noexcept nogil


cdef inline uint8_t *heads(const Store *store) noexcept nogil:
    """The first frame's head, for somebody who looks."""
    if observe(&store.unseen):
        look_at(<Store *>store)
    return store.first_head


cdef uint32_t take_pages(Pool *pool, uint32_t *into, uint32_t want) noexcept nogil
cdef void give_pages(Pool *pool, const uint32_t *pages, uint32_t count) noexcept nogil
cdef uint32_t take_slots(Pool *pool, uint32_t want, uint32_t *first) noexcept nogil
cdef void give_slots(Pool *pool, uint32_t first, uint32_t count) noexcept nogil
cdef Store *take_store(Pool *pool, uint32_t frames) noexcept nogil
cdef bint attach_headers(Store *store) noexcept nogil
cdef bint attach_frags(Store *store, uint32_t frame) noexcept nogil
cdef void hold_slots(Store *store, uint32_t first, uint32_t count) noexcept nogil
cdef void hold_late(Store *store) noexcept nogil


cdef inline void seen_later(Store *store) noexcept nogil:
    """A burst has been received, and nobody has looked at it yet."""
    cdef uint32_t unseen = peek32(&store.pool.unseen)
    if store.unseen != LATE:
        store.unseen = UNSEEN
    poke32(&store.pool.unseen, max(unseen, unseen + 1))  # and stay there


cdef bint is_ours(const Store *store) noexcept nogil
cdef void drop_store(Store *store, uint32_t by) noexcept
cdef Store *new_linear_store(uint32_t frames) noexcept nogil


cdef class PagePool:
    """Pages and head slots of one queue pair, in one DMA region."""
    cdef Pool pool
    cdef readonly object region
    cdef size_t offset              # of the pool in its region; rings may lie in front
