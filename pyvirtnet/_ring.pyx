"""The core: post pages, merge buffers into frames, copy heads; send, reclaim on the next send."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._barrier cimport copy_head, eventfd_add, mmio_store16, mmio_store32, peek, prefetch
from ._layout cimport DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Desc, NetHdr
from ._packed cimport (
    packed_expose,
    packed_init,
    packed_is_used,
    packed_rewind,
    packed_scan,
    packed_skip,
)
from ._pages cimport (
    HEAD_BYTES,
    HEADER_BYTES,
    NO_PAGE,
    PAGE_BYTES,
    PAGE_STRIDE,
    SLOT_STRIDE,
    Frag,
    attach_frags,
    drop_store,
    give_pages,
    page_address,
    page_iova,
    take_pages,
)
from ._split cimport (
    SplitVq,
    split_consume,
    split_expose,
    split_in_flight,
    split_init,
    split_pending,
    split_unroll,
)
from ._virtqueue cimport (
    Vq,
    vq_consume,
    vq_keep,
    vq_kick_data,
    vq_publish,
    vq_set_interrupts,
    vq_unpublished,
    vq_used,
)

cdef enum:
    MIN_FRAME = 14              # an Ethernet header
    LOOKAHEAD = 6               # buffers whose first lines are fetched ahead
    INDIRECT_FROM = 3           # pieces of a frame from which on a table pays

cdef uint64_t NEVER = ~<uint64_t>0  # a descriptor that the device does not have


cdef inline void _ring_bell(Bell *bell, uint16_t position) noexcept nogil:
    cdef uint32_t value = bell.value
    if bell.with_data:
        value |= <uint32_t>position << 16
    if bell.kind == BELL_MMIO16:
        if bell.with_data:
            mmio_store32(bell.target, value)
        else:
            mmio_store16(bell.target, bell.value)
    elif bell.kind == BELL_EVENTFD:
        eventfd_add(<int>bell.target)
    elif bell.kind == BELL_CALL:
        bell.due, bell.due_value = 1, value


cdef uint32_t round_up(uint32_t size) noexcept nogil:
    """The power of two from `size` on."""
    cdef uint32_t power = 1
    while power < size:
        power *= 2
    return power


# ---- receive -----------------------------------------------------------------------------------

cdef bint rx_create(RxRing *rx, Pool *pool, const RingFormat *format, uint32_t size,
                    uint8_t *memory, uint16_t start, bint mergeable) except False:
    """An empty receive ring of `size` descriptors in `memory`, all of them without a page."""
    cdef uint32_t i
    rx.format, rx.size, rx.pool, rx.mergeable = format[0], size, pool, mergeable
    if format.packed:
        packed_init(&rx.packed, memory, size, start, format.event_idx, format.in_order)
    else:
        split_init(&rx.split, memory, size, start, format.event_idx)
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


cdef int _rx_lie(RxRing *rx, int code, uint32_t value) noexcept nogil:
    rx.broken, rx.lie = code, value
    return code


cdef inline int _out_of_order(RxRing *rx, uint32_t culprit) noexcept nogil:
    """Buffers before a lie are received first. Nothing is collected after it any more."""
    cdef uint16_t seen = rx.packed.seen if rx.format.packed else rx.split.seen
    rx.disordered, rx.lie = True, culprit
    return seen if seen else _rx_lie(rx, BROKEN_ORDER, culprit)


cdef int rx_pending(RxRing *rx) noexcept nogil:
    """Used buffers that wait; a BROKEN_ code when the device claims more than it has."""
    cdef uint32_t culprit = 0
    cdef int pending
    if rx.broken:
        return rx.broken
    if rx.disordered:
        return _out_of_order(rx, rx.lie)
    if rx.format.packed:
        pending = packed_scan(&rx.packed, PAGE_BYTES, &culprit)
        return pending if pending >= 0 else _out_of_order(rx, culprit)
    pending = split_pending(&rx.split)
    if pending > split_in_flight(&rx.split):
        return _rx_lie(rx, BROKEN_INDEX, pending)
    if rx.format.in_order and not split_unroll(&rx.split, pending, PAGE_BYTES, &culprit):
        return _out_of_order(rx, culprit)
    return pending


cdef inline uint32_t _buffers(uint8_t *page) noexcept nogil:
    """num_buffers of a received header, read once (5.1.6.4)."""
    return peek(&(<NetHdr *>page).num_buffers)


cdef uint32_t rx_waiting(RxRing *rx) noexcept nogil:
    """Frames that the device has delivered and nobody has received: for the books, at a reset."""
    cdef int pending = rx_pending(rx) if rx.page_of != NULL else 0
    if pending <= 0:
        return 0
    if rx.format.packed:
        return _count_frames(rx, &rx.packed, pending)
    return _count_frames(rx, &rx.split, pending)


cdef uint32_t _count_frames(RxRing *rx, Vq *vq, uint32_t pending) noexcept nogil:
    cdef uint32_t frames = 0, done = 0, count = 1
    cdef uint64_t entry
    while done < pending:
        entry = vq_used(vq, done)
        if _check(rx, entry, HEADER_BYTES):
            break
        if rx.mergeable:
            count = _buffers(page_address(rx.pool, rx.page_of[<uint32_t>entry]))
        if _claim(rx, vq, done, count, pending - done):
            break
        done += count
        frames += 1
    return frames


cdef inline int _check(RxRing *rx, uint64_t entry, uint32_t least) noexcept nogil:
    """Is this used entry one that the device may write?"""
    cdef uint32_t id = <uint32_t>entry, length = <uint32_t>(entry >> 32)
    if id >= rx.size:
        return _rx_lie(rx, BROKEN_ID, id)
    if rx.exposed[id] >= rx.published:
        return _rx_lie(rx, BROKEN_REPEAT, id)
    if length < least or length > PAGE_BYTES:
        return _rx_lie(rx, BROKEN_LENGTH, length)
    return 0


cdef inline void _expose(RxRing *rx, Vq *vq, uint32_t id) noexcept nogil:
    """The page of descriptor `id` is the device's again, from the next publication on."""
    rx.exposed[id] = rx.exposures
    rx.exposures += 1
    if Vq is SplitVq:
        split_expose(vq, id)
    else:
        packed_expose(vq, id, page_iova(rx.pool, rx.page_of[id]), PAGE_BYTES, DESC_WRITE)


