"""A virtqueue's device side that only says what is used: for measuring a driver alone.

It shares nothing with the driver but the specification (VIRTIO 1.3, 2.7, 2.8), checks nothing, and
writes the virtio header of what it delivers and no payload.
"""

cimport cython

from libc.stdint cimport uint16_t, uint32_t, uint64_t


@cython.auto_pickle(False)
cdef class InstantQueue:
    """The device's end of one split ring.

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


cdef enum:
    NEXT = 1
    WRITE = 2
    AVAIL = 1 << 7
    USED = 1 << 15


cdef packed struct Descriptor:
    uint64_t address
    uint32_t length
    uint16_t id
    uint16_t flags


@cython.auto_pickle(False)
cdef class InstantPackedQueue:
    """The device's end of one packed ring, as `InstantQueue` is of a split one.

    It uses buffers in order, so each used descriptor falls on its buffer's first one. `start`
    counts descriptors from the ring's first lap on.
    """

    cdef Descriptor *ring
    cdef uint64_t offset
    cdef uint32_t size, place
    cdef bint wrap

    def __init__(self, uint64_t descriptors, uint64_t driver, uint64_t device, uint32_t size,
                 uint64_t offset, uint16_t start=0):
        self.ring, self.size, self.offset = <Descriptor *>descriptors, size, offset
        self.place, self.wrap = start % size, not start // size & 1
        (<uint16_t *>device)[1] = 1  # RING_EVENT_FLAGS_DISABLE, 2.8.10

    def room(self):
        """Buffers that the driver has made available and this end has not used."""
        cdef uint32_t place = self.place, n = 0, _
        cdef bint wrap = self.wrap
        for _ in range(self.size):
            if not self._available(place, wrap):
                break
            n += not self.ring[place].flags & NEXT
            place += 1
            if place == self.size:
                place, wrap = 0, not wrap
        return n

    def deliver(self, uint32_t frames, uint32_t length):
        """Use `frames` receive buffers for frames of `length` bytes each; how many there were."""
        cdef uint32_t n = 0
        while n < frames and self._available(self.place, self.wrap):
            # num_buffers, 5.1.6
            (<uint16_t *>(self.ring[self.place].address + self.offset + 10))[0] = 1
            self._use(length + 12, WRITE)
            n += 1
        return n

    def finish(self):
        """Use every buffer there is, as a transmit queue's device does; how many there were."""
        cdef uint32_t n = 0
        while self._available(self.place, self.wrap):
            self._use(0, 0)
            n += 1
        return n

    cdef bint _available(self, uint32_t place, bint wrap) noexcept:
        return self.ring[place].flags & (AVAIL | USED) == (AVAIL if wrap else USED)

    cdef void _use(self, uint32_t length, uint16_t flags) noexcept:
        cdef Descriptor *first = &self.ring[self.place]
        cdef Descriptor *last = first
        flags |= AVAIL | USED if self.wrap else 0
        while last.flags & NEXT:
            self._advance()
            last = &self.ring[self.place]
        self._advance()
        first.length, first.id, first.flags = length, last.id, flags

    cdef void _advance(self) noexcept:
        self.place += 1
        if self.place == self.size:
            self.place, self.wrap = 0, not self.wrap
