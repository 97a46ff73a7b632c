"""The packed virtqueue format: its parts laid out, used descriptors collected (VIRTIO 1.3, 2.8)."""

from libc.string cimport memset


cdef size_t _line_up(size_t size) noexcept nogil:
    return (size + 127) & ~<size_t>127


cdef size_t packed_driver_offset(uint32_t size) noexcept nogil:
    """The driver's event suppression, behind the descriptors, on cache lines of its own."""
    return _line_up(16 * <size_t>size)


cdef size_t packed_device_offset(uint32_t size) noexcept nogil:
    """The device's event suppression, on cache lines of its own."""
    return packed_driver_offset(size) + 128


cdef size_t packed_bytes(uint32_t size) noexcept nogil:
    return packed_device_offset(size) + 128


cdef void packed_init(PackedVq *vq, uint8_t *memory, uint32_t size, uint16_t start, bint event_idx,
                      bint in_order) noexcept nogil:
    """An empty ring in `memory` (128-byte aligned), interrupts off.

    Both sides begin `start` descriptors after the beginning of the first lap. Zeroes are available
    in no lap.
    """
    memset(memory, 0, packed_bytes(size))
    memset(vq, 0, sizeof(PackedVq))
    vq.desc = <PackedDesc *>memory
    vq.driver_event = <uint32_t *>(memory + packed_driver_offset(size))
    vq.device_event = <uint32_t *>(memory + packed_device_offset(size))
    vq.size = size
    vq.avail_next = vq.used_next = start % size
    vq.avail_flags = (
        <uint64_t>(PACKED_USED if start // size & 1 else PACKED_AVAIL) << PACKED_FLAGS_SHIFT)
    vq.used_flags = 0 if start // size & 1 else BOTH
    vq.event_idx, vq.in_order = event_idx, in_order
    packed_set_interrupts(vq, False)


cdef int packed_scan(PackedVq *vq, uint32_t full, uint32_t *culprit) noexcept nogil:
    """Collect used descriptors, of buffers of one descriptor each, in the inbox; how many it has.

    -1 if an id is out of order, with IN_ORDER.
    """
    cdef uint32_t position = <uint32_t>vq.used_next + vq.seen, size = vq.size
    cdef uint32_t seen = vq.seen, most = <uint16_t>(vq.in_flight - vq.unpublished)
    cdef uint32_t place = vq.inbox_next + seen, mask = vq.inbox_mask
    cdef uint64_t used = <uint64_t>vq.used_flags << PACKED_FLAGS_SHIFT
    cdef uint64_t both = <uint64_t>BOTH << PACKED_FLAGS_SHIFT
    cdef PackedDesc *desc = vq.desc
    cdef uint64_t *inbox = vq.inbox
    cdef uint64_t word
    if vq.in_order:
        return _scan_in_order(vq, full, culprit)
    if position >= size:
        position -= size
        used ^= both
    while seen < most:
        word = observe64(&desc[position].word)
        if word & both != used:
            break
        inbox[place & mask] = word << 32 | <uint16_t>(word >> PACKED_ID_SHIFT)
        place += 1
        seen += 1
        position += 1
        if position == size:
            position = 0
            used ^= both
    vq.seen = seen
    return seen


cdef int _scan_in_order(PackedVq *vq, uint32_t full, uint32_t *culprit) noexcept nogil:
    """A used descriptor may stand for a batch that ends with the buffer it names; those before
    it count as written in full (2.8.9). Ids go round in order."""
    cdef uint32_t position = <uint32_t>vq.used_next + vq.seen, size = vq.size
    cdef uint32_t seen = vq.seen, most = <uint16_t>(vq.in_flight - vq.unpublished)
    cdef uint32_t place = vq.inbox_next + seen, mask = vq.inbox_mask, next_id = vq.next_id
    cdef uint64_t used = <uint64_t>vq.used_flags << PACKED_FLAGS_SHIFT
    cdef uint64_t both = <uint64_t>BOTH << PACKED_FLAGS_SHIFT
    cdef uint64_t *inbox = vq.inbox
    cdef uint64_t word
    cdef uint32_t batch, id
    if position >= size:
        position -= size
        used ^= both
    while seen < most:
        word = observe64(&vq.desc[position].word)
        if word & both != used:
            break
        id = <uint16_t>(word >> PACKED_ID_SHIFT)
        batch = id - next_id + 1 if id >= next_id else id + size - next_id + 1
        if id >= size or batch > most - seen:
            vq.seen, vq.next_id, culprit[0] = seen, next_id, id
            return -1
        seen += batch
        position += batch
        if position >= size:
            position -= size
            used ^= both
        while batch > 1:
            batch -= 1
            inbox[place & mask] = <uint64_t>full << 32 | next_id
            place += 1
            next_id = next_id + 1 if next_id + 1 < size else 0
        inbox[place & mask] = word << 32 | id
        place += 1
        next_id = id + 1 if id + 1 < size else 0
    vq.seen, vq.next_id = seen, next_id
    return seen


cdef void packed_rewind(PackedVq *vq) noexcept nogil:
    """Take back every descriptor since the last publication, and hide it."""
    while vq.unpublished:
        if vq.avail_next == 0:
            vq.avail_next = vq.size
            vq.avail_flags ^= <uint64_t>BOTH << PACKED_FLAGS_SHIFT
        vq.avail_next -= 1
        vq.unpublished -= 1
        vq.in_flight -= 1
        poke64(&vq.desc[vq.avail_next].word, _hidden(vq.avail_flags))