cdef inline void _queue_up(RxRing *rx, uint32_t id) noexcept nogil:
    """Descriptor `id`, without a page now, waits for `rx_refill`."""
    cdef uint32_t last = rx.hungry_next + rx.nhungry
    rx.exposed[id] = NEVER
    rx.hungry[last - rx.size if last >= rx.size else last] = id
    rx.nhungry += 1


cdef inline void _keep(RxRing *rx, Store *store, uint32_t id, uint32_t offset,
                       uint32_t length) noexcept nogil:
    """The page of descriptor `id` becomes a fragment of the store's current frame."""
    cdef Frag *frag = &store.frags[store.nfrags]
    frag.page, frag.offset, frag.length = rx.page_of[id], offset, length
    store.nfrags += 1
    rx.page_of[id] = NO_PAGE
    _queue_up(rx, id)


cdef int _claim(RxRing *rx, Vq *vq, uint16_t first, uint32_t count,
                uint32_t pending) noexcept nogil:
    """Check all buffers of a frame, each read once; on a lie nothing has been moved."""
    cdef uint32_t i
    cdef uint64_t entry
    cdef int lie
    if count == 0 or count > pending:
        return _rx_lie(rx, BROKEN_COUNT, count)
    for i in range(count):
        entry = vq_used(vq, first + i)
        lie = _check(rx, entry, 0 if i else HEADER_BYTES)
        if lie:
            return lie
        rx.exposed[<uint32_t>entry] = NEVER
        rx.claimed[i] = entry
    return 0


