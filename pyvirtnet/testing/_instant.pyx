"""A virtqueue's device side that only says what is used: for measuring a driver alone.

It shares nothing with the driver but the specification (VIRTIO 1.3, 2.7, 2.8), checks nothing, and
writes the virtio header of what it delivers and no payload.
"""

cimport cython

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from posix.unistd cimport usleep, write

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from *:
    void full_fence "__sync_synchronize"() noexcept nogil

cdef enum:
    MANY = 1024                 # buffers, from which on both sides work without the GIL

cdef uint64_t STOP = ~<uint64_t>0
cdef uint64_t LONG_PAUSE = 256  # frames between two: a driver that polls a while falls asleep
cdef unsigned int LONG_MICROSECONDS = 2000


@cython.auto_pickle(False)
cdef class InstantEnd:
    """What the devices' ends of both ring formats can do."""

    def wake(self, uint64_t[::1] received not None, uint64_t rounds, int interrupt, uint64_t seed):
        """Deliver frames one by one, each after the last was received, and interrupt if wanted.

        Runs without the GIL beside the driver, after random pauses: at once, or up to some tens of
        microseconds later; now and then milliseconds. received[0] is how many the driver has; ~0
        there ends it early.
        Returns how often the eventfd `interrupt` was written to.
        """
        cdef uint64_t done = 0, one = 1, interrupts = 0
        cdef volatile uint64_t *seen = &received[0]
        with nogil:
            while done < rounds and seen[0] != STOP:
                while seen[0] < done:
                    sched_yield()
                seed = _pause(seed)
                if done % LONG_PAUSE == LONG_PAUSE - 1:
                    usleep(LONG_MICROSECONDS)
                while not self._give() and seen[0] != STOP:
                    sched_yield()
                done += 1
                full_fence()  # what is used before what the driver wants (2.7.7.2, 2.8.21.3.1)
                if self._wanted():
                    interrupts += write(interrupt, &one, sizeof(one)) == sizeof(one)
        return interrupts

    def deliver(self, uint32_t frames, uint32_t length):
        """Use `frames` receive buffers for frames of `length` bytes each; how many there were."""
        cdef uint32_t n
        if frames < MANY:
            return self._deliver(frames, length)
        with nogil:
            n = self._deliver(frames, length)
        return n

    def finish(self, uint32_t about=0):
        """Use every buffer there is, as a transmit queue's device does; how many there were.

        Without the GIL, as `deliver`, if there are `about` so many that it pays.
        """
        cdef uint32_t n
        if about < MANY:
            return self._finish()
        with nogil:
            n = self._finish()
        return n

    cdef uint32_t _deliver(self, uint32_t frames, uint32_t length) noexcept nogil:
        return 0

    cdef uint32_t _finish(self) noexcept nogil:
        return 0

    cdef bint _give(self) noexcept nogil:
        """Use a receive buffer for a frame of 60 bytes, if there is one."""
        return False

    cdef bint _wanted(self) noexcept nogil:
        """Does the driver want an interrupt for the buffer used last?"""
        return False


cdef uint64_t _pause(uint64_t seed) noexcept nogil:
    """A random pause; the next random number (xorshift)."""
    cdef volatile uint64_t left
    seed ^= seed << 13
    seed ^= seed >> 7
    seed ^= seed << 17
    left = (seed >> 8) & (((<uint64_t>1 << (seed & 15)) - 1))
    while left:
        left -= 1
    return seed


cdef inline bint _crossed(uint16_t event, uint16_t new) noexcept nogil:
    """One buffer was used, and the index went from new - 1 to new: past the event? (2.7.10)"""
    return <uint16_t>(new - event - 1) < 1


