"""The core: post pages, merge buffers into frames, copy heads; send, reclaim on the next send."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._barrier cimport copy_head, eventfd_add, mmio_store16, peek, prefetch
from ._layout cimport DESC_NEXT, DESC_WRITE, Desc, NetHdr
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
    split_expose,
    split_in_flight,
    split_init,
    split_pending,
    split_publish,
    split_unpublished,
    split_used,
)

cdef enum:
    MIN_FRAME = 14              # an Ethernet header
    LOOKAHEAD = 6               # buffers whose first lines are fetched ahead

cdef uint64_t NEVER = ~<uint64_t>0  # a descriptor that the device does not have


cdef inline void _ring_bell(Bell *bell) noexcept nogil:
    if bell.kind == BELL_MMIO16:
        mmio_store16(bell.target, bell.value)
    elif bell.kind == BELL_EVENTFD:
        eventfd_add(<int>bell.target)
    elif bell.kind == BELL_CALL:
        bell.due = 1


# ---- receive -----------------------------------------------------------------------------------

cdef bint rx_create(RxRing *rx, Pool *pool, uint32_t size, uint8_t *memory, uint16_t start,
                    bint mergeable) except False:
    """An empty receive ring of `size` descriptors in `memory`, all of them without a page."""
    cdef uint32_t i
    split_init(&rx.vq, memory, size, start)
    rx.pool, rx.mergeable = pool, mergeable
    rx.exposures = rx.published = rx.broken = 0
    rx.threshold = max(1, min(32, size // 8))
    rx.page_of = <uint32_t *>calloc(size, sizeof(uint32_t))
    if rx.page_of != NULL:
        memset(rx.page_of, 0xFF, size * sizeof(uint32_t))  # NO_PAGE: nothing to give back yet
    rx.exposed = <uint64_t *>calloc(size, sizeof(uint64_t))
    rx.hungry = <uint16_t *>calloc(size, sizeof(uint16_t))
    rx.fresh = <uint32_t *>calloc(size, sizeof(uint32_t))
    rx.claimed = <uint64_t *>calloc(size, sizeof(uint64_t))
    if not (rx.page_of and rx.exposed and rx.hungry and rx.fresh and rx.claimed):
        raise MemoryError
    for i in range(size):
        rx.exposed[i] = NEVER
        rx.hungry[i] = size - 1 - i
    rx.nhungry = size
    return True


cdef void rx_destroy(RxRing *rx) noexcept nogil:
    """Pages go back to the pool. The device must have been reset."""
    cdef uint32_t i
    if rx.page_of != NULL and rx.pool != NULL:
        for i in range(<uint32_t>rx.vq.mask + 1):
            if rx.page_of[i] != NO_PAGE:
                give_pages(rx.pool, &rx.page_of[i], 1)
    free(rx.page_of)
    free(rx.exposed)
    free(rx.hungry)
    free(rx.fresh)
    free(rx.claimed)
    rx.page_of = rx.fresh = NULL
    rx.exposed = rx.claimed = NULL
    rx.hungry = NULL
    rx.pool = NULL


cdef int _rx_lie(RxRing *rx, int code, uint32_t value) noexcept nogil:
    rx.broken, rx.lie = code, value
    return code


cdef int rx_pending(RxRing *rx) noexcept nogil:
    """Used buffers that wait; a BROKEN_ code when the device claims more than it has."""
    cdef uint16_t pending
    if rx.broken:
        return rx.broken
    pending = split_pending(&rx.vq)
    if pending > split_in_flight(&rx.vq):
        return _rx_lie(rx, BROKEN_INDEX, pending)
    return pending


cdef inline uint32_t _buffers(uint8_t *page) noexcept nogil:
    """num_buffers of a received header, read once (5.1.6.4)."""
    return peek(&(<NetHdr *>page).num_buffers)


cdef uint32_t rx_waiting(RxRing *rx) noexcept nogil:
    """Frames that the device has delivered and nobody has received: for the books, at a reset."""
    cdef uint32_t frames = 0, done = 0, count = 1
    cdef int pending = rx_pending(rx) if rx.page_of != NULL else 0
    cdef uint64_t entry
    while <int>done < pending:
        entry = split_used(&rx.vq, done)
        if _check(rx, entry, HEADER_BYTES):
            break
        if rx.mergeable:
            count = _buffers(page_address(rx.pool, rx.page_of[<uint32_t>entry]))
        if _claim(rx, done, count, pending - done):
            break
        done += count
        frames += 1
    return frames


cdef inline int _check(RxRing *rx, uint64_t entry, uint32_t least) noexcept nogil:
    """Is this used entry one that the device may write?"""
    cdef uint32_t id = <uint32_t>entry, length = <uint32_t>(entry >> 32)
    if id > rx.vq.mask:
        return _rx_lie(rx, BROKEN_ID, id)
    if rx.exposed[id] >= rx.published:
        return _rx_lie(rx, BROKEN_REPEAT, id)
    if length < least or length > PAGE_BYTES:
        return _rx_lie(rx, BROKEN_LENGTH, length)
    return 0


cdef inline void _expose(RxRing *rx, uint32_t id) noexcept nogil:
    """The page of descriptor `id` is the device's again, from the next publication on."""
    rx.exposed[id] = rx.exposures
    rx.exposures += 1
    split_expose(&rx.vq, id)