cdef void _merge(RxRing *rx, Vq *vq, Store *store, uint32_t n, uint32_t count) noexcept nogil:
    """The `count` claimed buffers become frame `n`.

    The head takes the first 128 bytes of payload from as many buffers as they lie in. A buffer
    whose whole payload fits there is posted again; the rest of every other one is a fragment.
    """
    cdef uint8_t *head = store.heads + <size_t>n * SLOT_STRIDE
    cdef uint32_t i, id, length, copied, offset = HEADER_BYTES, total = 0
    for i in range(count):
        id = <uint32_t>rx.claimed[i]
        length = <uint32_t>(rx.claimed[i] >> 32) - offset
        copied = min(length, HEAD_BYTES - min(total, <uint32_t>HEAD_BYTES))
        memcpy(head + total, page_address(rx.pool, rx.page_of[id]) + offset, copied)
        if length > copied:
            _keep(rx, store, id, offset + copied, length - copied)
        elif rx.format.in_order and rx.nhungry:
            give_pages(rx.pool, &rx.page_of[id], 1)  # those whose turn comes first may need it
            rx.page_of[id] = NO_PAGE
            _queue_up(rx, id)
        else:
            _expose(rx, vq, id)
        total += length
        offset = 0
    store.lengths[n] = total


cdef inline void _prefetch(const RxRing *rx, const uint32_t *page_of, uint8_t *pages,
                           uint64_t entry) noexcept nogil:
    """The first lines of the page that a used entry names; some page if it names none."""
    cdef uint8_t *page = pages + <size_t>page_of[<uint32_t>entry & rx.id_mask] * PAGE_STRIDE
    prefetch(page)
    prefetch(page + HEADER_BYTES)


cdef uint32_t _small_run(RxRing *rx, Vq *live, Store *store, uint32_t n, uint32_t want,
                         uint32_t first, uint32_t pending) noexcept nogil:
    """Frames that lie in one buffer and fit their heads: how many, until another kind comes.

    The fast path: nothing is decided here that `_claim` would not decide the same way.
    """
    cdef Vq vq = live[0]  # a copy: its words stay in registers whatever is stored
    cdef uint32_t *page_of = rx.page_of
    cdef uint64_t *exposed = rx.exposed
    cdef uint8_t *pages = rx.pool.pages
    cdef uint64_t pages_iova = rx.pool.pages_iova
    cdef uint8_t *head = store.heads + <size_t>n * SLOT_STRIDE
    cdef uint32_t *lengths = store.lengths + n
    cdef uint64_t published = rx.published, exposures = rx.exposures, entry
    cdef uint32_t run = 0, id, length, ahead, page_number, size = rx.size
    cdef uint8_t *page
    cdef bint mergeable = rx.mergeable
    want = min(want - n, pending - first)
    if rx.format.in_order and rx.nhungry:  # nothing may overtake what waits to be exposed
        return 0
    while run < want:
        ahead = first + run + LOOKAHEAD
        if ahead < pending:
            _prefetch(rx, page_of, pages, vq_used(&vq, ahead))
        entry = vq_used(&vq, first + run)
        id, length = <uint32_t>entry, <uint32_t>(entry >> 32) - HEADER_BYTES
        if id >= size or exposed[id] >= published:
            break
        if length - MIN_FRAME > HEAD_BYTES - MIN_FRAME:  # unsigned: too short is too long as well
            break
        page_number = page_of[id]
        page = pages + <size_t>page_number * PAGE_STRIDE
        if mergeable and _buffers(page) != 1:
            break
        copy_head(head, page + HEADER_BYTES, length)
        lengths[run] = length
        rx.stats.bytes += length
        exposed[id] = exposures
        exposures += 1
        if Vq is SplitVq:
            split_expose(&vq, id)
        else:
            packed_expose(&vq, id, pages_iova + <uint64_t>page_number * PAGE_STRIDE, PAGE_BYTES,
                          DESC_WRITE)
        head += SLOT_STRIDE
        run += 1
    vq_keep(live, &vq)
    rx.exposures = exposures
    return run


cdef int rx_receive(RxRing *rx, Store *store, uint32_t want, uint32_t pending) noexcept nogil:
    """Up to `want` frames of `pending` used buffers into `store`; how many, or a BROKEN_ code.

    Frames before a lie are delivered; the next call reports it.
    """
    if rx.format.packed:
        return _receive(rx, &rx.packed, store, want, pending)
    return _receive(rx, &rx.split, store, want, pending)