@cython.auto_pickle(False)
cdef class InstantQueue(InstantEnd):
    """The device's end of one split ring.

    descriptors, driver, device  addresses of the ring's parts in this process
    offset                       address minus bus address of the memory buffers lie in
    events                       EVENT_IDX was negotiated
    """

    cdef uint64_t table, driver, device, offset
    cdef uint16_t mask, seen, used
    cdef bint events

    def __init__(self, uint64_t descriptors, uint64_t driver, uint64_t device, uint32_t size,
                 int64_t offset, uint16_t start=0, *, bint events=False):
        self.events = events
        self.table, self.driver, self.device, self.offset = descriptors, driver, device, offset
        self.mask, self.seen, self.used = size - 1, start, start
        (<uint16_t *>device)[0] = 1  # VIRTQ_USED_F_NO_NOTIFY, 2.7.10

    def room(self):
        """Buffers that the driver has made available and this end has not used."""
        return self._room()

    cdef uint16_t _room(self) noexcept nogil:
        return (<volatile uint16_t *>self.driver)[1] - self.seen

    cdef bint _give(self) noexcept nogil:
        cdef uint16_t id
        if self._room() == 0:
            return False
        full_fence()  # the index before the entry
        id = self._next()
        (<uint16_t *>(self._buffer(id) + 10))[0] = 1  # num_buffers, 5.1.6
        self._use(id, 72)
        full_fence()  # the entry before the index
        self._publish()
        return True

    cdef bint _wanted(self) noexcept nogil:
        cdef volatile uint16_t *available = <uint16_t *>self.driver
        if self.events:
            return _crossed(available[2 + self.mask + 1], self.used)
        return not available[0] & 1

    cdef uint32_t _deliver(self, uint32_t frames, uint32_t length) noexcept nogil:
        cdef uint32_t n = min(frames, self._room()), _
        cdef uint16_t id
        for _ in range(n):
            id = self._next()
            (<uint16_t *>(self._buffer(id) + 10))[0] = 1  # num_buffers, 5.1.6
            self._use(id, length + 12)
        self._publish()
        return n

    cdef uint32_t _finish(self) noexcept nogil:
        cdef uint32_t n = self._room(), _
        for _ in range(n):
            self._use(self._next(), 0)
        self._publish()
        return n

    cdef uint16_t _next(self) noexcept nogil:
        cdef uint16_t id = (<uint16_t *>(self.driver + 4))[self.seen & self.mask]
        self.seen += 1
        return id

    cdef uint64_t _buffer(self, uint16_t id) noexcept nogil:
        return (<uint64_t *>(self.table + 16 * <uint64_t>id))[0] + self.offset

    cdef void _use(self, uint16_t id, uint32_t length) noexcept nogil:
        cdef uint32_t *entry = <uint32_t *>(self.device + 4 + 8 * <uint64_t>(self.used & self.mask))
        entry[0], entry[1] = id, length
        self.used += 1

    cdef void _publish(self) noexcept nogil:
        (<volatile uint16_t *>self.device)[1] = self.used


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
cdef class InstantPackedQueue(InstantEnd):
    """The device's end of one packed ring, as `InstantQueue` is of a split one.

    It uses buffers in order, so each used descriptor falls on its buffer's first one. `start`
    counts descriptors from the ring's first lap on.
    """

    cdef Descriptor *ring
    cdef uint16_t *driver
    cdef uint64_t offset
    cdef uint32_t size, place
    cdef bint wrap

    def __init__(self, uint64_t descriptors, uint64_t driver, uint64_t device, uint32_t size,
                 int64_t offset, uint16_t start=0, *, bint events=False):
        self.ring, self.size, self.offset = <Descriptor *>descriptors, size, offset
        self.driver = <uint16_t *>driver
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

    cdef uint32_t _deliver(self, uint32_t frames, uint32_t length) noexcept nogil:
        cdef uint32_t n = 0
        while n < frames and self._available(self.place, self.wrap):
            # num_buffers, 5.1.6
            (<uint16_t *>(self.ring[self.place].address + self.offset + 10))[0] = 1
            self._use(length + 12, WRITE)
            n += 1
        return n

    cdef uint32_t _finish(self) noexcept nogil:
        cdef uint32_t n = 0
        while self._available(self.place, self.wrap):
            self._use(0, 0)
            n += 1
        return n

    cdef bint _available(self, uint32_t place, bint wrap) noexcept nogil:
        cdef uint16_t flags = (<volatile uint16_t *>&self.ring[place].flags)[0]
        return flags & (AVAIL | USED) == (AVAIL if wrap else USED)

    cdef bint _give(self) noexcept nogil:
        if not self._available(self.place, self.wrap):
            return False
        full_fence()  # the flags before what they are of
        (<uint16_t *>(self.ring[self.place].address + self.offset + 10))[0] = 1
        self._use(72, WRITE)
        return True

    cdef bint _wanted(self) noexcept nogil:
        cdef volatile uint16_t *wish = self.driver
        cdef uint16_t flags = wish[1], event = wish[0]
        if flags != 2:  # RING_EVENT_FLAGS_DESC
            return flags == 0
        if (event >> 15 != 0) == self.wrap:
            return _crossed(event & 0x7FFF, self.place)
        return _crossed((event & 0x7FFF) - self.size, self.place)

    cdef void _use(self, uint32_t length, uint16_t flags) noexcept nogil:
        cdef Descriptor *first = &self.ring[self.place]
        cdef Descriptor *last = first
        flags |= AVAIL | USED if self.wrap else 0
        while last.flags & NEXT:
            self._advance()
            last = &self.ring[self.place]
        self._advance()
        first.length, first.id = length, last.id
        full_fence()  # a descriptor before its flags
        (<volatile uint16_t *>&first.flags)[0] = flags

    cdef void _advance(self) noexcept nogil:
        self.place += 1
        if self.place == self.size:
            self.place, self.wrap = 0, not self.wrap
