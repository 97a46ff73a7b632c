"""A device's end of a ring, split or packed (VIRTIO 1.3, 2.7 and 2.8): buffers taken and used.

It checks what the driver says, so that a driver in error, or memory that was scribbled over, leads
nowhere but to memory that the driver has shown.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    PIECES = 64
    TAKEN = 64                  # buffers kept for a while, to be used out of order
    WALK = 32                   # descriptors of a chain that are looked at
    NEXT = 1                    # VIRTQ_DESC_F_NEXT, 2.7.5
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7              # 2.8.1
    USED = 1 << 15

cdef struct Piece:
    uint64_t iova
    uint64_t size
    uint8_t *data

cdef struct Memory:
    Piece[PIECES] pieces
    uint32_t count
    uint64_t faults             # descriptors that lead to no DMA memory

cdef struct Buffer:
    uint64_t addr               # of the first descriptor, or that of its table
    uint32_t length
    uint32_t total              # of all descriptors
    uint16_t id
    uint16_t count              # descriptors in the ring
    uint64_t last_addr          # of the last one
    uint32_t last_length

cdef struct Ring:
    uint8_t *table              # descriptors
    uint8_t *driver             # the available ring, or the driver's event suppression
    uint8_t *device             # the used ring, or the device's event suppression
    uint32_t size               # 0: not enabled
    bint packed
    bint in_order
    uint32_t seen               # where the next available entry is; a packed ring counts two laps
    uint32_t used               # where the next used entry goes
    uint32_t shown              # of a split ring: what used.idx says
    uint64_t *held              # of a packed ring: the first used descriptor not shown, and
    uint64_t held_word          # what it is to say
    uint16_t last               # the id that was used last
    Buffer[TAKEN] taken
    uint32_t ntaken
    uint32_t fresh              # frames written and not shown yet

cdef extern from *:
    """
    #include <stdint.h>
    static inline void show16(void *at, uint16_t value)
    { __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE); }
    static inline void show64(void *at, uint64_t value)
    { __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); }
    static inline uint16_t look16(const void *at)
    { return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE); }
    """
    void show16(void *at, uint16_t value) noexcept nogil
    void show64(void *at, uint64_t value) noexcept nogil
    uint16_t look16(const void *at) noexcept nogil


cdef inline uint8_t *reach(const Memory *m, uint64_t iova, uint64_t length) noexcept nogil:
    """Memory at the device's address; NULL if it was not shown all of it."""
    cdef uint32_t i
    cdef const Piece *piece
    for i in range(m.count):
        piece = &m.pieces[i]
        if iova >= piece.iova and length <= piece.size and iova - piece.iova <= piece.size - length:
            return piece.data + (iova - piece.iova)
    return NULL


cdef inline uint64_t driver_bytes(const Ring *r) noexcept nogil:
    return 4 if r.packed else 6 + 2 * <uint64_t>r.size


cdef inline uint64_t device_bytes(const Ring *r) noexcept nogil:
    return 4 if r.packed else 6 + 8 * <uint64_t>r.size


cdef inline uint8_t *descriptor(const Ring *r, uint32_t index) noexcept nogil:
    return r.table + 16 * <uint64_t>(index % r.size)


cdef inline void _look(Memory *m, Buffer *b, const uint8_t *entry, uint16_t flags) noexcept nogil:
    """Follow one descriptor, into an indirect table as well."""
    cdef uint64_t addr = (<uint64_t *>entry)[0], i
    cdef uint32_t length = (<uint32_t *>entry)[2]
    cdef uint8_t *data = reach(m, addr, length)
    if data == NULL:
        m.faults += 1
    elif flags & INDIRECT:
        for i in range(min(length // 16, <uint32_t>WALK)):
            b.last_addr, b.last_length = (<uint64_t *>data)[2 * i], (<uint32_t *>data)[4 * i + 2]
            if i == 0:
                b.addr, b.length = b.last_addr, b.last_length
            b.total += b.last_length
            if reach(m, b.last_addr, b.last_length) == NULL:
                m.faults += 1
        return
    b.last_addr, b.last_length = addr, length
    b.total += length


cdef inline bint take(Memory *m, Ring *r, Buffer *b) noexcept nogil:
    """The next available buffer, if there is one."""
    return _take_packed(m, r, b) if r.packed else _take_split(m, r, b)


cdef inline bint _take_split(Memory *m, Ring *r, Buffer *b) noexcept nogil:
    cdef uint16_t ready = <uint16_t>(look16(r.driver + 2) - r.seen), flags = NEXT
    cdef uint32_t index, _
    cdef uint8_t *entry
    if ready == 0 or ready > r.size:
        return False
    index = b.id = (<uint16_t *>(r.driver + 4))[r.seen % r.size] % r.size
    r.seen = <uint16_t>(r.seen + 1)
    entry = descriptor(r, index)
    b.addr, b.length, b.count = (<uint64_t *>entry)[0], (<uint32_t *>entry)[2], 1
    b.total = 0
    for _ in range(WALK):
        entry = descriptor(r, index)
        flags, index = (<uint16_t *>entry)[6], (<uint16_t *>entry)[7]
        _look(m, b, entry, flags)
        if not flags & NEXT:
            break
    return True


cdef inline bint _take_packed(Memory *m, Ring *r, Buffer *b) noexcept nogil:
    cdef uint8_t *entry = descriptor(r, r.seen)
    cdef uint16_t flags = look16(entry + 14)
    cdef bint wrap = r.seen < r.size
    if (flags & AVAIL != 0) != wrap or (flags & USED != 0) == wrap:
        return False
    b.addr, b.length, b.count = (<uint64_t *>entry)[0], (<uint32_t *>entry)[2], 0
    b.total = 0
    while b.count < r.size:
        entry = descriptor(r, r.seen + b.count)
        b.count += 1
        b.id, flags = (<uint16_t *>entry)[6], (<uint16_t *>entry)[7]
        _look(m, b, entry, flags)
        if not flags & NEXT:
            break
    r.seen = (r.seen + b.count) % (2 * r.size)
    return True


cdef inline void use(Ring *r, uint32_t id, uint32_t length, uint32_t count) noexcept nogil:
    """Write a used entry; `show` lets the driver see it."""
    cdef uint64_t word
    cdef uint64_t *entry
    r.last = <uint16_t>id
    if not r.packed:
        entry = <uint64_t *>(r.device + 4 + 8 * <uint64_t>(r.used % r.size))
        entry[0] = id | <uint64_t>length << 32
        r.used = <uint16_t>(r.used + 1)
        return
    word = length | <uint64_t><uint16_t>id << 32 | (<uint64_t>WRITE << 48 if length else 0)
    if r.used < r.size:
        word |= <uint64_t>(AVAIL | USED) << 48
    entry = <uint64_t *>descriptor(r, r.used) + 1
    if r.held == NULL:
        r.held, r.held_word = entry, word
    else:
        show64(entry, word)
    r.used = (r.used + count) % (2 * r.size)


cdef inline uint32_t show(Ring *r) noexcept nogil:
    """Publish what was used; how many steps that was."""
    if r.packed:
        if r.held == NULL:
            return 0
        show64(r.held, r.held_word)
        r.held = NULL
        return 1
    if r.shown == r.used:
        return 0
    r.shown = r.used
    show16(r.device + 2, r.shown)
    return 1
