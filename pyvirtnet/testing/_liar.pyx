"""A device's side of split rings that lies from a seed, at C speed: for fuzzing a driver.

It shares nothing with the driver but the specification (VIRTIO 1.3, 2.7 and 5.1.6). It serves its
rings as a device does, and by the chance it was given does one of the things no device may. It
writes nowhere but in memory that the driver has shown it; what the driver says it checks.
"""

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef enum:
    RINGS = 2                   # receive and transmit
    PIECES = 64
    TAKEN = 64                  # transmit buffers kept for a while, to be used out of order
    HEADER = 12                 # struct virtio_net_hdr, 5.1.6
    MOST_MERGED = 17            # buffers of a frame of 64 KiB

cdef struct Piece:
    uint64_t iova
    uint64_t size
    uint8_t *data

cdef struct Ring:
    uint8_t *table              # descriptors
    uint8_t *driver             # the available ring
    uint8_t *device             # the used ring
    uint32_t size               # 0: not enabled
    uint16_t seen               # available entries taken
    uint16_t used               # used entries written
    uint16_t shown              # what used.idx says
    uint16_t last               # the id that was used last
    uint16_t[TAKEN] taken
    uint16_t ntaken
    uint32_t fresh              # frames written and not shown yet

cdef struct State:
    uint64_t seed
    uint32_t lies               # chance of a lie, of 65536
    bint polite                 # leave the rings alone
    bint mergeable
    Ring[RINGS] rings
    Piece[PIECES] pieces
    uint32_t npieces
    uint64_t steps
    uint64_t delivered          # frames shown to the driver
    uint64_t faults             # addresses in descriptors that are not DMA memory

cdef extern from *:
    """
    static inline void relax(void) { __asm__ volatile("" ::: "memory"); }
    """
    void relax() noexcept nogil


cdef inline uint64_t _random(State *s) noexcept nogil:
    """xorshift64*."""
    s.seed ^= s.seed >> 12
    s.seed ^= s.seed << 25
    s.seed ^= s.seed >> 27
    return s.seed * 2685821657736338717u >> 11


cdef inline uint32_t _below(State *s, uint32_t limit) noexcept nogil:
    return _random(s) % limit


cdef uint8_t *_reach(State *s, uint64_t iova, uint64_t length) noexcept nogil:
    """Memory at the device's address; NULL if it was not shown all of it."""
    cdef uint32_t i
    cdef Piece *piece
    for i in range(s.npieces):
        piece = &s.pieces[i]
        if iova >= piece.iova and length <= piece.size and iova - piece.iova <= piece.size - length:
            return piece.data + (iova - piece.iova)
    return NULL


# ---- what a device does ------------------------------------------------------------------------

cdef inline uint16_t _ready(const Ring *r) noexcept nogil:
    """Buffers available and not taken; 0 where the index makes no sense."""
    cdef uint16_t ready = <uint16_t>((<uint16_t *>r.driver)[1] - r.seen)
    return ready if ready <= r.size else 0


cdef inline uint16_t _take(Ring *r) noexcept nogil:
    cdef uint16_t id = (<uint16_t *>(r.driver + 4))[r.seen & (r.size - 1)]
    r.seen += 1
    return id & (r.size - 1)


cdef inline void _use(Ring *r, uint32_t id, uint32_t length) noexcept nogil:
    cdef uint32_t *entry = <uint32_t *>(r.device + 4 + 8 * <uint64_t>(r.used & (r.size - 1)))
    entry[0], entry[1] = id, length
    r.used += 1
    r.last = <uint16_t>id


cdef uint32_t _show(State *s, Ring *r) noexcept nogil:
    cdef bint moved = r.shown != r.used
    r.shown = r.used
    (<uint16_t *>r.device)[1] = r.used
    s.delivered += r.fresh
    r.fresh = 0
    return moved


cdef uint8_t *_buffer(State *s, Ring *r, uint16_t id, uint32_t *capacity) noexcept nogil:
    """The buffer of a receive descriptor."""
    cdef uint8_t *entry = r.table + 16 * <uint64_t>id
    cdef uint8_t *data
    capacity[0] = (<uint32_t *>entry)[2]
    data = _reach(s, (<uint64_t *>entry)[0], capacity[0])
    if data == NULL or capacity[0] < HEADER:
        s.faults += 1
        capacity[0] = 0
        return NULL
    return data


cdef uint32_t _length(State *s, uint32_t most) noexcept nogil:
    """Payload of one buffer: the sizes at which a driver changes its mind, and others."""
    cdef uint32_t kind = _below(s, 10), length
    if kind < 3:
        length = 60
    elif kind < 5:
        length = 14 + _below(s, 115)
    elif kind == 5:
        length = 127 + _below(s, 4)
    elif kind == 6:
        length = _below(s, 16)
    elif kind == 7:
        length = most
    else:
        length = _below(s, most + 1)
    return min(length, most)


