"""Receive buffers: pages given to descriptors, shown to the device, taken back at the end."""

from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._layout cimport DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc
from ._offload cimport BIT_GUEST_CSUM, BIT_HASH_REPORT, has
from ._packed cimport packed_init
from ._pages cimport HEADER_BYTES, NO_PAGE, PAGE_BYTES, Pool, give_pages, page_address, take_pages
from ._ring cimport BIG_PAGES, TABLE_BYTES, RingFormat, ring_bell, round_up
from ._split cimport SplitVq, split_init
from ._virtqueue cimport Vq, vq_kick_data, vq_publish, vq_set_interrupts, vq_unpublished


cdef bint rx_create(RxRing *rx, Pool *pool, const RingFormat *format, uint32_t size,
                    uint8_t *memory, uint64_t memory_iova, uint16_t start,
                    bint mergeable) except False:
    """An empty receive ring of `size` descriptors in `memory`, all of them without a page."""
    cdef uint32_t i, places
    rx.format, rx.size, rx.pool, rx.mergeable = format[0], size, pool, mergeable
    rx.header_bytes = format.header_bytes
    rx.columns = has(format.features, BIT_GUEST_CSUM) or has(format.features, BIT_HASH_REPORT)
    rx.plain = rx.header_bytes == HEADER_BYTES and not rx.columns and not format.big
    rx.lead = HEADER_BYTES - <int32_t>rx.header_bytes
    rx.chain = BIG_PAGES if format.big else 1
    rx.piece_bytes = PAGE_BYTES - rx.lead
    rx.buffer_bytes = rx.chain * rx.piece_bytes
    rx.tables = NULL
    rx.nbuffers = size // rx.chain
    if format.big and format.indirect:
        rx.tables, rx.tables_iova = memory + format.ring_bytes, memory_iova + format.ring_bytes
        rx.nbuffers = size
    rx.buffers, rx.buffers_iova = pool.pages + rx.lead, pool.pages_iova + rx.lead
    if format.packed:
        packed_init(&rx.packed, memory, size, start, format.event_idx, format.in_order)
    else:
        split_init(&rx.split, memory, size, start, format.event_idx, format.alignment)
    rx.exposures = rx.published = rx.broken = rx.disordered = rx.hungry_next = 0
    rx.threshold = max(1, min(32, rx.nbuffers // 8))
    rx.late_next = rx.nlate = rx.late_id = rx.late_frames = 0
    rx.late_most = rx.nbuffers // 4
    rx.id_mask = round_up(size) - 1
    places = _places(rx)
    rx.page_of = <uint32_t *>calloc(places, sizeof(uint32_t))
    if rx.page_of != NULL:  # NO_PAGE: nothing to give back yet
        memset(rx.page_of, 0xFF, places * sizeof(uint32_t))
    rx.page_at = <uint8_t **>calloc(rx.id_mask + 1, sizeof(uint8_t *))
    rx.exposed = <uint64_t *>calloc(size, sizeof(uint64_t))
    rx.hungry = <uint16_t *>calloc(size, sizeof(uint16_t))
    rx.claimed = <uint64_t *>calloc(size, sizeof(uint64_t))
    rx.inbox = <uint64_t *>calloc(rx.id_mask + 1, sizeof(uint64_t))
    rx.late_ids = <uint16_t *>calloc(rx.id_mask + 1, sizeof(uint16_t))
    if not (rx.page_of and rx.page_at and rx.exposed and rx.hungry and rx.claimed and rx.inbox
            and rx.late_ids):
        raise MemoryError
    rx.packed.inbox, rx.packed.inbox_mask = rx.inbox, rx.id_mask
    if format.in_order:
        rx.split.view = rx.split.inbox = rx.inbox
    for i in range(size):
        rx.exposed[i] = NEVER
    for i in range(rx.nbuffers):  # named by their first descriptors
        rx.hungry[i] = i if rx.tables != NULL else i * rx.chain
    rx.nhungry = rx.nbuffers
    return True


cdef inline uint32_t _places(const RxRing *rx) noexcept nogil:
    """Of pages, in `page_of`."""
    return rx.size * BIG_PAGES if rx.tables != NULL else rx.id_mask + 1


cdef uint32_t rx_posted(const RxRing *rx) noexcept nogil:
    """Pages in receive buffers."""
    cdef uint32_t i, count = 0
    if rx.chain == 1:
        return rx.size - rx.nhungry
    for i in range(_places(rx)):
        count += rx.page_of[i] != NO_PAGE
    return count


cdef void rx_destroy(RxRing *rx) noexcept nogil:
    """Pages go back to the pool. The device must have been reset."""
    cdef uint32_t i
    if rx.page_of != NULL and rx.pool != NULL:
        for i in range(_places(rx)):
            if rx.page_of[i] != NO_PAGE:
                give_pages(rx.pool, &rx.page_of[i], 1)
    free(rx.page_of)
    free(rx.page_at)
    free(rx.exposed)
    free(rx.hungry)
    free(rx.claimed)
    free(rx.inbox)
    free(rx.late_ids)
    rx.page_of = NULL
    rx.page_at = NULL
    rx.exposed = rx.claimed = rx.inbox = NULL
    rx.hungry = rx.late_ids = NULL
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
    """Fresh pages for buffers that wait for one, first come first."""
    cdef uint32_t fresh[64]
    cdef uint32_t count = 0, used = 0, id
    if rx.chain > 1:
        _feed_chains(rx, vq)
        return
    while rx.nhungry:
        if used == count:
            count, used = take_pages(rx.pool, fresh, min(rx.nhungry, <uint32_t>64)), 0
            if count == 0:
                break
        id = _next_hungry(rx)
        rx.page_of[id], rx.page_at[id] = fresh[used], page_address(rx.pool, fresh[used])
        if Vq is SplitVq:
            _describe(&vq.desc[id], buffer_iova(rx, fresh[used]), rx.buffer_bytes, DESC_WRITE, 0)
        used += 1
        rx_expose(rx, vq, id)


cdef inline uint32_t _next_hungry(RxRing *rx) noexcept nogil:
    cdef uint32_t id = rx.hungry[rx.hungry_next]
    rx.hungry_next = rx.hungry_next + 1 if rx.hungry_next + 1 < rx.size else 0
    rx.nhungry -= 1
    return id


cdef inline void _describe(Desc *desc, uint64_t addr, uint32_t length, uint16_t flags,
                           uint16_t next) noexcept nogil:
    desc.addr, desc.len, desc.flags, desc.next = addr, length, flags, next


cdef void _feed_chains(RxRing *rx, Vq *vq) noexcept nogil:
    """As `_feed`, for buffers of many pages, of which frames have taken the first ones."""
    cdef uint32_t id, missing
    cdef uint32_t *pages
    cdef bint disbanded = False
    while rx.nhungry:
        id = rx.hungry[rx.hungry_next]
        pages = pages_of(rx, id)
        missing = 0
        while missing < BIG_PAGES and pages[missing] == NO_PAGE:
            missing += 1
        if take_pages(rx.pool, pages, missing) < missing:
            _disband(rx)
            if disbanded:
                break
            disbanded = True
            continue
        if rx.tables != NULL:
            _describe_chain(rx, <Desc *>(rx.tables + <size_t>id * TABLE_BYTES), pages, 0)
        if Vq is SplitVq:
            if rx.tables != NULL:
                _describe(&vq.desc[id], rx.tables_iova + <uint64_t>id * TABLE_BYTES,
                          16 * BIG_PAGES, DESC_INDIRECT, 0)
            else:
                _describe_chain(rx, &vq.desc[id], pages, id)
        rx_expose(rx, vq, _next_hungry(rx))


cdef void _disband(RxRing *rx) noexcept nogil:
    """Pages run short: those of buffers that lack some go back, so that one may get enough."""
    cdef uint32_t i, k, at
    cdef uint32_t *pages
    for i in range(rx.nhungry):
        at = rx.hungry_next + i
        pages = pages_of(rx, rx.hungry[at - rx.size if at >= rx.size else at])
        for k in range(BIG_PAGES):
            if pages[k] != NO_PAGE:
                give_pages(rx.pool, &pages[k], 1)
                pages[k] = NO_PAGE


cdef void _describe_chain(const RxRing *rx, Desc *desc, const uint32_t *pages,
                          uint16_t first) noexcept nogil:
    """Descriptors of a split ring from number `first` on, or of a table of either format."""
    cdef uint32_t i
    cdef bint more
    for i in range(BIG_PAGES):
        more = i + 1 < BIG_PAGES
        if rx.format.packed:  # entries follow one another (2.8.8); the last word has the flags
            _describe(&desc[i], buffer_iova(rx, pages[i]), rx.piece_bytes, 0, DESC_WRITE)
        else:
            _describe(&desc[i], buffer_iova(rx, pages[i]), rx.piece_bytes,
                      DESC_WRITE | (DESC_NEXT if more else 0), first + i + 1 if more else 0)


cdef void rx_set_interrupts(RxRing *rx, bint wanted) noexcept nogil:
    """Ask for receive interrupts or not; after asking, look at the ring again."""
    if rx.format.packed:
        vq_set_interrupts(&rx.packed, wanted)
    else:
        vq_set_interrupts(&rx.split, wanted)
