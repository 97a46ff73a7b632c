"""What the two rings of a pair share: their format, their doorbells, the lies of a device.

Nothing the device writes is believed: ids, lengths, counts and indices are checked once, in
`_receive` and `_reclaim`, against private shadow state. A lie is a negative code; the queue is then
broken for good.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport eventfd_add, mmio_store16, mmio_store32
from ._pages cimport PagePool

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
    BIG_PAGES = 17              # for a frame of 65589 bytes and its header, 5.1.6.3.1
    HEADER_ROOM = 32            # for a virtio header, where one is not all zeroes

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
    uint8_t big                 # receive buffers are chains of BIG_PAGES
    uint8_t header_bytes        # of the virtio header, 5.1.6: 10, 12 or 20
    uint32_t alignment          # of the device area, for legacy devices
    uint64_t features           # negotiated
    size_t ring_bytes           # of the ring itself; behind it lie indirect tables, if any,
    size_t table_bytes          # and headers, if CSUM was negotiated


cdef inline void ring_bell(Bell *bell, uint16_t position) noexcept nogil:
    cdef uint32_t value = bell.value
    if bell.with_data:
        value |= <uint32_t>position << 16
    if bell.kind == BELL_MMIO16:
        if bell.with_data:
            mmio_store32(bell.target, value)
        else:
            mmio_store16(bell.target, bell.value)
    elif bell.kind == BELL_EVENTFD:
        eventfd_add(<int>bell.target)
    elif bell.kind == BELL_CALL:
        bell.due, bell.due_value = 1, value


cdef inline uint32_t round_up(uint32_t size) noexcept nogil:
    """The power of two from `size` on."""
    cdef uint32_t power = 1
    while power < size:
        power *= 2
    return power


cdef size_t table_bytes(uint32_t size, bint tables)
cdef object set_bell(Bell *bell, doorbell)
cdef uint8_t *ring_memory(PagePool pool, size_t offset, uint32_t size, size_t needed,
                          bint packed) except NULL