cdef inline void _keep(RxRing *rx, Store *store, uint32_t id, uint32_t offset,
                       uint32_t length) noexcept nogil:
    """The page of descriptor `id` becomes a fragment of the store's current frame."""
    cdef Frag *frag = &store.frags[store.nfrags]
    frag.page, frag.offset, frag.length = rx.page_of[id], offset, length
    store.nfrags += 1
    rx.page_of[id] = NO_PAGE
    rx.exposed[id] = NEVER
    rx.hungry[rx.nhungry] = id
    rx.nhungry += 1


cdef int _claim(RxRing *rx, uint16_t first, uint32_t count, uint32_t pending) noexcept nogil:
    """Check all buffers of a frame, each read once; on a lie nothing has been moved."""
    cdef uint32_t i
    cdef uint64_t entry
    cdef int lie
    if count == 0 or count > pending:
        return _rx_lie(rx, BROKEN_COUNT, count)
    for i in range(count):
        entry = split_used(&rx.vq, first + i)
        lie = _check(rx, entry, 0 if i else HEADER_BYTES)
        if lie:
            return lie
        rx.exposed[<uint32_t>entry] = NEVER
        rx.claimed[i] = entry
    return 0


cdef void _merge(RxRing *rx, Store *store, uint32_t n, uint32_t count) noexcept nogil:
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
        else:
            _expose(rx, id)
        total += length
        offset = 0
    store.lengths[n] = total


cdef inline void _prefetch(const RxRing *rx, uint16_t ahead) noexcept nogil:
    cdef uint32_t id = <uint32_t>split_used(&rx.vq, ahead) & rx.vq.mask
    cdef uint8_t *page = page_address(rx.pool, rx.page_of[id])
    prefetch(page)
    prefetch(page + HEADER_BYTES)


cdef uint32_t _small_run(RxRing *rx, Store *store, uint32_t n, uint32_t want, uint32_t first,
                         uint32_t pending) noexcept nogil:
    """Frames that lie in one buffer and fit their heads: how many, until another kind comes.

    The fast path: nothing is decided here that `_claim` would not decide the same way.
    """
    cdef SplitVq vq = rx.vq  # a copy: its words stay in registers whatever is stored
    cdef uint32_t *page_of = rx.page_of
    cdef uint64_t *exposed = rx.exposed
    cdef uint8_t *pages = rx.pool.pages
    cdef uint8_t *head = store.heads + <size_t>n * SLOT_STRIDE
    cdef uint32_t *lengths = store.lengths + n
    cdef uint64_t published = rx.published, exposures = rx.exposures, entry
    cdef uint32_t run = 0, id, size, ahead
    cdef uint8_t *page
    cdef bint mergeable = rx.mergeable
    want = min(want - n, pending - first)
    while run < want:
        ahead = first + run + LOOKAHEAD
        if ahead < pending:
            page = pages + <size_t>page_of[<uint32_t>split_used(&vq, ahead) & vq.mask] * PAGE_STRIDE
            prefetch(page)
            prefetch(page + HEADER_BYTES)
        entry = split_used(&vq, first + run)
        id, size = <uint32_t>entry, <uint32_t>(entry >> 32) - HEADER_BYTES
        if id > vq.mask or exposed[id] >= published:
            break
        if size - MIN_FRAME > HEAD_BYTES - MIN_FRAME:  # unsigned: too short is too long as well
            break
        page = pages + <size_t>page_of[id] * PAGE_STRIDE
        if mergeable and _buffers(page) != 1:
            break
        copy_head(head, page + HEADER_BYTES, size)
        lengths[run] = size
        rx.stats.bytes += size
        exposed[id] = exposures
        exposures += 1
        split_expose(&vq, id)
        head += SLOT_STRIDE
        run += 1
    rx.vq.avail_next, rx.exposures = vq.avail_next, exposures
    return run