cdef int _receive(RxRing *rx, Vq *vq, Store *store, uint32_t want,
                  uint32_t pending) noexcept nogil:
    cdef uint32_t taken = 0, n = 0, run, count, i
    for i in range(min(<uint32_t>LOOKAHEAD, pending)):
        _prefetch(rx, rx.page_of, rx.pool.pages, vq_used(vq, i))
    while n < want and taken < pending:
        run = _small_run(rx, vq, store, n, want, taken, pending)
        if store.begin != NULL:
            for i in range(run):
                store.begin[n + i + 1] = store.nfrags
        n += run
        taken += run
        if n == want or taken == pending:
            break
        count = _receive_one(rx, vq, store, n, taken, pending - taken)
        if count == 0:
            break
        taken += count
        if store.lengths[n] < MIN_FRAME:  # all of it lies in the head: nothing to take back
            rx.stats.runts += 1
            continue
        rx.stats.bytes += store.lengths[n]
        n += 1
        store.begin[n] = store.nfrags
    vq_consume(vq, taken)
    store.nframes = n
    rx.stats.frames += n
    rx.stats.buffers += taken
    if rx.broken and n == 0:
        return rx.broken
    return n


cdef uint32_t _receive_one(RxRing *rx, Vq *vq, Store *store, uint32_t n, uint16_t first,
                           uint32_t pending) noexcept nogil:
    """A frame of any kind as frame `n`: how many buffers it took, 0 for a lie or without memory."""
    cdef uint64_t entry = vq_used(vq, first)
    cdef uint32_t count = 1
    if _check(rx, entry, HEADER_BYTES):
        return 0
    if rx.mergeable:
        count = _buffers(page_address(rx.pool, rx.page_of[<uint32_t>entry]))
    if store.begin == NULL and not attach_frags(store, n):
        return 0
    if _claim(rx, vq, first, count, pending):
        return 0
    _merge(rx, vq, store, n, count)
    return count


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
            _ring_bell(&rx.bell, vq_kick_data(vq))


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
            desc.addr, desc.len = page_iova(rx.pool, fresh[used]), PAGE_BYTES
            desc.flags, desc.next = DESC_WRITE, 0
        used += 1
        rx.hungry_next = rx.hungry_next + 1 if rx.hungry_next + 1 < rx.size else 0
        rx.nhungry -= 1
        _expose(rx, vq, id)


cdef void rx_set_interrupts(RxRing *rx, bint wanted) noexcept nogil:
    """Ask for receive interrupts or not; after asking, look at the ring again."""
    if rx.format.packed:
        vq_set_interrupts(&rx.packed, wanted)
    else:
        vq_set_interrupts(&rx.split, wanted)


# ---- transmit ----------------------------------------------------------------------------------

cdef bint tx_create(TxRing *tx, const RingFormat *format, uint32_t size, uint8_t *memory,
                    uint64_t memory_iova, uint16_t start, uint32_t max_frame) except False:
    """An empty transmit ring of `size` descriptors in `memory`; indirect tables lie behind it."""
    cdef uint32_t i, ids = round_up(size)
    tx.format, tx.size, tx.id_mask = format[0], size, ids - 1
    tx.max_frame, tx.broken = max_frame, 0
    if format.packed:
        packed_init(&tx.packed, memory, size, start, format.event_idx, format.in_order)
    else:
        split_init(&tx.split, memory, size, start, format.event_idx)
    tx.tables = NULL
    if format.indirect:
        tx.tables = memory + format.ring_bytes
        tx.tables_iova = memory_iova + format.ring_bytes
    tx.in_flight = <InFlight *>calloc(size, sizeof(InFlight))
    tx.next = <uint16_t *>calloc(size, sizeof(uint16_t))
    tx.free_ids = <uint16_t *>calloc(ids, sizeof(uint16_t))
    if not (tx.in_flight and tx.next and tx.free_ids):
        raise MemoryError
    for i in range(size):
        tx.free_ids[i] = i
    tx.free_head, tx.free_tail = 0, size
    return True


cdef void tx_destroy(TxRing *tx) noexcept:
    """What is in flight is let go, and lost. The device must have been reset."""
    cdef uint32_t i
    if tx.in_flight != NULL:
        for i in range(tx.size):
            if tx.in_flight[i].store != NULL:
                drop_store(tx.in_flight[i].store, 1)
                tx.stats.lost += 1
    free(tx.in_flight)
    free(tx.next)
    free(tx.free_ids)
    tx.in_flight = NULL
    tx.next = tx.free_ids = NULL