cdef uint32_t _deliver(State *s, Ring *r) noexcept nogil:
    """A frame into as many buffers as it takes; how many steps that were."""
    cdef uint32_t ready = _ready(r), count = 1, i, capacity, length
    cdef uint16_t id
    cdef uint8_t *data
    cdef uint8_t fill = <uint8_t>_random(s)
    if ready == 0:
        return 0
    if s.mergeable and _below(s, 8) == 0:
        count = 1 + _below(s, min(ready, <uint32_t>MOST_MERGED - 1))
    for i in range(count):
        id = _take(r)
        data = _buffer(s, r, id, &capacity)
        if data == NULL:
            _use(r, id, HEADER if i == 0 else 0)
            continue
        length = capacity
        if i == count - 1:
            length = _length(s, capacity - HEADER) + HEADER
        memset(data, fill, min(length, <uint32_t>192))
        if i == 0:
            memset(data, 0, HEADER)
            (<uint16_t *>(data + 10))[0] = count
        _use(r, id, length)
    r.fresh += 1
    return count


cdef uint32_t _send(State *s, Ring *r) noexcept nogil:
    """Take a transmit buffer, or use one that was taken: in any order."""
    cdef uint16_t at
    if r.ntaken < TAKEN and _ready(r) and (r.ntaken == 0 or _below(s, 3)):
        r.taken[r.ntaken] = _take(r)
        r.ntaken += 1
    if r.ntaken == 0:
        return 0
    at = 0 if _below(s, 2) else _below(s, r.ntaken)
    _use(r, r.taken[at], 0)
    r.ntaken -= 1
    r.taken[at] = r.taken[r.ntaken]
    return 1


cdef uint32_t _serve(State *s) noexcept nogil:
    """What a good device does next; how many steps that were, 0 if there is nothing to do."""
    cdef Ring *r = &s.rings[_below(s, RINGS)]
    cdef uint32_t what = _below(s, 16), steps
    if r.size == 0:
        return 0
    if what == 0:
        (<uint16_t *>r.device)[0] = _below(s, 2)  # VIRTQ_USED_F_NO_NOTIFY, 2.7.10
        return 1
    if what < 4:
        return _show(s, r)
    steps = _deliver(s, r) if r == &s.rings[0] else _send(s, r)
    return steps if steps else _show(s, r)


# ---- what no device may do ---------------------------------------------------------------------

cdef uint64_t _near(State *s, uint64_t limit) noexcept nogil:
    """A number at a limit, or anywhere."""
    cdef uint32_t kind = _below(s, 8)
    if kind < 3:
        return limit + kind - 1
    if kind == 3:
        return _below(s, 3)
    if kind == 4:
        return _random(s)
    if kind == 5:
        return <uint64_t>1 << _below(s, 33)
    if kind == 6:
        return limit + (<uint64_t>1 << _below(s, 32))
    return ~<uint64_t>0 - _below(s, 20)


cdef void _lie_entry(State *s, Ring *r) noexcept nogil:
    """A used element with an id or a length that is not so, and sometimes not counted."""
    cdef uint32_t id = r.last, length = HEADER + 60, kind = _below(s, 6), capacity
    if kind == 0:
        id = <uint32_t>_near(s, r.size)
    elif kind == 1:
        id = _below(s, r.size)
    elif kind < 5 and _ready(r):
        id = _take(r)
        _buffer(s, r, id, &capacity)
        length = <uint32_t>_near(s, HEADER if kind == 2 else capacity)
    _use(r, id, length)
    if _below(s, 4) == 0:
        r.used -= 1


cdef void _lie_count(State *s, Ring *r) noexcept nogil:
    """num_buffers that is not so, at first or behind the driver's check."""
    cdef uint32_t capacity
    cdef uint16_t id
    cdef uint8_t *data
    id = _take(r) if _ready(r) and _below(s, 2) else r.last & (r.size - 1)
    data = _buffer(s, r, id, &capacity)
    if data != NULL:
        (<uint16_t *>(data + 10))[0] = <uint16_t>_near(s, <uint16_t>(r.used - r.shown))
        _use(r, id, HEADER + 60 + _below(s, capacity))


cdef void _lie_index(State *s, Ring *r) noexcept nogil:
    cdef uint32_t kind = _below(s, 6)
    cdef uint16_t index = r.used
    if kind == 0:
        index += 1 + _below(s, r.size)
    elif kind == 1:
        index += r.size + _below(s, 3) - 1
    elif kind == 2:
        index -= 1 + _below(s, r.size)
    elif kind == 3:
        index += 0x7FFF + _below(s, 3)
    elif kind == 4:
        index = <uint16_t>_random(s)
    else:
        r.used = index = <uint16_t>(r.used + 1 + _below(s, 4))  # old entries once more
    (<uint16_t *>r.device)[1] = index


