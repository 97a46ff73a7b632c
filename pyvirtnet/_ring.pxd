"""The core: pages posted and merged into frames; frames sent and reclaimed on the next send.

Nothing the device writes is believed: ids, lengths, counts and indices are checked once, here,
against private shadow state. A lie is a negative code; the queue is then broken for good.
"""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._packed cimport PackedVq
from ._pages cimport Pool, Store
from ._split cimport SplitVq

cdef enum:
    BROKEN_INDEX = -1           # used index ahead of what is in flight
    BROKEN_ID = -2              # id outside the ring
    BROKEN_REPEAT = -3          # id that is not in flight
    BROKEN_LENGTH = -4          # shorter than the header or longer than the buffer
    BROKEN_COUNT = -5           # num_buffers 0, or more than were delivered with it
    BROKEN_ORDER = -6           # with IN_ORDER: an id that was not the turn of

cdef enum:
    TABLE_ENTRIES = 18          # of an indirect table: the head and 17 pages, 65535 bytes
    TABLE_BYTES = 16 * TABLE_ENTRIES

cdef enum:
    PUT_FULL = 0
    PUT_TAKEN = 1

cdef enum:
    BELL_MMIO16 = 0
    BELL_EVENTFD = 1
    BELL_CALL = 2               # the Python border calls, once the books are kept
    BELL_NONE = 3               # the device is gone

cdef struct Bell:
    uint64_t target             # address or file descriptor
    uint16_t value
    uint8_t kind
    uint8_t due                 # a call is due (BELL_CALL), with
    uint32_t due_value
    uint8_t with_data           # NOTIFICATION_DATA: the value says where the driver is

cdef struct RingFormat:
    uint8_t packed
    uint8_t in_order
    uint8_t event_idx
    uint8_t indirect
    size_t ring_bytes           # of the ring itself; indirect tables lie behind it

cdef struct RxStats:
    uint64_t frames
    uint64_t bytes
    uint64_t buffers
    uint64_t runts              # dropped: shorter than an Ethernet header
    uint64_t no_pages           # calls that found descriptors without a page to post
    uint64_t no_slots           # calls that found no free head slot
    uint64_t lost               # delivered frames that a reset threw away
    uint64_t kicks

cdef struct TxStats:
    uint64_t frames
    uint64_t bytes
    uint64_t full               # calls that could not take everything
    uint64_t kicks
    uint64_t reclaimed
    uint64_t lost               # the device still had them at a reset

cdef struct RxRing:
    SplitVq split               # the one or the other
    PackedVq packed
    RingFormat format
    uint32_t size
    uint32_t id_mask            # of page_of
    Pool *pool
    uint32_t *page_of           # the page in each descriptor; NO_PAGE while it has none
    uint64_t *exposed           # when each descriptor was exposed; the device has it if that was
    uint64_t exposures          # before the last publication. Both count exposures since the
    uint64_t published          # beginning
    uint16_t *hungry            # a ring: descriptors without a page, in the order to be exposed in
    uint32_t hungry_next
    uint32_t nhungry
    uint64_t *claimed           # scratch: checked used entries of one merged frame
    uint64_t *inbox             # used entries as they were read, where the format needs it
    uint32_t threshold          # exposed buffers that are worth a publication
    uint8_t mergeable
    int8_t broken               # 0 or a BROKEN_ code
    uint8_t disordered          # broken as soon as what came before the lie is received
    uint32_t lie                # the value that broke it
    Bell bell
    RxStats stats

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
    InFlight *in_flight
    uint16_t *next              # private copy of the chains
    uint16_t *free_ids          # a ring: ids come back in the order of their completion, so that
    uint16_t free_head          # an orderly device sees the same available entries round by round
    uint16_t free_tail
    uint32_t max_frame          # bytes; frames over it are refused
    int8_t broken
    uint32_t lie
    Bell bell
    TxStats stats


cdef bint rx_create(RxRing *rx, Pool *pool, const RingFormat *format, uint32_t size,
                    uint8_t *memory, uint16_t start, bint mergeable) except False
cdef void rx_destroy(RxRing *rx) noexcept nogil
cdef int rx_pending(RxRing *rx) noexcept nogil
cdef uint32_t rx_waiting(RxRing *rx) noexcept nogil
cdef int rx_receive(RxRing *rx, Store *store, uint32_t want, uint32_t pending) noexcept nogil
cdef void rx_refill(RxRing *rx, bint idle) noexcept nogil
cdef void rx_set_interrupts(RxRing *rx, bint wanted) noexcept nogil

cdef bint tx_create(TxRing *tx, const RingFormat *format, uint32_t size, uint8_t *memory,
                    uint64_t memory_iova, uint16_t start, uint32_t max_frame) except False
cdef void tx_destroy(TxRing *tx) noexcept
cdef int tx_reclaim(TxRing *tx) noexcept
cdef int tx_put(TxRing *tx, Store *store, uint32_t frame) noexcept nogil
cdef uint32_t tx_put_linear(TxRing *tx, Store *store, Py_ssize_t start, Py_ssize_t step,
                            const uint32_t *index, uint32_t count) noexcept nogil
cdef void tx_rewind(TxRing *tx) noexcept
cdef void tx_publish(TxRing *tx) noexcept nogil
