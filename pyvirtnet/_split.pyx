"""The split virtqueue format: its parts laid out in memory (VIRTIO 1.3, 2.7)."""

from libc.string cimport memset


cdef size_t _line_up(size_t size) noexcept nogil:
    return (size + 127) & ~<size_t>127


cdef size_t split_driver_offset(uint32_t size) noexcept nogil:
    """The available ring, behind the descriptors, on cache lines of its own."""
    return _line_up(16 * <size_t>size)


cdef size_t split_device_offset(uint32_t size) noexcept nogil:
    """The used ring, behind the available ring: its first entry begins a cache line."""
    return split_driver_offset(size) + _line_up(6 + 2 * <size_t>size) + 60


cdef size_t split_bytes(uint32_t size) noexcept nogil:
    return _line_up(split_device_offset(size) + 6 + 8 * <size_t>size)


cdef void split_init(SplitVq *vq, uint8_t *memory, uint32_t size, uint16_t start) noexcept nogil:
    """An empty ring in `memory` (128-byte aligned), both indices at `start`."""
    memset(memory, 0, split_bytes(size))
    vq.desc = <Desc *>memory
    vq.avail = <Avail *>(memory + split_driver_offset(size))
    vq.used = <Used *>(memory + split_device_offset(size))
    vq.mask = <uint16_t>(size - 1)
    vq.avail_next = vq.published = vq.used_next = start
    poke(&vq.avail.flags, AVAIL_NO_INTERRUPT)
    poke(&vq.avail.idx, start)
    poke(&vq.used.idx, start)
