"""A split virtqueue's device side that only moves indices: for measuring a driver alone.

It shares nothing with the driver but the specification (VIRTIO 1.3, 2.7), checks nothing, and
writes the virtio header of what it delivers and no payload.
"""

cimport cython

from libc.stdint cimport uint16_t, uint32_t, uint64_t


@cython.auto_pickle(False)
cdef class InstantQueue:
    """The device's end of one ring.

    descriptors, driver, device  addresses of the ring's parts in this process
    offset                       address minus bus address of the memory buffers lie in
    """

    cdef uint64_t table, driver, device, offset
    cdef uint16_t mask, seen, used

    def __init__(self, uint64_t descriptors, uint64_t driver, uint64_t device, uint32_t size,
                 uint64_t offset, uint16_t start=0):
        self.table, self.driver, self.device, self.offset = descriptors, driver, device, offset
        self.mask, self.seen, self.used = size - 1, start, start
        (<uint16_t *>device)[0] = 1  # VIRTQ_USED_F_NO_NOTIFY, 2.7.10

    def room(self):
        """Buffers that the driver has made available and this end has not used."""
        return <uint16_t>((<uint16_t *>self.driver)[1] - self.seen)

    def deliver(self, uint32_t frames, uint32_t length):
        """Use `frames` receive buffers for frames of `length` bytes each; how many there were."""
        cdef uint32_t n = min(frames, self.room()), _
        cdef uint16_t id
        for _ in range(n):
            id = self._next()
            (<uint16_t *>(self._buffer(id) + 10))[0] = 1  # num_buffers, 5.1.6
            self._use(id, length + 12)
        self._publish()
        return n

    def finish(self):
        """Use every buffer there is, as a transmit queue's device does; how many there were."""
        cdef uint32_t n = self.room(), _
        for _ in range(n):
            self._use(self._next(), 0)
        self._publish()
        return n

    cdef uint16_t _next(self) noexcept:
        cdef uint16_t id = (<uint16_t *>(self.driver + 4))[self.seen & self.mask]
        self.seen += 1
        return id

    cdef uint64_t _buffer(self, uint16_t id) noexcept:
        return (<uint64_t *>(self.table + 16 * <uint64_t>id))[0] + self.offset

    cdef void _use(self, uint16_t id, uint32_t length) noexcept:
        cdef uint32_t *entry = <uint32_t *>(self.device + 4 + 8 * <uint64_t>(self.used & self.mask))
        entry[0], entry[1] = id, length
        self.used += 1

    cdef void _publish(self) noexcept:
        (<uint16_t *>self.device)[1] = self.used
