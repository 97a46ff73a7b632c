"""Used receive buffers checked, merged into frames, their heads copied."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._barrier cimport copy_head, peek, prefetch
from ._big cimport big_frame
from ._layout cimport DESC_WRITE, Header, NetHdr
from ._offload cimport header_received
from ._packed cimport packed_expose, packed_scan
from ._pages cimport (
    HEAD_BYTES,
    HEADER_BYTES,
    NO_PAGE,
    PAGE_BYTES,
    SLOT_STRIDE,
    Frag,
    Store,
    attach_frags,
    attach_headers,
    give_pages,
)
from ._post cimport NEVER, RxRing, buffer_address, pages_of, rx_expose, rx_queue_up
from ._ring cimport (
    BROKEN_COUNT,
    BROKEN_ID,
    BROKEN_INDEX,
    BROKEN_LENGTH,
    BROKEN_ORDER,
    BROKEN_REPEAT,
)
from ._split cimport SplitVq, split_expose, split_in_flight, split_pending, split_unroll
from ._virtqueue cimport Vq, vq_consume, vq_keep, vq_used

cdef enum:
    MIN_FRAME = 14              # an Ethernet header
    LOOKAHEAD = 6               # buffers whose first lines are fetched ahead


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
        pending = packed_scan(&rx.packed, rx.buffer_bytes, &culprit)
        return pending if pending >= 0 else _out_of_order(rx, culprit)
    pending = split_pending(&rx.split)
    if pending > split_in_flight(&rx.split):
        return _rx_lie(rx, BROKEN_INDEX, pending)
    if rx.format.in_order and not split_unroll(&rx.split, pending, rx.buffer_bytes, &culprit):
        return _out_of_order(rx, culprit)
    return pending


cdef inline uint32_t _buffers(uint8_t *buffer) noexcept nogil:
    """num_buffers of a received header, read once (5.1.6.4)."""
    return peek(&(<NetHdr *>buffer).num_buffers)


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
        if _check(rx, entry, rx.header_bytes):
            break
        if rx.mergeable:
            count = _buffers(buffer_address(rx, rx.page_of[<uint32_t>entry]))
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
    if length < least or length > rx.buffer_bytes:
        return _rx_lie(rx, BROKEN_LENGTH, length)
    return 0


cdef inline void _keep(RxRing *rx, Store *store, uint32_t id, uint32_t offset,
                       uint32_t length) noexcept nogil:
    """The page of descriptor `id` becomes a fragment of the store's current frame."""
    cdef Frag *frag = &store.frags[store.nfrags]
    frag.page, frag.offset, frag.length = rx.page_of[id], rx.lead + <int32_t>offset, length
    store.nfrags += 1
    rx.page_of[id] = NO_PAGE
    rx_queue_up(rx, id)


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
        lie = _check(rx, entry, 0 if i else rx.header_bytes)
        if lie:
            return lie
        rx.exposed[<uint32_t>entry] = NEVER
        rx.claimed[i] = entry
    return 0


cdef bint _take_header(RxRing *rx, Header *header, uint32_t count) noexcept nogil:
    """Copy the header of the claimed buffers, and check it. A bad one's frame becomes empty."""
    cdef uint32_t i, length = 0
    cdef uint8_t *buffer = buffer_address(rx, pages_of(rx, <uint32_t>rx.claimed[0])[0])
    memcpy(header, buffer, min(rx.header_bytes, <uint32_t>sizeof(Header)))
    for i in range(count):
        length += <uint32_t>(rx.claimed[i] >> 32)
    if header_received(&header.net, rx.format.features, length - rx.header_bytes):
        return True
    for i in range(count):
        rx.claimed[i] = <uint32_t>rx.claimed[i] | <uint64_t>(0 if i else rx.header_bytes) << 32
    return False


cdef void _merge(RxRing *rx, Vq *vq, Store *store, uint32_t n, uint32_t count) noexcept nogil:
    """The `count` claimed buffers become frame `n`.

    The head takes the first 128 bytes of payload from as many buffers as they lie in. A buffer
    whose whole payload fits there is posted again; the rest of every other one is a fragment.
    """
    cdef uint8_t *head = store.first_head + <size_t>n * SLOT_STRIDE
    cdef uint32_t i, id, length, copied, offset = rx.header_bytes, total = 0
    for i in range(count):
        id = <uint32_t>rx.claimed[i]
        length = <uint32_t>(rx.claimed[i] >> 32) - offset
        copied = min(length, HEAD_BYTES - min(total, <uint32_t>HEAD_BYTES))
        memcpy(head + total, buffer_address(rx, rx.page_of[id]) + offset, copied)
        if length > copied:
            _keep(rx, store, id, offset + copied, length - copied)
        elif rx.format.in_order and rx.nhungry:
            give_pages(rx.pool, &rx.page_of[id], 1)  # those whose turn comes first may need it
            rx.page_of[id] = NO_PAGE
            rx_queue_up(rx, id)
        else:
            rx_expose(rx, vq, id)
        total += length
        offset = 0
    store.lengths[n] = total


