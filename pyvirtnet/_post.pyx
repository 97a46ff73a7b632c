"""Receive buffers: pages given to descriptors, shown to the device, taken back at the end."""

from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._layout cimport DESC_WRITE, Desc
from ._offload cimport BIT_GUEST_CSUM, BIT_HASH_REPORT, has
from ._packed cimport packed_init
from ._pages cimport HEADER_BYTES, NO_PAGE, PAGE_BYTES, Pool, give_pages, take_pages
from ._ring cimport RingFormat, ring_bell, round_up
from ._split cimport SplitVq, split_init
from ._virtqueue cimport Vq, vq_kick_data, vq_publish, vq_set_interrupts, vq_unpublished


cdef bint rx_create(RxRing *rx, Pool *pool, const RingFormat *format, uint32_t size,
                    uint8_t *memory, uint16_t start, bint mergeable) except False:
    """An empty receive ring of `size` descriptors in `memory`, all of them without a page."""
    cdef uint32_t i
    rx.format, rx.size, rx.pool, rx.mergeable = format[0], size, pool, mergeable
    rx.header_bytes = format.header_bytes
    rx.columns = has(format.features, BIT_GUEST_CSUM) or has(format.features, BIT_HASH_REPORT)
    rx.plain = rx.header_bytes == HEADER_BYTES and not rx.columns
    rx.lead = HEADER_BYTES - <int32_t>rx.header_bytes
    rx.buffer_bytes = PAGE_BYTES - rx.lead
    rx.buffers, rx.buffers_iova = pool.pages + rx.lead, pool.pages_iova + rx.lead
    if format.packed:
        packed_init(&rx.packed, memory, size, start, format.event_idx, format.in_order)
    else:
        split_init(&rx.split, memory, size, start, format.event_idx, format.alignment)
    rx.exposures = rx.published = rx.broken = rx.disordered = rx.hungry_next = 0
    rx.threshold = max(1, min(32, size // 8))
    rx.id_mask = round_up(size) - 1
    rx.page_of = <uint32_t *>calloc(rx.id_mask + 1, sizeof(uint32_t))
    if rx.page_of != NULL:  # NO_PAGE: nothing to give back yet
        memset(rx.page_of, 0xFF, (rx.id_mask + 1) * sizeof(uint32_t))
    rx.exposed = <uint64_t *>calloc(size, sizeof(uint64_t))
    rx.hungry = <uint16_t *>calloc(size, sizeof(uint16_t))
    rx.claimed = <uint64_t *>calloc(size, sizeof(uint64_t))
    rx.inbox = <uint64_t *>calloc(size, sizeof(uint64_t))
    if not (rx.page_of and rx.exposed and rx.hungry and rx.claimed and rx.inbox):
        raise MemoryError
    rx.packed.inbox = rx.inbox
    if format.in_order:
        rx.split.view = rx.split.inbox = rx.inbox
    for i in range(size):
        rx.exposed[i] = NEVER
        rx.hungry[i] = i
    rx.nhungry = size
    return True


cdef void rx_destroy(RxRing *rx) noexcept nogil:
    """Pages go back to the pool. The device must have been reset."""
    cdef uint32_t i
    if rx.page_of != NULL and rx.pool != NULL:
        for i in range(rx.size):
            if rx.page_of[i] != NO_PAGE:
                give_pages(rx.pool, &rx.page_of[i], 1)
    free(rx.page_of)
    free(rx.exposed)
    free(rx.hungry)
    free(rx.claimed)
    free(rx.inbox)
    rx.page_of = NULL
    rx.exposed = rx.claimed = rx.inbox = NULL
    rx.hungry = NULL
    rx.pool = NULL


cdef void rx_refill(RxRing *rx, bint idle) noexcept nogil:
    """Pages for descriptors that gave theirs away; publish past the threshold, or all when idle."""
    if rx.broken:
        return
    if rx.format.packed:
        _refill(rx, &rx.packed, idle)
    else:
        _refill(rx, &rx.split, idle)


cdef inline void _refill(RxRing *rx, Vq *vq, bint idle) noexcept nogil:
    cdef uint32_t count
    if rx.nhungry:
        _feed(rx, vq)
    count = vq_unpublished(vq)
    if count and (idle or count >= rx.threshold):
        rx.published = rx.exposures
        if vq_publish(vq):
            rx.stats.kicks += 1
            ring_bell(&rx.bell, vq_kick_data(vq))


cdef void _feed(RxRing *rx, Vq *vq) noexcept nogil:
    """Fresh pages for descriptors that wait for one, first come first."""
    cdef uint32_t fresh[64]
    cdef uint32_t count = 0, used = 0, id
    cdef Desc *desc
    while rx.nhungry:
        if used == count:
            count, used = take_pages(rx.pool, fresh, min(rx.nhungry, <uint32_t>64)), 0
            if count == 0:
                break
        id = rx.hungry[rx.hungry_next]
        rx.page_of[id] = fresh[used]
        if Vq is SplitVq:
            desc = &vq.desc[id]
            desc.addr, desc.len = buffer_iova(rx, fresh[used]), rx.buffer_bytes
            desc.flags, desc.next = DESC_WRITE, 0
        used += 1
        rx.hungry_next = rx.hungry_next + 1 if rx.hungry_next + 1 < rx.size else 0
        rx.nhungry -= 1
        rx_expose(rx, vq, id)


cdef void rx_set_interrupts(RxRing *rx, bint wanted) noexcept nogil:
    """Ask for receive interrupts or not; after asking, look at the ring again."""
    if rx.format.packed:
        vq_set_interrupts(&rx.packed, wanted)
    else:
        vq_set_interrupts(&rx.split, wanted)
