"""A ring's place in memory, and its doorbell."""

from libc.stdint cimport uint8_t, uint32_t

from ._packed cimport packed_bytes, packed_device_offset, packed_driver_offset
from ._pages cimport PagePool
from ._split cimport split_bytes, split_device_offset, split_driver_offset


def ring_bytes(uint32_t size, *, bint packed=False, bint tables=False, bint headers=False,
               uint32_t alignment=0):
    """Bytes of a virtqueue of `size` descriptors, with an indirect table, a header for each.

    `alignment` is that of the device area and of the whole, for legacy devices.
    """
    cdef size_t unit = alignment or 128
    cdef size_t ring = packed_bytes(size) if packed else split_bytes(size, alignment)
    ring = _align(ring, unit) + table_bytes(size, tables)
    return _align(ring + (<size_t>size * HEADER_ROOM if headers else 0), unit)


def ring_parts(uint32_t size, *, bint packed=False, uint32_t alignment=0):
    """Offsets of descriptor table, driver area and device area in a ring's memory."""
    if packed:
        return 0, packed_driver_offset(size), packed_device_offset(size)
    return 0, split_driver_offset(size), split_device_offset(size, alignment)


cdef size_t _align(size_t size, size_t unit):
    return (size + unit - 1) & ~(unit - 1)


cdef size_t table_bytes(uint32_t size, bint tables):
    return _align(<size_t>size * TABLE_BYTES, 128) if tables else 0


cdef object set_bell(Bell *bell, doorbell):
    """Fill the C doorbell; returns the callable of one that is a call."""
    kind = doorbell.kind
    bell.value, bell.due, bell.with_data = doorbell.value, 0, doorbell.with_data
    if kind == "call":
        bell.kind = BELL_CALL
        return doorbell.target
    bell.kind = BELL_MMIO16 if kind == "mmio16" else BELL_EVENTFD
    bell.target = doorbell.target
    return None


cdef uint8_t *ring_memory(PagePool pool, size_t offset, uint32_t size, size_t needed,
                          bint packed) except NULL:
    """Memory for a ring in front of the pool's slots and pages, in the same region."""
    if not 2 <= size <= 32768 or (size & (size - 1) and not packed):
        raise ValueError(f"a ring has 2 to 32768 entries, a split one a power of two: not {size}")
    if offset % 128 or offset + needed > pool.offset:
        raise ValueError(f"there is no room for a ring at offset {offset}")
    return <uint8_t *><size_t>pool.region.address + offset