cdef inline void _prefetch(uint8_t *page) noexcept nogil:
    """The first lines of a page; any address will do."""
    prefetch(page)
    prefetch(page + HEADER_BYTES)


cdef uint32_t _small_run(RxRing *rx, Vq *live, Store *store, uint32_t n, uint32_t want,
                         uint32_t first, uint32_t pending) noexcept nogil:
    """Frames that lie in one buffer and fit their heads: how many, until another kind comes.

    The fast path: nothing is decided here that `_claim` would not decide the same way.
    """
    cdef Vq vq = live[0]  # a copy: its words stay in registers whatever is stored
    cdef uint8_t **page_at = rx.page_at
    cdef uint64_t *exposed = rx.exposed
    cdef uint64_t to_iova = rx.pool.pages_iova - <uint64_t>rx.pool.pages
    cdef uint8_t *head = store.first_head + <size_t>n * SLOT_STRIDE
    cdef uint32_t *lengths = store.lengths + n
    cdef uint64_t published = rx.published, exposures = rx.exposures, entry, total = 0
    cdef uint32_t run = 0, id, length, ahead, size = rx.size, id_mask = rx.id_mask
    cdef uint8_t *page
    cdef bint mergeable = rx.mergeable
    want = min(want - n, pending - first)
    if not rx.plain:
        return 0
    if rx.format.in_order and rx.nhungry:  # nothing may overtake what waits to be exposed
        return 0
    while run < want:
        ahead = first + run + LOOKAHEAD
        if ahead < pending:
            _prefetch(page_at[<uint32_t>vq_used(&vq, ahead) & id_mask])
        entry = vq_used(&vq, first + run)
        id, length = <uint32_t>entry, <uint32_t>(entry >> 32) - HEADER_BYTES
        if id >= size or exposed[id] >= published:
            break
        if length - MIN_FRAME > HEAD_BYTES - MIN_FRAME:  # unsigned: too short is too long as well
            break
        page = page_at[id]
        if mergeable and _buffers(page) != 1:
            break
        copy_head(head, page + HEADER_BYTES, length)
        lengths[run] = length
        total += length
        exposed[id] = exposures
        exposures += 1
        if Vq is SplitVq:
            split_expose(&vq, id)
        else:
            packed_expose(&vq, id, <uint64_t>page + to_iova, PAGE_BYTES, DESC_WRITE)
        head += SLOT_STRIDE
        run += 1
    vq_keep(live, &vq)
    rx.exposures = exposures
    rx.stats.bytes += total
    return run


cdef int rx_receive(RxRing *rx, Store *store, uint32_t want, uint32_t pending) noexcept nogil:
    """Frames of `pending` used buffers into `store`, until it has `want`; how many it has then.

    A BROKEN_ code if it has none for a lie.
    Frames before a lie are delivered; the next call reports it.
    """
    if rx.format.packed:
        return _receive(rx, &rx.packed, store, want, pending)
    return _receive(rx, &rx.split, store, want, pending)


cdef int _receive(RxRing *rx, Vq *vq, Store *store, uint32_t want,
                  uint32_t pending) noexcept nogil:
    cdef uint32_t taken = 0, before = store.nframes, n = before, run, count, i
    for i in range(min(<uint32_t>LOOKAHEAD, pending)):
        _prefetch(rx.page_at[<uint32_t>vq_used(vq, i) & rx.id_mask])
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
            rx.stats.bad_headers += rx.bad_header
            rx.stats.runts += not rx.bad_header
            continue
        rx.stats.bytes += store.lengths[n]
        n += 1
        store.begin[n] = store.nfrags
    vq_consume(vq, taken)
    store.nframes = n
    rx.stats.frames += n - before
    rx.stats.buffers += taken
    if rx.broken and n == 0:
        return rx.broken
    return n


cdef uint32_t _receive_one(RxRing *rx, Vq *vq, Store *store, uint32_t n, uint16_t first,
                           uint32_t pending) noexcept nogil:
    """A frame of any kind as frame `n`: how many buffers it took, 0 for a lie or without memory."""
    cdef uint64_t entry = vq_used(vq, first)
    cdef uint32_t count = 1
    if _check(rx, entry, rx.header_bytes):
        return 0
    if rx.mergeable:
        count = _buffers(buffer_address(rx, pages_of(rx, <uint32_t>entry)[0]))
    if store.begin == NULL and not attach_frags(store, n):
        return 0
    if rx.columns and store.headers == NULL and not attach_headers(store):
        return 0
    if _claim(rx, vq, first, count, pending):
        return 0
    rx.bad_header = rx.columns and not _take_header(rx, &store.headers[n], count)
    if rx.chain == 1:
        _merge(rx, vq, store, n, count)
    elif big_frame(rx, store, n) and not (rx.format.in_order and rx.nhungry):
        rx_expose(rx, vq, <uint32_t>rx.claimed[0])
    else:
        rx_queue_up(rx, <uint32_t>rx.claimed[0])
    return count
