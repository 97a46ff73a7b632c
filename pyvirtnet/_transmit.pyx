"""Frames put into a transmit ring, published together, taken back if a call fails."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._barrier cimport peek32
from ._layout cimport DESC_INDIRECT, DESC_NEXT, Desc, Header
from ._offload cimport MOST_SEGMENTED, REFUSED_SIZE, header_to_send
from ._packed cimport packed_expose, packed_rewind
from ._pages cimport HEADER_BYTES, Frag, Store, drop_store, heads, page_iova
from ._reclaim cimport InFlight, TxRing, tx_free
from ._ring cimport HEADER_ROOM, TABLE_BYTES, TABLE_ENTRIES, ring_bell
from ._split cimport SplitVq, split_expose
from ._virtqueue cimport Vq, vq_keep, vq_kick_data, vq_publish, vq_unpublished

cdef enum:
    INDIRECT_FROM = 3           # pieces of a frame from which on a table pays


cdef inline uint16_t _next_id(const TxRing *tx) noexcept nogil:
    return tx.free_ids[tx.free_head & tx.id_mask]


cdef inline void _fly(TxRing *tx, uint16_t id, Store *store, uint32_t length) noexcept nogil:
    """Id `id` stands for a frame of `store` from now on."""
    tx.in_flight[id].store, tx.in_flight[id].length = store, length


cdef inline uint16_t _take_id(TxRing *tx, uint32_t ids, uint32_t descriptors) noexcept nogil:
    """The next free id, for a frame that takes so many ids and descriptors."""
    cdef uint16_t id = _next_id(tx)
    tx.free_head += 1
    tx.in_flight[id].ids, tx.in_flight[id].descriptors = ids, descriptors
    return id


cdef inline void _describe(Desc *desc, uint64_t addr, uint32_t length, uint16_t flags,
                           uint16_t next) noexcept nogil:
    desc.addr, desc.len, desc.flags, desc.next = addr, length, flags, next


cdef struct Pieces:             # of a frame, in their order
    const Store *store
    uint32_t count
    uint32_t leading            # before the fragments: header and head, together or apart
    uint64_t[2] addr
    uint32_t[2] length
    uint32_t frag               # the first fragment


cdef int tx_put(TxRing *tx, Store *store, uint32_t frame) noexcept nogil:
    """Expose one frame of a store, unpublished; find the ring full; or refuse what is no frame.

    Header and head are adjacent, one piece, unless the header is not all zeroes: then it is a piece
    of its own. Each fragment is one more. A piece is a descriptor, of the ring or of an indirect
    table. The caller holds the store once for it.
    """
    cdef Header header
    cdef Pieces pieces
    cdef uint32_t most = min(<uint32_t>TABLE_ENTRIES, tx.size), limit = tx.max_frame
    cdef uint32_t length = peek32(&store.lengths[frame])  # another thread may set it meanwhile
    cdef int own = 0
    cdef bint indirect
    heads(store)  # are in place from now on
    if store.headers != NULL:
        memset(&header, 0, sizeof(Header))
        own = header_to_send(store, frame, length, tx.format.features, &header.net)
        if own < 0:
            return own
        if own and header.net.gso_type:
            limit = MOST_SEGMENTED
    if length > limit:
        return REFUSED_SIZE
    _cut(tx, store, frame, length, own, &pieces)
    indirect = tx.tables != NULL and INDIRECT_FROM <= pieces.count <= most
    if tx_free(tx) < (1 if indirect else pieces.count):
        return PUT_FULL
    if own:
        memcpy(tx.headers + <size_t>_next_id(tx) * HEADER_ROOM, &header, sizeof(Header))
    _fly(tx, _next_id(tx), store, length)
    if indirect:
        _put_indirect(tx, &pieces)
    elif tx.format.packed:
        _put_packed(tx, &pieces)
    else:
        _put_split(tx, &pieces)
    tx.stats.frames += 1
    tx.stats.bytes += length
    return PUT_TAKEN


cdef inline void _cut(const TxRing *tx, const Store *store, uint32_t frame, uint32_t length,
                      bint own, Pieces *pieces) noexcept nogil:
    """The pieces of a frame of `length` bytes for the next free id; its header is its `own`, or
    zero."""
    cdef uint64_t head = store.header_iova + <uint64_t>frame * store.stride
    cdef uint32_t linear = min(length, store.head_room)
    pieces.store = store
    if own:
        pieces.leading = 2
        pieces.addr[0] = tx.headers_iova + <uint64_t>_next_id(tx) * HEADER_ROOM
        pieces.length[0] = tx.header_bytes
        pieces.addr[1], pieces.length[1] = head + HEADER_BYTES, linear
    else:
        pieces.leading = 1
        pieces.addr[0], pieces.length[0] = head + tx.lead, tx.header_bytes + linear
    pieces.count = pieces.leading
    if store.begin != NULL:
        pieces.frag = store.begin[frame]
        pieces.count += store.begin[frame + 1] - pieces.frag


cdef inline uint64_t _piece(const Pieces *pieces, uint32_t i, uint32_t *length) noexcept nogil:
    """Where piece `i` of a frame lies for the device, and how long it is."""
    cdef const Frag *frag
    if i < pieces.leading:
        length[0] = pieces.length[i]
        return pieces.addr[i]
    frag = &pieces.store.frags[pieces.frag + i - pieces.leading]
    length[0] = frag.length
    return page_iova(pieces.store.pool, frag.page) + frag.offset


cdef void _put_split(TxRing *tx, const Pieces *pieces) noexcept nogil:
    """One descriptor a piece, chained."""
    cdef uint16_t head = _take_id(tx, pieces.count, pieces.count), id = head, next
    cdef uint32_t i, length
    cdef uint64_t addr
    for i in range(pieces.count):
        addr = _piece(pieces, i, &length)
        if i + 1 < pieces.count:
            next = _next_id(tx)
            tx.free_head += 1
            _describe(&tx.split.desc[id], addr, length, DESC_NEXT, next)
            tx.next[id] = id = next
        else:
            _describe(&tx.split.desc[id], addr, length, 0, 0)
    split_expose(&tx.split, head)


cdef void _put_packed(TxRing *tx, const Pieces *pieces) noexcept nogil:
    """One descriptor a piece, one behind the other, all with the frame's id."""
    cdef uint16_t id = _take_id(tx, 1, pieces.count)
    cdef uint32_t i, length
    cdef uint64_t addr
    for i in range(pieces.count):
        addr = _piece(pieces, i, &length)
        packed_expose(&tx.packed, id, addr, length, DESC_NEXT if i + 1 < pieces.count else 0)