cdef inline uint32_t _free(const TxRing *tx) noexcept nogil:
    """Free descriptors."""
    if tx.format.packed:
        return tx.size - tx.packed.in_flight
    return <uint16_t>(tx.free_tail - tx.free_head)


cdef int _tx_lie(TxRing *tx, int code, uint32_t value) noexcept nogil:
    tx.broken, tx.lie = code, value
    return code


cdef int tx_reclaim(TxRing *tx) noexcept:
    """Take back everything the device has used; how many frames, or a BROKEN_ code.

    Called at the start of the next send, and nowhere behind the caller's back.
    """
    cdef uint32_t done
    if tx.broken:
        return tx.broken
    done = _reclaim_packed(tx) if tx.format.packed else _reclaim_split(tx)
    tx.stats.reclaimed += done
    if tx.broken:  # no conditional expression: its type would be the unsigned one of `done`
        return tx.broken
    return done


cdef struct Releases:
    Store *store                # of the run that is being released
    uint32_t count              # holders of it to drop: once a run of frames, not once a frame


cdef inline void _release(TxRing *tx, uint32_t id, Store *store, Releases *run) noexcept:
    """The frame that `id` heads is done: its ids are free, its store held once less."""
    cdef uint16_t tail = tx.free_tail, left = tx.in_flight[id].ids
    tx.in_flight[id].store = NULL
    tx.free_ids[tail & tx.id_mask] = id
    tail += 1
    while left > 1:
        id = tx.next[id]
        tx.free_ids[tail & tx.id_mask] = id
        tail += 1
        left -= 1
    tx.free_tail = tail
    if store != run.store:
        if run.count:
            drop_store(run.store, run.count)
        run.store, run.count = store, 0
    run.count += 1


cdef inline uint32_t _oldest(const TxRing *tx) noexcept nogil:
    """The first id in flight, where the device keeps order: ids come back as they went."""
    return tx.free_ids[<uint16_t>(tx.free_tail - tx.size) & tx.id_mask]


cdef uint32_t _reclaim_split(TxRing *tx) noexcept:
    cdef SplitVq vq = tx.split  # a copy: its words stay in registers whatever is stored
    cdef uint16_t pending = split_pending(&vq), done = 0
    cdef uint32_t id
    cdef Store *store
    cdef Releases run
    run.store, run.count = NULL, 0
    if pending > split_in_flight(&vq):
        _tx_lie(tx, BROKEN_INDEX, pending)
        return 0
    while done < pending:
        # With IN_ORDER a batch has one entry only, and the index says all there is to know (2.7.9).
        id = _oldest(tx) if tx.format.in_order else <uint32_t>vq_used(&vq, done)
        if id >= tx.size:
            _tx_lie(tx, BROKEN_ID, id)
            break
        store = tx.in_flight[id].store
        if store == NULL:
            _tx_lie(tx, BROKEN_REPEAT, id)
            break
        _release(tx, id, store, &run)
        done += 1
    if run.count:
        drop_store(run.store, run.count)
    split_consume(&tx.split, done)
    return done


cdef uint32_t _reclaim_packed(TxRing *tx) noexcept:
    cdef uint64_t word
    cdef uint32_t id, last, done = 0
    cdef Releases run
    run.store, run.count = NULL, 0
    while tx.packed.in_flight > tx.packed.unpublished and packed_is_used(&tx.packed, &word):
        last = <uint16_t>(word >> 32)
        if last >= tx.size:
            _tx_lie(tx, BROKEN_ID, last)
            break
        if tx.in_flight[last].store == NULL:
            _tx_lie(tx, BROKEN_REPEAT, last)
            break
        while True:
            # With IN_ORDER it may stand for a batch that ends with the one it names (2.8.9).
            id = _oldest(tx) if tx.format.in_order else last
            packed_skip(&tx.packed, tx.in_flight[id].descriptors)
            _release(tx, id, tx.in_flight[id].store, &run)
            done += 1
            if id == last:
                break
    if run.count:
        drop_store(run.store, run.count)
    return done


