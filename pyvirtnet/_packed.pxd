"""The packed virtqueue (VIRTIO 1.3, 2.8): one ring of descriptors that both sides write.

Knows neither pages nor frames. What the device marked used is read once, as one word, and not
believed here: the core checks it against its own shadow state.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport full_fence, observe64, peek32, poke32, poke64, publish64
from ._layout cimport (
    EVENT_DESC,
    EVENT_DISABLE,
    EVENT_ENABLE,
    PACKED_AVAIL,
    PACKED_FLAGS_SHIFT,
    PACKED_ID_SHIFT,
    PACKED_USED,
    PackedDesc,
)

cdef struct PackedVq:
    PackedDesc *desc        # both sides write
    uint32_t *driver_event  # our wish for interrupts: driver writes, device reads
    uint32_t *device_event  # its wish for kicks: device writes: untrusted
    uint64_t *inbox         # private: used entries, id in the low half, length above; a ring
    uint64_t avail_flags    # makes a word available: AVAIL in one lap, USED in the next
    uint64_t first_word     # of the first unpublished descriptor, with flags that make it available
    uint16_t size           # any, up to 32768
    uint16_t first          # position of the first unpublished descriptor
    uint16_t avail_next     # position of the next descriptor to fill
    uint16_t used_next      # position of the next descriptor that can become used
    uint16_t used_flags     # what marks it used: both in one lap, none in the next
    uint16_t unpublished    # descriptors filled and not shown
    uint16_t in_flight      # descriptors filled and not consumed
    uint16_t inbox_next     # index of its first entry, counted from the beginning
    uint16_t inbox_mask     # its size - 1; that is a power of two
    uint16_t seen           # entries in the inbox
    uint16_t next_id        # with IN_ORDER: what the next buffer to enter the inbox is
    uint8_t event_idx
    uint8_t in_order
    uint8_t old_events      # the device may forget to move its event: kick unless it lies ahead

cdef enum:
    BOTH = PACKED_AVAIL | PACKED_USED


cdef inline bint packed_wrap(const PackedVq *vq) noexcept nogil:
    """The driver's wrap counter."""
    return <uint16_t>(vq.avail_flags >> PACKED_FLAGS_SHIFT) == PACKED_AVAIL


cdef inline uint64_t _hidden(uint64_t avail_flags) noexcept nogil:
    """Flags of a descriptor that is not available in this lap: as used in the one before."""
    return (<uint64_t>BOTH << PACKED_FLAGS_SHIFT
            if avail_flags >> PACKED_FLAGS_SHIFT != PACKED_AVAIL else 0)


cdef inline void packed_expose(PackedVq *vq, uint16_t id, uint64_t addr, uint32_t length,
                               uint16_t flags) noexcept nogil:
    """Fill the next descriptor. The device sees none of them before the first is published."""
    cdef PackedDesc *desc = &vq.desc[vq.avail_next]
    cdef uint64_t word = (length | <uint64_t>id << PACKED_ID_SHIFT
                          | <uint64_t>flags << PACKED_FLAGS_SHIFT)
    desc.addr = addr
    if vq.unpublished == 0:
        vq.first, vq.first_word = vq.avail_next, word | vq.avail_flags
        word |= _hidden(vq.avail_flags)
    else:
        word |= vq.avail_flags
    poke64(&desc.word, word)
    vq.unpublished += 1
    vq.in_flight += 1
    vq.avail_next += 1
    if vq.avail_next == vq.size:
        vq.avail_next = 0
        vq.avail_flags ^= <uint64_t>BOTH << PACKED_FLAGS_SHIFT


cdef inline bint packed_publish(PackedVq *vq) noexcept nogil:
    """Show all filled descriptors to the device; True if it wants a kick (2.8.20, 2.8.10)."""
    cdef int32_t recent = vq.unpublished, since
    cdef uint32_t event
    publish64(&vq.desc[vq.first].word, vq.first_word)
    vq.unpublished = 0
    full_fence()  # the descriptors before its wish: pairs with the device's own, 2.8.20.2
    event = peek32(vq.device_event)
    if event >> 16 & 3 != EVENT_DESC or not vq.event_idx:
        return event >> 16 & 3 != EVENT_DISABLE
    since = <int32_t>vq.avail_next - (event & 0x7FFF)  # descriptors filled since the event
    if (event >> 15 & 1) != packed_wrap(vq):
        since += vq.size  # it means the lap before
    if since <= 0:
        since += 2 * vq.size
    if vq.old_events:
        recent = vq.size + vq.in_flight
    return since <= recent


cdef inline bint packed_is_used(const PackedVq *vq, uint64_t *word) noexcept nogil:
    """Has the device used the next descriptor? Its word, read once."""
    word[0] = observe64(&vq.desc[vq.used_next].word)
    return <uint16_t>(word[0] >> PACKED_FLAGS_SHIFT) & BOTH == vq.used_flags


cdef inline uint64_t packed_used(const PackedVq *vq, uint16_t ahead) noexcept nogil:
    """The entry `ahead` of the next one in the inbox: id in the low half, length above."""
    return vq.inbox[<uint16_t>(vq.inbox_next + ahead) & vq.inbox_mask]


cdef inline void packed_skip(PackedVq *vq, uint16_t count) noexcept nogil:
    """The next `count` descriptors, of used buffers, are free again."""
    cdef uint32_t position = <uint32_t>vq.used_next + count
    vq.in_flight -= count
    if position >= vq.size:
        position -= vq.size
        vq.used_flags ^= BOTH
    vq.used_next = position


cdef inline void packed_consume(PackedVq *vq, uint16_t count) noexcept nogil:
    """The next `count` entries of the inbox, of one descriptor each, have been dealt with."""
    vq.seen -= count
    vq.inbox_next += count
    packed_skip(vq, count)


cdef inline void packed_set_interrupts(PackedVq *vq, bint wanted) noexcept nogil:
    """Ask for used-buffer interrupts or not; after asking, look at the ring again (2.8.21)."""
    poke32(vq.driver_event, (EVENT_ENABLE if wanted else EVENT_DISABLE) << 16)
    full_fence()  # what was asked before the descriptors: pairs with the device's own


cdef size_t packed_bytes(uint32_t size) noexcept nogil
cdef size_t packed_driver_offset(uint32_t size) noexcept nogil
cdef size_t packed_device_offset(uint32_t size) noexcept nogil
cdef void packed_init(PackedVq *vq, uint8_t *memory, uint32_t size, uint16_t start, bint event_idx,
                      bint in_order) noexcept nogil
cdef int packed_scan(PackedVq *vq, uint32_t full, uint32_t *culprit) noexcept nogil
cdef void packed_rewind(PackedVq *vq) noexcept nogil
