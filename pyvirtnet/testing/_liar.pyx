"""A device's side of rings that lies from a seed, at C speed: for fuzzing a driver.

It shares nothing with the driver but the specification (VIRTIO 1.3, 2.7, 2.8 and 5.1.6). It serves
its rings as a device does, and by the chance it was given does one of the things no device may. It
writes nowhere but in memory that the driver has shown it.
"""

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ._liar_lies cimport CONTROL, HEADER, RECEIVE, RINGS, TRANSMIT, State, below, lie, random
from ._liar_ring cimport (
    PIECES,
    TAKEN,
    Buffer,
    Memory,
    Piece,
    Ring,
    device_bytes,
    driver_bytes,
    reach,
    show,
    show16,
    take,
    use,
)

cdef enum:
    MOST_MERGED = 16            # buffers of a frame of 64 KiB

cdef extern from *:
    """
    static inline void relax(void) { __asm__ volatile("" ::: "memory"); }
    """
    void relax() noexcept nogil


cdef uint32_t _show(State *s, Ring *r) noexcept nogil:
    s.delivered += r.fresh
    r.fresh = 0
    return show(r)


cdef uint32_t _length(State *s, uint32_t most) noexcept nogil:
    """Payload of one buffer: the sizes at which a driver changes its mind, and others."""
    cdef uint32_t kind = below(s, 10), length
    if kind < 3:
        length = 60
    elif kind < 5:
        length = 14 + below(s, 115)
    elif kind == 5:
        length = 127 + below(s, 4)
    elif kind == 6:
        length = below(s, 16)
    elif kind == 7:
        length = most
    else:
        length = below(s, most + 1)
    return min(length, most)


cdef void _write_header(State *s, uint8_t *data, uint16_t count) noexcept nogil:
    """All zeroes, or fields that mean something, or nothing (5.1.6.4)."""
    cdef uint32_t i
    memset(data, 0, s.header)
    if s.fields and below(s, 4) == 0:
        for i in range(10):
            data[i] = below(s, 6)
    if s.header >= HEADER:
        (<uint16_t *>(data + 10))[0] = count


cdef uint32_t _deliver(State *s, Ring *r) noexcept nogil:
    """A frame into as many buffers as it takes; how many steps that was."""
    cdef Buffer[MOST_MERGED] buffers
    cdef uint32_t want = 1, count = 0, i, length, first
    cdef uint8_t *data
    cdef uint8_t fill = <uint8_t>random(s)
    if s.mergeable and below(s, 8) == 0:
        want += below(s, MOST_MERGED)
    while count < want and take(&s.memory, r, &buffers[count]):
        count += 1
    for i in range(count):
        length = buffers[i].total
        if i == count - 1 and length >= s.header:
            length = _length(s, length - s.header) + s.header
        first = min(length, buffers[i].length)
        data = reach(&s.memory, buffers[i].addr, first)
        if data != NULL and first >= s.header:
            memset(data, fill, min(first, <uint32_t>192))
            if i == 0:
                _write_header(s, data, count)
        use(r, buffers[i].id, length, buffers[i].count)
    r.fresh += count > 0
    return count


cdef uint32_t _send(State *s, Ring *r) noexcept nogil:
    """Take a frame to send, or be done with one that was taken: in any order, if that may be."""
    cdef Buffer done
    cdef uint32_t at = 0, i
    if r.ntaken < TAKEN and below(s, 2) and take(&s.memory, r, &r.taken[r.ntaken]):
        r.ntaken += 1
    if r.ntaken == 0:
        return 0
    if not r.in_order and below(s, 2):
        at = below(s, r.ntaken)
    done = r.taken[at]
    r.ntaken -= 1
    for i in range(at, r.ntaken):
        r.taken[i] = r.taken[i + 1]
    use(r, done.id, 0, done.count)
    return 1


cdef void _ask_for_kicks(Ring *r, uint16_t where) noexcept nogil:
    show16(r.device + 4 + 8 * <uint64_t>r.size, where)  # avail_event


cdef uint32_t _answer(State *s, Ring *r, bint refuse) noexcept nogil:
    """Obey a command, or refuse it (5.1.6.5); what was asked for is anything."""
    cdef Buffer command
    cdef uint8_t *data
    cdef uint32_t i
    if not take(&s.memory, r, &command):
        return 0
    if not r.packed:
        _ask_for_kicks(r, <uint16_t>r.seen)
    data = reach(&s.memory, command.last_addr, command.last_length)
    if data != NULL and command.last_length:
        for i in range(command.last_length):
            data[i] = <uint8_t>random(s)
        data[0] = refuse
    use(r, command.id, command.last_length, command.count)
    return 1


