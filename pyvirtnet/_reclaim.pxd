"""Frames in flight: the ring they stand in, whose they are."""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._packed cimport PackedVq
from ._pages cimport Store
from ._ring cimport Bell, RingFormat
from ._split cimport SplitVq

cdef struct TxStats:
    uint64_t frames
    uint64_t bytes
    uint64_t full               # calls that could not take everything
    uint64_t kicks
    uint64_t reclaimed
    uint64_t lost               # the device still had them at a reset

cdef struct InFlight:
    Store *store                # NULL: this head is not in flight
    uint32_t length             # of the frame, bytes
    uint16_t ids                # that it has; split: one a descriptor
    uint16_t descriptors        # in its chain

cdef struct TxRing:
    SplitVq split               # the one or the other
    PackedVq packed
    RingFormat format
    uint32_t size
    uint32_t id_mask            # of free_ids
    uint8_t *tables             # indirect, one an id; NULL if there are none
    uint64_t tables_iova
    uint8_t *headers            # one an id, where CSUM was negotiated; of frames that need one
    uint64_t headers_iova
    InFlight *in_flight
    uint16_t *next              # private copy of the chains
    uint16_t *free_ids          # a ring: ids come back in the order of their completion, so that
    uint16_t free_head          # an orderly device sees the same available entries round by round
    uint16_t free_tail
    uint8_t plain               # headers of 12 bytes: what the fast path takes for granted
    uint32_t header_bytes       # of the virtio header
    int32_t lead                # from where one of 12 bytes begins to where this one does
    uint32_t max_frame          # bytes; frames over it are refused
    int8_t broken
    uint32_t lie
    Bell bell
    TxStats stats


cdef inline uint32_t tx_free(const TxRing *tx) noexcept nogil:
    """Free descriptors."""
    if tx.format.packed:
        return tx.size - tx.packed.in_flight
    return <uint16_t>(tx.free_tail - tx.free_head)


cdef bint tx_create(TxRing *tx, const RingFormat *format, uint32_t size, uint8_t *memory,
                    uint64_t memory_iova, uint16_t start, uint32_t max_frame) except False
cdef void tx_destroy(TxRing *tx) noexcept
cdef int tx_reclaim(TxRing *tx) noexcept
cdef void tx_set_interrupts(TxRing *tx, bint wanted) noexcept nogil