cdef void _scribble(State *s, uint8_t *area, uint64_t size) noexcept nogil:
    """Up to 16 bytes anywhere in memory that was shown."""
    cdef uint64_t value[2]
    cdef uint64_t length = min(<uint64_t>(1 + _below(s, 16)), size)
    value[0], value[1] = _random(s), _random(s)
    if _below(s, 4) == 0:
        value[0] = value[1] = 0
    memcpy(area + _random(s) % (size - length + 1), value, length)


cdef void _meddle(State *s) noexcept nogil:
    """Another num_buffers in a buffer that the driver may be looking at."""
    cdef Ring *r = &s.rings[0]
    cdef uint32_t capacity
    cdef uint8_t *data = NULL
    if r.size:
        data = _buffer(s, r, <uint16_t>_below(s, r.size), &capacity)
    if data != NULL:
        (<uint16_t *>(data + 10))[0] = _below(s, 3) if _below(s, 4) else <uint16_t>_random(s)


cdef uint32_t _lie(State *s) noexcept nogil:
    """One thing that no device may do; 0 if there is nothing to do it to."""
    cdef Ring *r = &s.rings[_below(s, RINGS)]
    cdef uint32_t kind = _below(s, 12)
    cdef Piece *piece
    if kind >= 8 and not s.polite:
        if s.npieces == 0:
            return 0
        piece = &s.pieces[_below(s, s.npieces)]
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
        _scribble(s, r.device, 6 + 8 * <uint64_t>r.size)
    elif kind == 6:
        _scribble(s, r.driver, 6 + 2 * <uint64_t>r.size)
    else:
        _scribble(s, r.table, 16 * <uint64_t>r.size)
    return 1


@cython.auto_pickle(False)
cdef class Liar:
    """The device's end of a receive and a transmit ring.

    seed    what it does follows from it
    lies    chance of each step to be a lie, from 0.0 to 1.0
    polite  writes buffers, and what is nobody's business, but no rings
    """

    cdef State state

    def __init__(self, uint64_t seed, double lies, *, bint polite=False):
        self.state.seed = seed | 1
        self.state.lies = <uint32_t>(lies * 65536)
        self.state.polite = polite

    def map(self, uint64_t iova, uint64_t size, size_t address):
        """Memory that the driver shows: the caller keeps it mapped here."""
        cdef Piece *piece = &self.state.pieces[self.state.npieces]
        if self.state.npieces == PIECES:
            raise ValueError("more pieces of memory than a liar can remember")
        piece.iova, piece.size, piece.data = iova, size, <uint8_t *>address
        self.state.npieces += 1

    def unmap(self, uint64_t iova):
        """Memory that the driver takes back, and rings in it."""
        cdef uint32_t i, ring
        cdef Piece gone
        for i in range(self.state.npieces):
            if self.state.pieces[i].iova == iova:
                gone = self.state.pieces[i]
                self.state.npieces -= 1
                self.state.pieces[i] = self.state.pieces[self.state.npieces]
                for ring in range(RINGS):
                    if gone.data <= self.state.rings[ring].table < gone.data + gone.size:
                        self.disable(ring)
                return

    def enable(self, uint32_t index, uint32_t size, uint64_t table, uint64_t driver,
               uint64_t device, uint16_t start, bint mergeable):
        """A ring at addresses of the driver's (4.1.4.3). LookupError: not in memory shown."""
        cdef Ring r
        memset(&r, 0, sizeof(Ring))
        r.table = _reach(&self.state, table, 16 * <uint64_t>size)
        r.driver = _reach(&self.state, driver, 6 + 2 * <uint64_t>size)
        r.device = _reach(&self.state, device, 6 + 8 * <uint64_t>size)
        if index >= RINGS or size == 0 or size & (size - 1):
            raise ValueError(f"ring {index} of {size} entries")
        if r.table == NULL or r.driver == NULL or r.device == NULL:
            raise LookupError(f"ring {index} does not lie in DMA memory")
        r.size, r.seen, r.used, r.shown = size, start, start, start
        self.state.rings[index] = r
        self.state.mergeable = mergeable

    def disable(self, uint32_t index):
        """After a reset: memory may still be written, if the device lies."""
        if index < RINGS:
            self.state.rings[index].size = 0

    def act(self, uint32_t turns, uint32_t pause=0):
        """As many turns, each of them some steps or none, and up to `pause` moments of idleness
        after each; without the GIL."""
        cdef uint32_t _, _moment
        cdef State *s = &self.state
        with nogil:
            for _ in range(turns):
                s.steps += _lie(s) if _below(s, 65536) < s.lies else _serve(s)
                if pause:
                    for _moment in range(_below(s, pause)):
                        relax()

    @property
    def steps(self):
        """Used elements, moves of an index and scribbles so far."""
        return self.state.steps

    @property
    def delivered(self):
        """Frames shown to the driver."""
        return self.state.delivered

    @property
    def faults(self):
        """Receive buffers that were no DMA memory; the driver's fault if nobody scribbled."""
        return self.state.faults
