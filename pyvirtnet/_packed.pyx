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
    vq.avail_flags = PACKED_USED if start // size & 1 else PACKED_AVAIL
    vq.used_flags = 0 if start // size & 1 else BOTH
    vq.event_idx, vq.in_order = event_idx, in_order
    packed_set_interrupts(vq, False)


cdef int packed_scan(PackedVq *vq, uint32_t full, uint32_t *culprit) noexcept nogil:
    """Collect used descriptors, of buffers of one descriptor each, in the inbox; how many it has.

    With IN_ORDER one of them may stand for a batch that ends with the buffer it names; those
    before count as written in full (2.8.9). -1 if the id is out of order.
    """
    cdef uint32_t position = <uint32_t>vq.used_next + vq.seen, batch, id
    cdef uint16_t flags = vq.used_flags, most = vq.in_flight - vq.unpublished
    cdef uint64_t word
    if position >= vq.size:
        position -= vq.size
        flags ^= BOTH
    while vq.seen < most:
        word = observe64(&vq.desc[position].word)
        if <uint16_t>(word >> PACKED_FLAGS_SHIFT) & BOTH != flags:
            break
        id, batch = <uint16_t>(word >> PACKED_ID_SHIFT), 1
        if vq.in_order:
            batch = (id + vq.size - vq.next_id) % vq.size + 1
            if id >= vq.size or batch > <uint32_t>(most - vq.seen):
                culprit[0] = id
                return -1
        while batch:
            batch -= 1
            if batch:
                vq.inbox[position] = <uint64_t>full << 32 | vq.next_id
            else:
                vq.inbox[position] = <uint64_t><uint32_t>word << 32 | id
            vq.next_id = vq.next_id + 1 if vq.next_id + 1 < vq.size else 0
            vq.seen += 1
            position += 1
            if position == vq.size:
                position = 0
                flags ^= BOTH
    return vq.seen


cdef void packed_rewind(PackedVq *vq) noexcept nogil:
    """Take back every descriptor since the last publication, and hide it."""
    while vq.unpublished:
        if vq.avail_next == 0:
            vq.avail_next = vq.size
            vq.avail_flags ^= BOTH
        vq.avail_next -= 1
        vq.unpublished -= 1
        vq.in_flight -= 1
        poke64(&vq.desc[vq.avail_next].word,
               <uint64_t>_hidden(vq.avail_flags) << PACKED_FLAGS_SHIFT)
