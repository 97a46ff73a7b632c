"""A virtqueue of either format under one set of names; what uses them is compiled once for each."""

from libc.stdint cimport uint16_t, uint64_t

from ._packed cimport (
    PackedVq,
    packed_consume,
    packed_publish,
    packed_set_interrupts,
    packed_used,
    packed_wrap,
)
from ._split cimport (
    SplitVq,
    split_consume,
    split_publish,
    split_set_interrupts,
    split_unpublished,
    split_used,
)

ctypedef fused Vq:
    SplitVq
    PackedVq


cdef inline uint64_t vq_used(const Vq *vq, uint16_t ahead) noexcept nogil:
    """The used entry `ahead` of the next one, in one read: id in the low half, length above."""
    if Vq is SplitVq:
        return split_used(vq, ahead)
    else:
        return packed_used(vq, ahead)


cdef inline void vq_consume(Vq *vq, uint16_t count) noexcept nogil:
    """The next `count` used entries, of buffers of one descriptor, have been dealt with."""
    if Vq is SplitVq:
        split_consume(vq, count)
    else:
        packed_consume(vq, count)


cdef inline uint16_t vq_unpublished(const Vq *vq) noexcept nogil:
    """What was exposed since the last publication: buffers if split, descriptors if packed."""
    if Vq is SplitVq:
        return split_unpublished(vq)
    else:
        return vq.unpublished


cdef inline bint vq_publish(Vq *vq) noexcept nogil:
    """Show the device all that was exposed; True if it wants a kick."""
    if Vq is SplitVq:
        return split_publish(vq)
    else:
        return packed_publish(vq)


cdef inline void vq_set_interrupts(Vq *vq, bint wanted) noexcept nogil:
    """Ask for used-buffer interrupts or not; after asking, look at the ring again."""
    if Vq is SplitVq:
        split_set_interrupts(vq, wanted)
    else:
        packed_set_interrupts(vq, wanted)


cdef inline void vq_keep(Vq *vq, const Vq *copy) noexcept nogil:
    """After a loop that exposed buffers on a copy in registers: what has changed."""
    if Vq is SplitVq:
        vq.avail_next = copy.avail_next
    else:
        vq[0] = copy[0]


cdef inline uint16_t vq_kick_data(const Vq *vq) noexcept nogil:
    """Where the driver is, for NOTIFICATION_DATA (2.9): offset, and wrap counter on top."""
    if Vq is SplitVq:
        return vq.avail_next
    else:
        return vq.avail_next | (0x8000 if packed_wrap(vq) else 0)