cdef void _put_indirect(TxRing *tx, const Pieces *pieces) noexcept nogil:
    """All pieces in a table, and one descriptor for it (2.7.5.3, 2.8.8)."""
    cdef uint16_t id = _take_id(tx, 1, 1)
    cdef Desc *table = <Desc *>(tx.tables + <size_t>id * TABLE_BYTES)
    cdef uint64_t table_iova = tx.tables_iova + <uint64_t>id * TABLE_BYTES, addr
    cdef uint32_t i, length
    cdef bint more
    for i in range(pieces.count):
        addr = _piece(pieces, i, &length)
        more = i + 1 < pieces.count and not tx.format.packed  # 2.8.8: entries follow one another
        _describe(&table[i], addr, length, DESC_NEXT if more else 0, i + 1 if more else 0)
    if tx.format.packed:
        packed_expose(&tx.packed, id, table_iova, 16 * pieces.count, DESC_INDIRECT)
    else:
        _describe(&tx.split.desc[id], table_iova, 16 * pieces.count, DESC_INDIRECT, 0)
        split_expose(&tx.split, id)


cdef uint32_t tx_put_linear(TxRing *tx, Store *store, Py_ssize_t start, Py_ssize_t step,
                            const uint32_t *index, uint32_t count) noexcept nogil:
    """Expose frames without fragments, one descriptor each: how many, until the ring is full, a
    frame is too long, or all `count` are exposed. The caller holds the store for each.

    The fast path: what it leaves is for `tx_put`.
    """
    if not tx.plain:
        return 0
    heads(store)  # are in place from now on
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
        length = lengths[frame]  # once: another thread may set it meanwhile
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
