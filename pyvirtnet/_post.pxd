"""Receive buffers: the ring they stand in, who has each of them."""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._layout cimport DESC_INDIRECT, DESC_WRITE
from ._packed cimport PackedVq, packed_expose
from ._pages cimport PAGE_STRIDE, Pool, Store
from ._ring cimport BIG_PAGES, TABLE_BYTES, Bell, RingFormat
from ._split cimport SplitVq, split_expose
from ._virtqueue cimport Vq

cdef extern from *:
    const uint64_t NEVER "(~0ull)"  # a descriptor that the device does not have

cdef enum:
    LATE_BURSTS = 8             # whose buffers may wait at the same time

cdef struct RxStats:
    uint64_t frames
    uint64_t bytes
    uint64_t buffers
    uint64_t runts              # dropped: shorter than an Ethernet header
    uint64_t bad_headers        # dropped: offload fields that cannot be
    uint64_t no_pages           # calls that found descriptors without a page to post
    uint64_t no_slots           # calls that found no free head slot
    uint64_t lost               # delivered frames that a reset threw away
    uint64_t kicks

cdef struct RxRing:
    SplitVq split               # the one or the other
    PackedVq packed
    RingFormat format
    uint32_t size
    uint32_t id_mask            # of page_of
    uint32_t nbuffers
    uint32_t chain              # pages in a buffer: one, or BIG_PAGES
    uint8_t *tables             # indirect, one an id, where buffers are chains; or NULL
    uint64_t tables_iova
    Pool *pool
    uint32_t header_bytes       # of the virtio header
    uint32_t buffer_bytes       # of a buffer, header included
    uint32_t piece_bytes        # of a buffer, in each page
    int32_t lead                # from a page to its buffer: frames begin where they always do
    uint8_t *buffers            # of page 0; the others follow at the pages' stride
    uint64_t buffers_iova
    uint32_t *page_of           # the page in each descriptor, of ring or table; NO_PAGE: has none
    uint8_t **page_at           # where it lies, or the last one did; not of chains
    uint64_t *exposed           # when each descriptor was exposed; the device has it if that was
    uint64_t exposures          # before the last publication. Both count exposures since the
    uint64_t published          # beginning
    uint16_t *hungry            # a ring: buffers without a page, in the order to be exposed in
    uint32_t hungry_next
    uint32_t nhungry
    uint64_t *claimed           # scratch: checked used entries of one merged frame
    uint64_t *inbox             # used entries as they were read, where the format needs it
    Store *late[LATE_BURSTS]    # a ring: bursts whose buffers wait to be exposed again, see `_late`
    uint32_t late_next
    uint32_t nlate
    uint16_t *late_ids          # a ring: those buffers, in the order to be exposed in
    uint32_t late_id
    uint32_t late_frames
    uint32_t late_most
    uint32_t threshold          # exposed buffers that are worth a publication
    uint8_t mergeable
    uint8_t columns             # headers are kept for the burst
    uint8_t bad_header          # of the frame just received: it is dropped
    uint8_t plain               # headers of 12 bytes: what the fast path takes for granted
    int8_t broken               # 0 or a BROKEN_ code
    uint8_t disordered          # broken as soon as what came before the lie is received
    uint32_t lie                # the value that broke it
    Bell bell
    RxStats stats


cdef inline uint8_t *buffer_address(const RxRing *rx, uint32_t page) noexcept nogil:
    return rx.buffers + <size_t>page * PAGE_STRIDE


cdef inline uint64_t buffer_iova(const RxRing *rx, uint32_t page) noexcept nogil:
    return rx.buffers_iova + <uint64_t>page * PAGE_STRIDE


cdef inline uint32_t *pages_of(const RxRing *rx, uint32_t id) noexcept nogil:
    """The pages of buffer `id`, in their order."""
    return rx.page_of + (id * BIG_PAGES if rx.tables != NULL else id)


cdef inline void rx_expose(RxRing *rx, Vq *vq, uint32_t id) noexcept nogil:
    """The page of descriptor `id` is the device's again, from the next publication on."""
    rx.exposed[id] = rx.exposures
    rx.exposures += 1
    if Vq is SplitVq:
        split_expose(vq, id)
    else:
        if rx.tables != NULL:
            packed_expose(vq, id, rx.tables_iova + <uint64_t>id * TABLE_BYTES, 16 * BIG_PAGES,
                          DESC_INDIRECT)
            return
        packed_expose(vq, id, buffer_iova(rx, rx.page_of[id]), rx.buffer_bytes, DESC_WRITE)


cdef inline void rx_queue_up(RxRing *rx, uint32_t id) noexcept nogil:
    """Descriptor `id`, without a page now, waits for `rx_refill`."""
    cdef uint32_t last = rx.hungry_next + rx.nhungry
    rx.exposed[id] = NEVER
    rx.hungry[last - rx.size if last >= rx.size else last] = id
    rx.nhungry += 1


cdef bint rx_create(RxRing *rx, Pool *pool, const RingFormat *format, uint32_t size,
                    uint8_t *memory, uint64_t memory_iova, uint16_t start,
                    bint mergeable) except False
cdef uint32_t rx_posted(const RxRing *rx) noexcept nogil
cdef void rx_destroy(RxRing *rx) noexcept nogil
cdef void rx_refill(RxRing *rx, bint idle) noexcept nogil
cdef void rx_set_interrupts(RxRing *rx, bint wanted) noexcept nogil
