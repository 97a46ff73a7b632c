"""The split virtqueue format: its parts laid out in memory (VIRTIO 1.3, 2.7)."""

from libc.string cimport memset


cdef size_t _round_up(size_t size, size_t unit) noexcept nogil:
    return (size + unit - 1) & ~(unit - 1)


cdef size_t _line_up(size_t size) noexcept nogil:
    return _round_up(size, 128)


cdef size_t split_driver_offset(uint32_t size) noexcept nogil:
    """The available ring, behind the descriptors, on cache lines of its own."""
    return _line_up(16 * <size_t>size)


cdef size_t split_device_offset(uint32_t size, uint32_t alignment) noexcept nogil:
    """The used ring, behind the available ring: its first entry begins a cache line.

    Legacy devices look for it at the next multiple of their `alignment`, else 0 (2.7.2).
    """
    if alignment:
        return _round_up(18 * <size_t>size + 6, alignment)
    return split_driver_offset(size) + _line_up(6 + 2 * <size_t>size) + 60


cdef size_t split_bytes(uint32_t size, uint32_t alignment) noexcept nogil:
    cdef size_t end = split_device_offset(size, alignment) + 6 + 8 * <size_t>size
    return _round_up(end, alignment) if alignment else _line_up(end)


cdef void split_init(SplitVq *vq, uint8_t *memory, uint32_t size, uint16_t start,
                     bint event_idx, uint32_t alignment) noexcept nogil:
    """An empty ring in `memory` (128-byte aligned), both indices at `start`, interrupts off."""
    memset(memory, 0, split_bytes(size, alignment))
    memset(vq, 0, sizeof(SplitVq))
    vq.desc = <Desc *>memory
    vq.avail = <Avail *>(memory + split_driver_offset(size))
    vq.used = <Used *>(memory + split_device_offset(size, alignment))
    vq.view = <const uint64_t *>vq.used.ring
    vq.mask = <uint16_t>(size - 1)
    vq.avail_next = vq.published = vq.used_next = start
    vq.event_idx = event_idx
    poke(&vq.avail.idx, start)
    poke(&vq.used.idx, start)
    split_set_interrupts(vq, False)


cdef int split_unroll(SplitVq *vq, uint16_t pending, uint32_t full,
                      uint32_t *culprit) noexcept nogil:
    """With IN_ORDER: one private entry for each of `pending` buffers; 0 if an id is out of order.

    A batch has one used entry, in its first place, that names its last buffer; those before it
    count as written in full (2.7.9). Buffers are single descriptors, whose ids go round in order.
    """
    cdef uint32_t seen = vq.seen, at = vq.used_next + seen, mask = vq.mask, next_id = vq.next_id
    cdef uint64_t *inbox = vq.inbox
    cdef uint64_t entry
    cdef uint32_t id, batch
    while seen < pending:
        entry = read_once(&vq.used.ring[at & mask])
        id = <uint32_t>entry
        batch = ((id - next_id) & mask) + 1
        if id > mask or batch > pending - seen:
            vq.seen, vq.next_id, culprit[0] = seen, next_id, id
            return 0
        seen += batch
        while batch > 1:
            batch -= 1
            inbox[at & mask] = <uint64_t>full << 32 | next_id
            at += 1
            next_id = (next_id + 1) & mask
        inbox[at & mask] = entry
        at += 1
        next_id = (id + 1) & mask
    vq.seen, vq.next_id = seen, next_id
    return 1
