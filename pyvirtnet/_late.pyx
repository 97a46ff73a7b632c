"""Frames whose heads stay in their buffers until somebody looks at them.

A cache line that this side has read costs the device more to write again than one that it has not.
So where burst after burst is let go unseen, as by a caller who counts frames or adds up their
lengths, payload is not touched at all: `_pages.look_at` copies heads once somebody asks for them.
Their buffers are given back in order, when their burst is gone or the device needs them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport observe, peek, peek32, poke32
from ._layout cimport DESC_WRITE, NetHdr
from ._packed cimport packed_expose
from ._pages cimport HEAD_BYTES, HEADER_BYTES, Store, drop_store, heads, hold_late
from ._post cimport LATE_BURSTS, NEVER, RxRing, buffer_iova
from ._split cimport SplitVq, split_expose
from ._virtqueue cimport Vq, vq_consume, vq_keep, vq_used

cdef enum:
    MIN_FRAME = 14              # an Ethernet header


cdef bint late_begin(RxRing *rx, uint32_t frames, bint late) noexcept:
    """If heads are to be `late`, and can be, room for so many of them; else no others are either.

    All buffers are given back then, for those of what comes now are exposed at once.
    """
    late = late and rx.plain and frames <= rx.late_most and not rx.nhungry
    _give_back(rx, rx.late_most - frames if late else 0)
    return late


cdef void late_give_back(RxRing *rx, bint all_of_them) noexcept:
    """The buffers of bursts that are gone or were looked at, or of all, are exposed."""
    _give_back(rx, 0 if all_of_them else rx.late_most)


cdef void late_look(RxRing *rx) noexcept:
    """The heads of bursts that somebody has are copied; their buffers stay where they are."""
    cdef uint32_t i
    cdef Store *store
    for i in range(rx.nlate):
        store = rx.late[(rx.late_next + i) % LATE_BURSTS]
        if peek32(&store.refs) > 1:
            heads(store)


cdef void late_forget(RxRing *rx) noexcept:
    """The ring comes to its end, and its pages go elsewhere: who is left looks now."""
    while rx.nlate:
        _let_go(_oldest(rx))
    rx.late_frames = 0


cdef uint32_t late_receive(RxRing *rx, Store *store, uint32_t want) noexcept:
    """Up to `want` used buffers into `store`: frames of one buffer each that fit their heads.

    If another kind or a lie comes, which are for `rx_receive`, what there is is no longer late.
    """
    cdef uint32_t count
    if rx.format.packed:
        count = _receive(rx, &rx.packed, store, want)
    else:
        count = _receive(rx, &rx.split, store, want)
    if count < want:
        poke32(&rx.pool.unseen, 0)
        _give_back(rx, 0)
    return count


cdef uint32_t _receive(RxRing *rx, Vq *vq, Store *store, uint32_t want) noexcept:
    cdef Vq copy = vq[0]  # its words stay in registers whatever is stored, as do these
    cdef uint64_t *exposed = rx.exposed
    cdef uint64_t published = rx.published, entry, total = 0
    cdef uint8_t **page_at = rx.page_at
    cdef uint32_t *page_of = rx.page_of
    cdef uint32_t *lengths = store.lengths
    cdef uint32_t *pages = store.pages
    cdef uint16_t *ids = rx.late_ids
    cdef uint32_t run = 0, id, length, size = rx.size, mask = rx.id_mask
    cdef uint32_t next = rx.late_id + rx.late_frames
    cdef bint mergeable = rx.mergeable
    while run < want:
        entry = vq_used(&copy, run)
        id, length = <uint32_t>entry, <uint32_t>(entry >> 32) - HEADER_BYTES
        if id >= size or exposed[id] >= published:
            break
        if length - MIN_FRAME > HEAD_BYTES - MIN_FRAME:  # unsigned: too short is too long as well
            break
        if mergeable and peek(&(<NetHdr *>page_at[id]).num_buffers) != 1:
            break
        lengths[run], pages[run] = length, page_of[id]
        ids[(next + run) & mask] = id
        exposed[id] = NEVER
        total += length
        run += 1
    if run:
        vq_consume(vq, run)
        store.nframes = run
        hold_late(store)
        rx.late[(rx.late_next + rx.nlate) % LATE_BURSTS] = store
        rx.nlate += 1
        rx.late_frames += run
        rx.stats.frames += run
        rx.stats.buffers += run
        rx.stats.bytes += total
    return run


cdef void _give_back(RxRing *rx, uint32_t most) noexcept:
    """Expose the buffers of the oldest bursts until `most` are left, and of those nobody needs.

    In their order: a burst that may still be looked at keeps those behind it waiting.
    """
    while rx.nlate and (rx.late_frames > most or rx.nlate == LATE_BURSTS
                        or not _waits(rx.late[rx.late_next])):
        if rx.format.packed:
            _expose_oldest(rx, &rx.packed)
        else:
            _expose_oldest(rx, &rx.split)


cdef void _expose_oldest(RxRing *rx, Vq *vq) noexcept:
    cdef Store *store = _oldest(rx)
    cdef uint32_t i, count = store.nframes
    cdef uint16_t *ids = rx.late_ids
    cdef uint64_t *exposed = rx.exposed
    cdef uint64_t exposures = rx.exposures
    cdef uint32_t first = rx.late_id, mask = rx.id_mask, id
    cdef Vq copy = vq[0]  # as above
    _let_go(store)
    for i in range(count):
        id = ids[(first + i) & mask]
        exposed[id] = exposures + i
        if Vq is SplitVq:
            split_expose(&copy, id)
        else:
            packed_expose(&copy, id, buffer_iova(rx, rx.page_of[id]), rx.buffer_bytes, DESC_WRITE)
    vq_keep(vq, &copy)
    rx.exposures += count
    rx.late_id += count
    rx.late_frames -= count


cdef inline bint _waits(const Store *store) noexcept nogil:
    """Does somebody have the burst, who has not looked at it yet?"""
    return peek32(&store.refs) > 1 and observe(&store.unseen)


cdef inline Store *_oldest(RxRing *rx) noexcept nogil:
    """Off the list with it."""
    cdef Store *store = rx.late[rx.late_next]
    rx.late_next = (rx.late_next + 1) % LATE_BURSTS
    rx.nlate -= 1
    return store


cdef void _let_go(Store *store) noexcept:
    """Whoever else has the burst finds its heads in place from now on."""
    store.listed = False
    if peek32(&store.refs) > 1:
        heads(store)
    drop_store(store, 1)