cdef int rx_receive(RxRing *rx, Store *store, uint32_t want, uint32_t pending) noexcept nogil:
    """Up to `want` frames of `pending` used buffers into `store`; how many, or a BROKEN_ code.

    Frames before a lie are delivered; the next call reports it.
    """
    cdef uint32_t taken = 0, n = 0, run, count, i
    for i in range(min(<uint32_t>LOOKAHEAD, pending)):
        _prefetch(rx, i)
    while n < want and taken < pending:
        run = _small_run(rx, store, n, want, taken, pending)
        if store.begin != NULL:
            for i in range(run):
                store.begin[n + i + 1] = store.nfrags
        n += run
        taken += run
        if n == want or taken == pending:
            break
        count = _receive_one(rx, store, n, taken, pending - taken)
        if count == 0:
            break
        taken += count
        if store.lengths[n] < MIN_FRAME:  # all of it lies in the head: nothing to take back
            rx.stats.runts += 1
            continue
        rx.stats.bytes += store.lengths[n]
        n += 1
        store.begin[n] = store.nfrags
    rx.vq.used_next += taken
    store.nframes = n
    rx.stats.frames += n
    rx.stats.buffers += taken
    if rx.broken and n == 0:
        return rx.broken
    return n


cdef uint32_t _receive_one(RxRing *rx, Store *store, uint32_t n, uint16_t first,
                           uint32_t pending) noexcept nogil:
    """A frame of any kind as frame `n`: how many buffers it took, 0 for a lie or without memory."""
    cdef uint64_t entry = split_used(&rx.vq, first)
    cdef uint32_t count = 1
    if _check(rx, entry, HEADER_BYTES):
        return 0
    if rx.mergeable:
        count = _buffers(page_address(rx.pool, rx.page_of[<uint32_t>entry]))
    if store.begin == NULL and not attach_frags(store, n):
        return 0
    if _claim(rx, first, count, pending):
        return 0
    _merge(rx, store, n, count)
    return count


cdef void rx_refill(RxRing *rx, bint idle) noexcept nogil:
    """Pages for descriptors that gave theirs away; publish past the threshold, or all when idle."""
    cdef uint32_t i, id, count
    cdef Desc *desc
    if rx.broken:
        return
    if rx.nhungry:
        count = take_pages(rx.pool, rx.fresh, rx.nhungry)
        for i in range(count):
            rx.nhungry -= 1
            id = rx.hungry[rx.nhungry]
            rx.page_of[id] = rx.fresh[i]
            desc = &rx.vq.desc[id]
            desc.addr, desc.len = page_iova(rx.pool, rx.fresh[i]), PAGE_BYTES
            desc.flags, desc.next = DESC_WRITE, 0
            _expose(rx, id)
    count = split_unpublished(&rx.vq)
    if count and (idle or count >= rx.threshold):
        rx.published = rx.exposures
        if split_publish(&rx.vq):
            rx.stats.kicks += 1
            _ring_bell(&rx.bell)


# ---- transmit ----------------------------------------------------------------------------------

cdef bint tx_create(TxRing *tx, uint32_t size, uint8_t *memory, uint16_t start,
                    uint32_t max_frame) except False:
    """An empty transmit ring of `size` descriptors in `memory`."""
    cdef uint32_t i
    split_init(&tx.vq, memory, size, start)
    tx.max_frame, tx.broken = max_frame, 0
    tx.in_flight = <InFlight *>calloc(size, sizeof(InFlight))
    tx.next = <uint16_t *>calloc(size, sizeof(uint16_t))
    tx.free_ids = <uint16_t *>calloc(size, sizeof(uint16_t))
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
        for i in range(<uint32_t>tx.vq.mask + 1):
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
    return <uint16_t>(tx.free_tail - tx.free_head)


cdef int _tx_lie(TxRing *tx, int code, uint32_t value) noexcept nogil:
    tx.broken, tx.lie = code, value
    return code


cdef int tx_reclaim(TxRing *tx) noexcept:
    """Take back everything the device has used; how many frames, or a BROKEN_ code.

    Called at the start of the next send, and nowhere behind the caller's back. Holders are
    dropped once a run of frames of the same burst, not once a frame.
    """
    cdef SplitVq vq = tx.vq  # a copy: its words stay in registers whatever is stored
    cdef InFlight *in_flight = tx.in_flight
    cdef uint16_t *free_ids = tx.free_ids
    cdef uint16_t tail = tx.free_tail, pending, done = 0, left
    cdef uint32_t run = 0, id
    cdef Store *store
    cdef Store *last = NULL
    if tx.broken:
        return tx.broken
    pending = split_pending(&vq)
    if pending > split_in_flight(&vq):
        return _tx_lie(tx, BROKEN_INDEX, pending)
    while done < pending:
        id = <uint32_t>split_used(&vq, done)
        if id > vq.mask:
            _tx_lie(tx, BROKEN_ID, id)
            break
        store = in_flight[id].store
        if store == NULL:
            _tx_lie(tx, BROKEN_REPEAT, id)
            break
        in_flight[id].store = NULL
        free_ids[tail & vq.mask] = id
        tail += 1
        left = in_flight[id].descriptors
        while left > 1:
            id = tx.next[id]
            free_ids[tail & vq.mask] = id
            tail += 1
            left -= 1
        if store != last:
            if run:
                drop_store(last, run)
            last, run = store, 0
        run += 1
        done += 1
    if run:
        drop_store(last, run)
    tx.free_tail = tail
    tx.vq.used_next += done
    tx.stats.reclaimed += done
    if tx.broken:  # no conditional expression: its type would be the unsigned one of `done`
        return tx.broken
    return done


