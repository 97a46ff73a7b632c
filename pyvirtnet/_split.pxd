"""The split virtqueue (VIRTIO 1.3, 2.7): where the words lie, who writes them, in what order.

Knows neither pages nor frames. The device writes `used`; nothing read there is believed here:
the core checks it against its own shadow state.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport full_fence, observe, peek, poke, publish, read_once
from ._layout cimport AVAIL_NO_INTERRUPT, USED_NO_NOTIFY, Avail, Desc, Used

cdef struct SplitVq:
    Desc *desc              # driver writes, device reads
    Avail *avail            # driver writes, device reads
    Used *used              # device writes: untrusted
    const uint64_t *view    # used entries by index: the device's, or `inbox`
    uint64_t *inbox         # with IN_ORDER: private, one entry a buffer; NULL for what needs none
    uint16_t mask           # size - 1; size is a power of two (2.7)
    uint16_t avail_next     # private: index of the next available entry to fill
    uint16_t published      # private: what avail.idx says
    uint16_t used_next      # private: index of the next used entry to read
    uint16_t seen           # with IN_ORDER: entries in the inbox
    uint16_t next_id        # with IN_ORDER: what the next buffer to enter the inbox is
    uint16_t used_event     # with EVENT_IDX: what the driver's area says
    uint8_t event_idx


cdef inline uint16_t split_in_flight(const SplitVq *vq) noexcept nogil:
    """Buffers the device has and has not given back."""
    return <uint16_t>(vq.published - vq.used_next)


cdef inline uint16_t split_pending(const SplitVq *vq) noexcept nogil:
    """How many used entries wait, by the device's word. Pairs with the device's publication."""
    return <uint16_t>(observe(&vq.used.idx) - vq.used_next)


cdef inline uint64_t split_used(const SplitVq *vq, uint16_t ahead) noexcept nogil:
    """The used entry `ahead` of the next one, in one read: id in the low half, length above."""
    return read_once(&vq.view[<uint16_t>(vq.used_next + ahead) & vq.mask])


cdef inline void split_expose(SplitVq *vq, uint16_t head) noexcept nogil:
    """Fill the next available entry. An entry that already says so keeps its cache line clean."""
    cdef uint16_t *slot = &vq.avail.ring[vq.avail_next & vq.mask]
    if peek(slot) != head:
        poke(slot, head)
    vq.avail_next += 1


cdef inline uint16_t split_unpublished(const SplitVq *vq) noexcept nogil:
    return <uint16_t>(vq.avail_next - vq.published)


cdef inline uint16_t *_avail_event(const SplitVq *vq) noexcept nogil:
    """Behind the used entries, written by the device (2.7.10)."""
    return <uint16_t *>&vq.used.ring[<uint32_t>vq.mask + 1]


cdef inline bint split_publish(SplitVq *vq) noexcept nogil:
    """Show all exposed entries to the device; True if it wants a kick (2.7.13.3, 2.7.10)."""
    cdef uint16_t before = vq.published
    vq.published = vq.avail_next
    publish(&vq.avail.idx, vq.published)
    full_fence()  # avail.idx before what follows: pairs with the device's own, 2.7.13.4.1
    if vq.event_idx:  # does avail_event lie among the entries just published?
        return (<uint16_t>(vq.published - peek(_avail_event(vq)) - 1)
                < <uint16_t>(vq.published - before))
    return not (peek(&vq.used.flags) & USED_NO_NOTIFY)


cdef inline void split_consume(SplitVq *vq, uint16_t count) noexcept nogil:
    """The next `count` used entries have been dealt with."""
    vq.used_next += count
    vq.seen -= count if vq.inbox != NULL else 0
    if vq.event_idx and <uint16_t>(vq.used_next - vq.used_event) > 0x4000:
        split_no_interrupt(vq)


cdef inline void split_no_interrupt(SplitVq *vq) noexcept nogil:
    """With EVENT_IDX: the entry that interrupts is the one just dealt with, so none to come is.

    It has to be moved on now and then: indices come round after 65536 entries.
    """
    vq.used_event = vq.used_next - 1
    poke(&vq.avail.ring[<uint32_t>vq.mask + 1], vq.used_event)


cdef inline void split_set_interrupts(SplitVq *vq, bint wanted) noexcept nogil:
    """Ask for used-buffer interrupts or not; after asking, look at the ring again (2.7.7)."""
    if not vq.event_idx:
        poke(&vq.avail.flags, 0 if wanted else AVAIL_NO_INTERRUPT)
    elif wanted:
        vq.used_event = vq.used_next
        poke(&vq.avail.ring[<uint32_t>vq.mask + 1], vq.used_event)
    else:
        split_no_interrupt(vq)
    full_fence()  # what was asked before used.idx: pairs with the device's store of idx


cdef size_t split_bytes(uint32_t size, uint32_t alignment) noexcept nogil
cdef void split_init(SplitVq *vq, uint8_t *memory, uint32_t size, uint16_t start,
                     bint event_idx, uint32_t alignment) noexcept nogil
cdef size_t split_driver_offset(uint32_t size) noexcept nogil
cdef size_t split_device_offset(uint32_t size, uint32_t alignment) noexcept nogil
cdef int split_unroll(SplitVq *vq, uint16_t pending, uint32_t full,
                      uint32_t *culprit) noexcept nogil