cdef inline uint16_t _take_id(TxRing *tx) noexcept nogil:
    cdef uint16_t id = tx.free_ids[tx.free_head & tx.id_mask]
    tx.free_head += 1
    return id


cdef inline void _fly(TxRing *tx, uint32_t id, Store *store, uint32_t length, uint32_t ids,
                      uint32_t descriptors) noexcept nogil:
    """Id `id` stands for a frame of `store` from now on."""
    cdef InFlight *flight = &tx.in_flight[id]
    flight.store, flight.length = store, length
    flight.ids, flight.descriptors = ids, descriptors


cdef inline void _describe(Desc *desc, uint64_t addr, uint32_t length, uint16_t flags,
                           uint16_t next) noexcept nogil:
    desc.addr, desc.len, desc.flags, desc.next = addr, length, flags, next


cdef int tx_put(TxRing *tx, Store *store, uint32_t frame) noexcept nogil:
    """Expose one frame of a store, unpublished, or find the ring full.

    Header and head are adjacent, one piece; each fragment is one more. A piece is a descriptor, of
    the ring or of an indirect table. The caller holds the store once for it.
    """
    cdef uint32_t first = 0, end = 0, pieces, most = min(<uint32_t>TABLE_ENTRIES, tx.size)
    cdef bint indirect
    if store.begin != NULL:
        first, end = store.begin[frame], store.begin[frame + 1]
    pieces = 1 + end - first
    indirect = tx.tables != NULL and INDIRECT_FROM <= pieces <= most
    if _free(tx) < (1 if indirect else pieces):
        return PUT_FULL
    if indirect:
        _put_indirect(tx, store, frame, pieces)
    elif tx.format.packed:
        _put_packed(tx, store, frame, pieces)
    else:
        _put_split(tx, store, frame, pieces)
    tx.stats.frames += 1
    tx.stats.bytes += store.lengths[frame]
    return PUT_TAKEN


cdef inline uint64_t _piece(const Store *store, uint32_t frame, uint32_t i,
                            uint32_t *length) noexcept nogil:
    """Where piece `i` of a frame lies for the device, and how long it is."""
    cdef Frag *frag
    if i == 0:
        length[0] = HEADER_BYTES + min(store.lengths[frame], store.head_room)
        return store.header_iova + <uint64_t>frame * store.stride
    frag = &store.frags[store.begin[frame] + i - 1]
    length[0] = frag.length
    return page_iova(store.pool, frag.page) + frag.offset


cdef void _put_split(TxRing *tx, Store *store, uint32_t frame, uint32_t pieces) noexcept nogil:
    """One descriptor a piece, chained."""
    cdef uint16_t head = _take_id(tx), id = head, next
    cdef uint32_t i, length
    cdef uint64_t addr
    _fly(tx, head, store, store.lengths[frame], pieces, pieces)
    for i in range(pieces):
        addr = _piece(store, frame, i, &length)
        if i + 1 < pieces:
            next = _take_id(tx)
            _describe(&tx.split.desc[id], addr, length, DESC_NEXT, next)
            tx.next[id] = id = next
        else:
            _describe(&tx.split.desc[id], addr, length, 0, 0)
    split_expose(&tx.split, head)


cdef void _put_packed(TxRing *tx, Store *store, uint32_t frame, uint32_t pieces) noexcept nogil:
    """One descriptor a piece, one behind the other, all with the frame's id."""
    cdef uint16_t id = _take_id(tx)
    cdef uint32_t i, length
    cdef uint64_t addr
    _fly(tx, id, store, store.lengths[frame], 1, pieces)
    for i in range(pieces):
        addr = _piece(store, frame, i, &length)
        packed_expose(&tx.packed, id, addr, length, DESC_NEXT if i + 1 < pieces else 0)


