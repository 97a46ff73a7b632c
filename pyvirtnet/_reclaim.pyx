"""Frames in flight: an empty ring for them, and the way back of what the device has sent."""

from libc.stdlib cimport calloc, free

from ._offload cimport BIT_CSUM, has
from ._packed cimport PackedVq, packed_init, packed_is_used, packed_skip
from ._pages cimport HEADER_BYTES, Store, drop_store
from ._ring cimport BROKEN_ID, BROKEN_INDEX, BROKEN_REPEAT, RingFormat, round_up
from ._split cimport (
    SplitVq,
    split_consume,
    split_in_flight,
    split_init,
    split_pending,
)
from ._virtqueue cimport vq_set_interrupts, vq_used


cdef bint tx_create(TxRing *tx, const RingFormat *format, uint32_t size, uint8_t *memory,
                    uint64_t memory_iova, uint16_t start, uint32_t max_frame) except False:
    """An empty transmit ring of `size` descriptors in `memory`; indirect tables lie behind it."""
    cdef uint32_t i, ids = round_up(size)
    tx.format, tx.size, tx.id_mask = format[0], size, ids - 1
    tx.max_frame, tx.broken = max_frame, 0
    tx.header_bytes, tx.plain = format.header_bytes, format.header_bytes == HEADER_BYTES
    tx.lead = HEADER_BYTES - <int32_t>tx.header_bytes
    if format.packed:
        packed_init(&tx.packed, memory, size, start, format.event_idx, format.in_order)
        # QEMU's, when a frame that it had to queue is gone, takes what else there is and leaves its
        # event where it was.
        tx.packed.old_events = True
    else:
        split_init(&tx.split, memory, size, start, format.event_idx, format.alignment)
    tx.tables = NULL
    if format.indirect:
        tx.tables = memory + format.ring_bytes
        tx.tables_iova = memory_iova + format.ring_bytes
    tx.headers = NULL
    if has(format.features, BIT_CSUM):
        tx.headers = memory + format.ring_bytes + format.table_bytes
        tx.headers_iova = memory_iova + format.ring_bytes + format.table_bytes
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
    uint16_t tail               # of the free ids; the ring learns it at the end


cdef inline void _release(TxRing *tx, uint32_t id, Store *store, Releases *run) noexcept:
    """The frame that `id` heads is done: its ids are free, its store held once less."""
    cdef uint16_t left = tx.in_flight[id].ids
    tx.in_flight[id].store = NULL
    tx.free_ids[run.tail & tx.id_mask] = id
    run.tail += 1
    while left > 1:
        id = tx.next[id]
        tx.free_ids[run.tail & tx.id_mask] = id
        run.tail += 1
        left -= 1
    if store != run.store:
        if run.count:
            drop_store(run.store, run.count)
        run.store, run.count = store, 0
    run.count += 1


cdef inline void _finish(TxRing *tx, const Releases *run) noexcept:
    tx.free_tail = run.tail
    if run.count:
        drop_store(run.store, run.count)


cdef inline uint32_t _oldest(const TxRing *tx, const Releases *run) noexcept nogil:
    """The first id in flight, where the device keeps order: ids come back as they went."""
    return tx.free_ids[<uint16_t>(run.tail - tx.size) & tx.id_mask]


cdef uint32_t _reclaim_split(TxRing *tx) noexcept:
    cdef SplitVq vq = tx.split  # a copy: its words stay in registers whatever is stored
    cdef uint16_t pending = split_pending(&vq), done = 0
    cdef uint32_t id
    cdef Store *store
    cdef Releases run
    run.store, run.count, run.tail = NULL, 0, tx.free_tail
    if pending > split_in_flight(&vq):
        _tx_lie(tx, BROKEN_INDEX, pending)
        return 0
    while done < pending:
        # With IN_ORDER a batch has one entry only, and the index says all there is to know (2.7.9).
        id = _oldest(tx, &run) if tx.format.in_order else <uint32_t>vq_used(&vq, done)
        if id >= tx.size:
            _tx_lie(tx, BROKEN_ID, id)
            break
        store = tx.in_flight[id].store
        if store == NULL:
            _tx_lie(tx, BROKEN_REPEAT, id)
            break
        _release(tx, id, store, &run)
        done += 1
    split_consume(&tx.split, done)
    _finish(tx, &run)
    return done


cdef inline uint32_t _used_packed(TxRing *tx, uint64_t word) noexcept:
    """The id in a used descriptor's word; the ring is broken if no frame in flight has it."""
    cdef uint32_t id = <uint16_t>(word >> 32)
    if id >= tx.size:
        _tx_lie(tx, BROKEN_ID, id)
    elif tx.in_flight[id].store == NULL:
        _tx_lie(tx, BROKEN_REPEAT, id)
    return id


cdef uint32_t _reclaim_packed(TxRing *tx) noexcept:
    cdef PackedVq vq = tx.packed  # a copy, as above
    cdef InFlight *frame
    cdef uint64_t word
    cdef uint32_t id, done = 0
    cdef Releases run
    run.store, run.count, run.tail = NULL, 0, tx.free_tail
    while vq.in_flight > vq.unpublished and packed_is_used(&vq, &word):
        id = _used_packed(tx, word)
        if tx.broken:
            break
        if vq.in_order:
            done += _reclaim_batch(tx, &vq, id, &run)
            continue
        frame = &tx.in_flight[id]
        packed_skip(&vq, frame.descriptors)
        _release(tx, id, frame.store, &run)
        done += 1
    tx.packed.used_next, tx.packed.used_flags = vq.used_next, vq.used_flags
    tx.packed.in_flight = vq.in_flight
    _finish(tx, &run)
    return done


cdef inline uint32_t _reclaim_batch(TxRing *tx, PackedVq *vq, uint32_t last,
                                    Releases *run) noexcept:
    """With IN_ORDER: the frames up to the one that a used descriptor names; how many (2.8.9)."""
    cdef InFlight *frame
    cdef uint32_t id, descriptors = 0, done = 0
    while True:
        id = _oldest(tx, run)
        frame = &tx.in_flight[id]
        descriptors += frame.descriptors
        _release(tx, id, frame.store, run)
        done += 1
        if id == last:
            break
    packed_skip(vq, descriptors)
    return done


cdef void tx_set_interrupts(TxRing *tx, bint wanted) noexcept nogil:
    """Ask for transmit interrupts or not: an experiment compares them with lazy reclaim."""
    if tx.format.packed:
        vq_set_interrupts(&tx.packed, wanted)
    else:
        vq_set_interrupts(&tx.split, wanted)
