"""What no device may do: lies about buffers and their places, and writing where it may not.

Each takes the state of a device that otherwise serves its rings, and follows from its seed.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._liar_ring cimport (
    AVAIL,
    USED,
    Buffer,
    Memory,
    Piece,
    Ring,
    descriptor,
    device_bytes,
    driver_bytes,
    reach,
    show16,
    take,
    use,
)

cdef enum:
    RECEIVE = 0
    TRANSMIT = 1
    CONTROL = 2
    RINGS = 3
    HEADER = 12                 # struct virtio_net_hdr, 5.1.6, as most devices have it

cdef struct State:
    uint64_t seed
    uint32_t lies               # chance of a lie, of 65536
    bint polite                 # leave the rings alone
    bint mergeable
    uint32_t header             # bytes of a virtio header, 5.1.6: 10, 12 or 20
    bint fields                 # a header says something of its frame
    Ring[RINGS] rings
    Memory memory
    uint64_t steps
    uint64_t delivered          # frames shown to the driver

cdef inline uint64_t random(State *s) noexcept nogil:
    """xorshift64*."""
    s.seed ^= s.seed >> 12
    s.seed ^= s.seed << 25
    s.seed ^= s.seed >> 27
    return s.seed * 2685821657736338717u >> 11


cdef inline uint32_t below(State *s, uint32_t limit) noexcept nogil:
    return random(s) % limit


cdef inline uint64_t _near(State *s, uint64_t limit) noexcept nogil:
    """A number at a limit, or anywhere."""
    cdef uint32_t kind = below(s, 8)
    if kind < 3:
        return limit + kind - 1
    if kind == 3:
        return below(s, 3)
    if kind == 4:
        return random(s)
    if kind == 5:
        return <uint64_t>1 << below(s, 33)
    if kind == 6:
        return limit + (<uint64_t>1 << below(s, 32))
    return ~<uint64_t>0 - below(s, 20)


cdef inline void _lie_entry(State *s, Ring *r) noexcept nogil:
    """A used entry whose id, length or place is not so."""
    cdef Buffer b
    cdef uint32_t kind = below(s, 7)
    b.id, b.length, b.count = r.last, 4096, 1
    if kind > 1:
        take(&s.memory, r, &b)
    if kind == 0:
        use(r, below(s, r.size), HEADER + 60, 1)
    elif kind < 3:
        use(r, <uint32_t>_near(s, r.size), HEADER + 60, b.count)
    elif kind < 5:
        use(r, b.id, <uint32_t>_near(s, HEADER if kind == 3 else b.length), b.count)
    elif kind == 5:
        use(r, b.id, HEADER + 60, below(s, 4))
    else:
        use(r, b.id, HEADER + 60, b.count)
        if not r.packed:
            r.used = <uint16_t>(r.used - 1)


cdef inline void _lie_count(State *s, Ring *r) noexcept nogil:
    """num_buffers that is not so."""
    cdef Buffer b
    cdef uint8_t *data
    if take(&s.memory, r, &b):
        data = reach(&s.memory, b.addr, HEADER + 60)
        if data != NULL:
            (<uint16_t *>(data + 10))[0] = <uint16_t>_near(s, below(s, 4))
        use(r, b.id, HEADER + 60 + below(s, 200), b.count)


cdef inline void _lie_index(State *s, Ring *r) noexcept nogil:
    """Used entries where there are none."""
    cdef uint32_t kind = below(s, 6)
    cdef uint16_t index = <uint16_t>r.used
    if r.packed:
        _lie_flags(s, r, kind)
        return
    if kind == 0:
        index += 1 + below(s, r.size)
    elif kind == 1:
        index += r.size + below(s, 3) - 1
    elif kind == 2:
        index -= 1 + below(s, r.size)
    elif kind == 3:
        index += 0x7FFF + below(s, 3)
    elif kind == 4:
        index = <uint16_t>random(s)
    else:
        index += 1 + below(s, 4)  # old entries once more
        r.used = index
    show16(r.device + 2, index)


cdef inline void _lie_flags(State *s, Ring *r, uint32_t kind) noexcept nogil:
    """Descriptors of a packed ring marked used, or not, that should not be."""
    cdef uint16_t marks = (AVAIL | USED) * below(s, 2)
    cdef uint32_t i
    if kind == 0:
        r.used = (r.used + r.size) % (2 * r.size)  # the wrong lap from now on
    elif kind == 1:
        r.used = (r.used + 1 + below(s, 4)) % (2 * r.size)
    elif kind == 2:
        for i in range(r.size):  # all of them
            show16(descriptor(r, i) + 14, marks)
    elif kind == 3:
        show16(descriptor(r, r.used) + 14, below(s, 2) * AVAIL | below(s, 2) * USED)
    else:
        show16(descriptor(r, r.used + below(s, 4)) + 14, marks)


cdef inline void _meddle(State *s) noexcept nogil:
    """Another num_buffers in a buffer that the driver may be looking at."""
    cdef Ring *r = &s.rings[RECEIVE]
    cdef uint8_t *data = NULL
    if r.size:
        data = reach(&s.memory, (<uint64_t *>descriptor(r, below(s, r.size)))[0], HEADER)
    if data != NULL:
        show16(data + 10, below(s, 3) if below(s, 4) else <uint16_t>random(s))


cdef inline void _scribble(State *s, uint8_t *area, uint64_t size) noexcept nogil:
    """Up to 16 bytes anywhere in memory that was shown."""
    cdef uint64_t value[2]
    cdef uint64_t length = min(<uint64_t>(1 + below(s, 16)), size)
    value[0], value[1] = random(s), random(s)
    if below(s, 4) == 0:
        value[0] = value[1] = 0
    memcpy(area + random(s) % (size - length + 1), value, length)


cdef inline uint32_t lie(State *s) noexcept nogil:
    """One thing that no device may do; 0 if there is nothing to do it to."""
    cdef Ring *r = &s.rings[below(s, 9) // 4]
    cdef uint32_t kind = below(s, 12)
    cdef Piece *piece
    if kind >= 8 and not s.polite:
        if s.memory.count == 0:
            return 0
        piece = &s.memory.pieces[below(s, s.memory.count)]
        _scribble(s, piece.data, piece.size)
    elif r.size == 0:
        return 0
    elif s.polite:
        _meddle(s)
    elif kind < 3:
        _lie_entry(s, r)
    elif kind == 3:
        _lie_count(s, r)
    elif kind == 4:
        _lie_index(s, r)
    elif kind == 5:
        _scribble(s, r.device, device_bytes(r))
    elif kind == 6:
        _scribble(s, r.driver, driver_bytes(r))
    else:
        _scribble(s, r.table, 16 * <uint64_t>r.size)
    return 1