cdef inline uint16_t _take_id(TxRing *tx) noexcept nogil:
    cdef uint16_t id = tx.free_ids[tx.free_head & tx.vq.mask]
    tx.free_head += 1
    return id


cdef int tx_put(TxRing *tx, Store *store, uint32_t frame) noexcept nogil:
    """Expose one frame of a store, unpublished, or find the ring full.

    Header and head are adjacent, one descriptor; each fragment is one more. The caller holds
    the store once for it.
    """
    cdef uint32_t linear = min(store.lengths[frame], store.head_room), i, end = 0
    cdef uint16_t head, id
    cdef Desc *desc
    cdef Frag *frag
    i = 0
    if store.begin != NULL:
        i, end = store.begin[frame], store.begin[frame + 1]
    if _free(tx) < 1 + end - i:
        return PUT_FULL
    head = id = _take_id(tx)
    tx.in_flight[head].store = store
    tx.in_flight[head].descriptors = 1 + end - i
    tx.in_flight[head].length = store.lengths[frame]
    desc = &tx.vq.desc[id]
    desc.addr = store.header_iova + <uint64_t>frame * store.stride
    desc.len = HEADER_BYTES + linear
    while i < end:
        frag = &store.frags[i]
        tx.next[id] = desc.next = _take_id(tx)
        desc.flags = DESC_NEXT
        id = tx.next[id]
        desc = &tx.vq.desc[id]
        desc.addr, desc.len = page_iova(store.pool, frag.page) + frag.offset, frag.length
        i += 1
    desc.flags, desc.next = 0, 0
    split_expose(&tx.vq, head)
    tx.stats.frames += 1
    tx.stats.bytes += store.lengths[frame]
    return PUT_TAKEN


cdef uint32_t tx_put_linear(TxRing *tx, Store *store, Py_ssize_t start, Py_ssize_t step,
                            const uint32_t *index, uint32_t count) noexcept nogil:
    """Expose frames without fragments, one descriptor each: how many, until the ring is full, a
    frame is too long, or all `count` are exposed. The caller holds the store for each."""
    cdef SplitVq vq = tx.vq  # a copy: its words stay in registers whatever is stored
    cdef InFlight *in_flight = tx.in_flight
    cdef uint16_t *free_ids = tx.free_ids
    cdef uint32_t *lengths = store.lengths
    cdef uint64_t iova = store.header_iova, stride = store.stride, total = 0
    cdef uint32_t most = min(tx.max_frame, store.head_room), n = 0, id, length, frame
    cdef uint16_t head = tx.free_head
    cdef Desc *desc
    count = min(count, _free(tx))
    while n < count:
        frame = index[n] if index != NULL else <uint32_t>(start + n * step)
        length = lengths[frame]
        if length > most:
            break
        id = free_ids[head & vq.mask]
        head += 1
        desc = &vq.desc[id]
        desc.addr, desc.len = iova + frame * stride, HEADER_BYTES + length
        desc.flags, desc.next = 0, 0
        in_flight[id].store = store
        in_flight[id].length, in_flight[id].descriptors = length, 1
        split_expose(&vq, id)
        total += length
        n += 1
    tx.free_head, tx.vq.avail_next = head, vq.avail_next
    tx.stats.frames += n
    tx.stats.bytes += total
    return n


cdef void tx_rewind(TxRing *tx) noexcept:
    """Undo every `tx_put` since the last publication: the device has not seen them."""
    cdef Store *store
    cdef uint16_t id
    cdef uint16_t frames = split_unpublished(&tx.vq)
    tx.vq.avail_next = tx.vq.published
    while frames:
        tx.free_head -= 1
        id = tx.free_ids[tx.free_head & tx.vq.mask]
        store = tx.in_flight[id].store
        if store != NULL:  # a chain's head
            tx.in_flight[id].store = NULL
            tx.stats.frames -= 1
            tx.stats.bytes -= tx.in_flight[id].length
            frames -= 1
            drop_store(store, 1)


cdef void tx_publish(TxRing *tx) noexcept nogil:
    """One publication and one kick decision for all that was exposed."""
    if split_unpublished(&tx.vq) and split_publish(&tx.vq):
        tx.stats.kicks += 1
        _ring_bell(&tx.bell)