cdef void _suppress(State *s, Ring *r) noexcept nogil:
    """Say which kicks are wanted (2.7.10, 2.8.10)."""
    cdef uint16_t where = <uint16_t>(r.seen + below(s, 4))
    if r.packed:
        show16(r.device, where)
        show16(r.device + 2, below(s, 3))
    else:
        show16(r.device, below(s, 2))
        _ask_for_kicks(r, where)


cdef uint32_t _serve(State *s) noexcept nogil:
    """What a good device does next; how many steps that was, 0 if there is nothing to do."""
    cdef uint32_t index = below(s, 9) // 4, what = below(s, 16), steps
    cdef Ring *r = &s.rings[index]
    if r.size == 0:
        return 0
    if what == 0 and index != CONTROL:  # there, somebody waits
        _suppress(s, r)
        return 1
    if what < 4:
        return _show(s, r)
    if index == RECEIVE:
        steps = _deliver(s, r)
    elif index == TRANSMIT:
        steps = _send(s, r)
    else:
        steps = _answer(s, r, below(s, 8) == 0)
    return steps if steps else _show(s, r)


@cython.auto_pickle(False)
cdef class Liar:
    """The device's end of a receive, a transmit and a control ring.

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
        cdef Memory *m = &self.state.memory
        if m.count == PIECES:
            raise ValueError("more pieces of memory than a liar can remember")
        m.pieces[m.count].iova, m.pieces[m.count].size = iova, size
        m.pieces[m.count].data = <uint8_t *>address
        m.count += 1

    def unmap(self, uint64_t iova):
        """Memory that the driver takes back, and rings in it."""
        cdef Memory *m = &self.state.memory
        cdef uint32_t i, ring
        cdef Piece gone
        for i in range(m.count):
            if m.pieces[i].iova == iova:
                gone = m.pieces[i]
                m.count -= 1
                m.pieces[i] = m.pieces[m.count]
                for ring in range(RINGS):
                    if gone.data <= self.state.rings[ring].table < gone.data + gone.size:
                        self.disable(ring)
                return

    def enable(self, uint32_t index, uint32_t size, uint64_t table, uint64_t driver,
               uint64_t device, *, uint16_t start=0, bint packed=False, bint in_order=False,
               bint mergeable=False, uint32_t header=HEADER, bint fields=False):
        """A ring at addresses of the driver's (4.1.4.3). LookupError: not in memory shown."""
        cdef Memory *m = &self.state.memory
        cdef Ring r
        memset(&r, 0, sizeof(Ring))
        r.size, r.packed, r.in_order = size, packed, in_order
        if index >= RINGS or not 0 < size <= 32768 or (size & (size - 1) and not packed):
            raise ValueError(f"ring {index} of {size} entries")
        r.table = reach(m, table, 16 * <uint64_t>size)
        r.driver = reach(m, driver, driver_bytes(&r))
        r.device = reach(m, device, device_bytes(&r))
        if r.table == NULL or r.driver == NULL or r.device == NULL:
            raise LookupError(f"ring {index} does not lie in DMA memory")
        r.seen = r.used = r.shown = start % (2 * size) if packed else start
        if not packed:
            _ask_for_kicks(&r, start)
        self.state.rings[index] = r
        self.state.mergeable, self.state.fields = mergeable, fields
        self.state.header = header

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
                s.steps += lie(s) if below(s, 65536) < s.lies else _serve(s)
                if pause:
                    for _moment in range(below(s, pause)):
                        relax()

    def answer(self):
        """Obey the command that there is, without lies."""
        cdef Ring *r = &self.state.rings[CONTROL]
        if r.size and _answer(&self.state, r, False):
            _show(&self.state, r)

    @property
    def steps(self):
        """Used entries, moves of an index and scribbles so far."""
        return self.state.steps

    @property
    def delivered(self):
        """Frames shown to the driver."""
        return self.state.delivered

    @property
    def faults(self):
        """Descriptors that led to no DMA memory; the driver's fault if nobody scribbled."""
        return self.state.memory.faults
