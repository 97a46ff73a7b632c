"""Frames put into a transmit ring, published together, taken back if a call fails."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ._layout cimport DESC_INDIRECT, DESC_NEXT, Desc
from ._packed cimport packed_expose, packed_rewind
from ._pages cimport HEADER_BYTES, Frag, Store, drop_store, page_iova
from ._reclaim cimport InFlight, TxRing, tx_free
from ._ring cimport TABLE_BYTES, TABLE_ENTRIES, ring_bell
from ._split cimport SplitVq, split_expose
from ._virtqueue cimport Vq, vq_keep, vq_kick_data, vq_publish, vq_unpublished

cdef enum:
    INDIRECT_FROM = 3           # pieces of a frame from which on a table pays


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
    if tx_free(tx) < (1 if indirect else pieces):
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


cdef inline uint64_t _piece(const TxRing *tx, const Store *store, uint32_t frame, uint32_t i,
                            uint32_t *length) noexcept nogil:
    """Where piece `i` of a frame lies for the device, and how long it is."""
    cdef Frag *frag
    if i == 0:
        length[0] = tx.header_bytes + min(store.lengths[frame], store.head_room)
        return store.header_iova + tx.lead + <uint64_t>frame * store.stride
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
        addr = _piece(tx, store, frame, i, &length)
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
        addr = _piece(tx, store, frame, i, &length)
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
        addr = _piece(tx, store, frame, i, &length)
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
    frame is too long, or all `count` are exposed. The caller holds the store for each.

    The fast path: what it leaves is for `tx_put`.
    """
    if not tx.plain:
        return 0
    count = min(count, tx_free(tx))
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
        ring_bell(&tx.bell, vq_kick_data(vq))