cdef void _put_indirect(TxRing *tx, Store *store, uint32_t frame, uint32_t pieces) noexcept nogil:
    """All pieces in a table, and one descriptor for it (2.7.5.3, 2.8.8)."""
    cdef uint16_t id = _take_id(tx)
    cdef Desc *table = <Desc *>(tx.tables + <size_t>id * TABLE_BYTES)
    cdef uint64_t table_iova = tx.tables_iova + <uint64_t>id * TABLE_BYTES, addr
    cdef uint32_t i, length
    cdef bint more
    _fly(tx, id, store, store.lengths[frame], 1, 1)
    for i in range(pieces):
        addr = _piece(store, frame, i, &length)
        more = i + 1 < pieces and not tx.format.packed  # 2.8.8: entries follow one another
        _describe(&table[i], addr, length, DESC_NEXT if more else 0, i + 1 if more else 0)
    if tx.format.packed:
        packed_expose(&tx.packed, id, table_iova, 16 * pieces, DESC_INDIRECT)
    else:
        _describe(&tx.split.desc[id], table_iova, 16 * pieces, DESC_INDIRECT, 0)
        split_expose(&tx.split, id)


cdef uint32_t tx_put_linear(TxRing *tx, Store *store, Py_ssize_t start, Py_ssize_t step,
                            const uint32_t *index, uint32_t count) noexcept nogil:
    """Expose frames without fragments, one descriptor each: how many, until the ring is full, a
    frame is too long, or all `count` are exposed. The caller holds the store for each."""
    count = min(count, _free(tx))
    if tx.format.packed:
        return _put_linear(tx, &tx.packed, store, start, step, index, count)
    return _put_linear(tx, &tx.split, store, start, step, index, count)


cdef uint32_t _put_linear(TxRing *tx, Vq *live, Store *store, Py_ssize_t start, Py_ssize_t step,
                          const uint32_t *index, uint32_t count) noexcept nogil:
    cdef Vq vq = live[0]  # a copy: its words stay in registers whatever is stored
    cdef InFlight *in_flight = tx.in_flight
    cdef uint16_t *free_ids = tx.free_ids
    cdef uint32_t *lengths = store.lengths
    cdef uint64_t iova = store.header_iova, stride = store.stride, total = 0
    cdef uint32_t most = min(tx.max_frame, store.head_room), n = 0, id, length, frame
    cdef uint16_t head = tx.free_head, id_mask = tx.id_mask
    while n < count:
        frame = index[n] if index != NULL else <uint32_t>(start + n * step)
        length = lengths[frame]
        if length > most:
            break
        id = free_ids[head & id_mask]
        head += 1
        in_flight[id].store = store
        in_flight[id].length = length
        in_flight[id].ids = in_flight[id].descriptors = 1
        if Vq is SplitVq:
            _describe(&vq.desc[id], iova + frame * stride, HEADER_BYTES + length, 0, 0)
            split_expose(&vq, id)
        else:
            packed_expose(&vq, id, iova + frame * stride, HEADER_BYTES + length, 0)
        total += length
        n += 1
    tx.free_head = head
    vq_keep(live, &vq)
    tx.stats.frames += n
    tx.stats.bytes += total
    return n


cdef void tx_rewind(TxRing *tx) noexcept:
    """Undo every `tx_put` since the last publication: the device has not seen them."""
    cdef Store *store
    cdef uint16_t id
    cdef uint16_t left = tx.packed.unpublished if tx.format.packed else vq_unpublished(&tx.split)
    while left:
        tx.free_head -= 1
        id = tx.free_ids[tx.free_head & tx.id_mask]
        store = tx.in_flight[id].store
        if store != NULL:  # a chain's head
            tx.in_flight[id].store = NULL
            tx.stats.frames -= 1
            tx.stats.bytes -= tx.in_flight[id].length
            left -= tx.in_flight[id].descriptors if tx.format.packed else 1
            drop_store(store, 1)
    if tx.format.packed:
        packed_rewind(&tx.packed)
    else:
        tx.split.avail_next = tx.split.published


cdef void tx_publish(TxRing *tx) noexcept nogil:
    """One publication and one kick decision for all that was exposed."""
    if tx.format.packed:
        _publish(tx, &tx.packed)
    else:
        _publish(tx, &tx.split)


cdef inline void _publish(TxRing *tx, Vq *vq) noexcept nogil:
    if vq_unpublished(vq) and vq_publish(vq):
        tx.stats.kicks += 1
        _ring_bell(&tx.bell, vq_kick_data(vq))
