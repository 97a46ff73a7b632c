"""Pages, head slots and burst storage: taking, giving back, counting who holds."""

cimport cython

from cpython.ref cimport Py_XDECREF
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from ._barrier cimport copy_head, drop, hold, lock, locked, poke32, publish, unlock

cdef extern from *:
    int ctz "__builtin_ctzll"(unsigned long long) noexcept nogil
    int clz "__builtin_clz"(unsigned int) noexcept nogil

cdef extern from "pthread.h":
    int pthread_atfork(void (*before)() noexcept, void (*parent)() noexcept,
                       void (*child)() noexcept)

# Memory that nobody holds is out of bounds: a view that outlived its burst is found so.
cdef extern from "_poison.h" nogil:
    void poison "vn_poison"(const void *address, size_t size) noexcept
    void unpoison "vn_unpoison"(const void *address, size_t size) noexcept


# ---- pages -------------------------------------------------------------------------------------

cdef uint32_t take_pages(Pool *pool, uint32_t *into, uint32_t want) noexcept nogil:
    """Up to `want` free pages; how many there were."""
    cdef uint32_t i
    lock(&pool.lock)
    want = min(want, pool.nfree)
    for i in range(want):
        pool.nfree -= 1
        into[i] = pool.free[pool.nfree]
        unpoison(page_address(pool, into[i]), PAGE_BYTES)
    unlock(&pool.lock)
    return want


cdef void give_pages(Pool *pool, const uint32_t *pages, uint32_t count) noexcept nogil:
    cdef uint32_t i
    lock(&pool.lock)
    for i in range(count):
        _give_page(pool, pages[i])
    unlock(&pool.lock)


cdef inline void _give_page(Pool *pool, uint32_t page) noexcept nogil:
    poison(page_address(pool, page), PAGE_BYTES)
    pool.free[pool.nfree] = page
    pool.nfree += 1


# ---- head slots --------------------------------------------------------------------------------

cdef uint32_t _next_free(const Pool *pool, uint32_t slot) noexcept nogil:
    """The first free slot from `slot` on; nslots if there is none."""
    cdef uint32_t word = slot >> 6
    cdef uint64_t bits
    if slot >= pool.nslots:
        return pool.nslots
    bits = pool.slot_map[word] & (~<uint64_t>0 << (slot & 63))
    while bits == 0:
        word += 1
        if word >= pool.nslots >> 6:
            return pool.nslots
        bits = pool.slot_map[word]
    return (word << 6) + ctz(bits)


cdef uint32_t _run(const Pool *pool, uint32_t slot, uint32_t want) noexcept nogil:
    """How many slots from `slot` on are free, counted up to `want`."""
    cdef uint32_t length = 0, here
    cdef uint64_t taken
    while length < want and slot + length < pool.nslots:
        here = slot + length
        taken = ~pool.slot_map[here >> 6] >> (here & 63)
        if taken:
            length += ctz(taken)
            break
        length += 64 - (here & 63)
    return min(length, want)


cdef void _mark(Pool *pool, uint32_t first, uint32_t count, bint is_free) noexcept nogil:
    cdef uint32_t bit, here
    cdef uint64_t mask
    while count:
        bit = first & 63
        here = min(count, 64 - bit)
        mask = (~<uint64_t>0 >> (64 - here)) << bit
        if is_free:
            pool.slot_map[first >> 6] |= mask
        else:
            pool.slot_map[first >> 6] &= ~mask
        first += here
        count -= here


cdef inline uint8_t *_head(const Pool *pool, uint32_t slot) noexcept nogil:
    return pool.slots + <size_t>slot * SLOT_STRIDE + SLOT_HEAD


cdef uint32_t take_slots(Pool *pool, uint32_t want, uint32_t *first) noexcept nogil:
    """A run of `want` free slots, the lowest there is; failing that the longest run."""
    cdef uint32_t best = 0, slot, length
    lock(&pool.lock)
    slot = _next_free(pool, pool.first_word << 6)
    pool.first_word = slot >> 6
    while slot < pool.nslots:
        length = _run(pool, slot, want)
        if length > best:
            best = length
            first[0] = slot
            if best == want:
                break
        slot = _next_free(pool, slot + length)
    if best:
        _mark(pool, first[0], best, False)
        for slot in range(first[0], first[0] + best):
            unpoison(_head(pool, slot), HEAD_BYTES)
    unlock(&pool.lock)
    return best


cdef void give_slots(Pool *pool, uint32_t first, uint32_t count) noexcept nogil:
    cdef uint32_t slot
    if count == 0:
        return
    lock(&pool.lock)
    for slot in range(first, first + count):
        poison(_head(pool, slot), HEAD_BYTES)
    _mark(pool, first, count, True)
    pool.first_word = min(pool.first_word, first >> 6)
    unlock(&pool.lock)


cdef uint32_t _generation = 0


cdef void _disown_stores() noexcept nogil:
    """In a forked child: what stores hold is the parent's DMA memory, a mere copy of it here.

    And pools may be as another thread left them, which was in the middle of something.
    """
    global _generation
    _generation += 1


if pthread_atfork(NULL, NULL, _disown_stores):
    raise MemoryError


cdef bint is_ours(const Store *store) noexcept nogil:
    """Does it lie in memory that devices of this process see?"""
    return store.generation == _generation


# ---- stores ------------------------------------------------------------------------------------

cdef Store *take_store(Pool *pool, uint32_t frames) noexcept nogil:
    """An empty store for up to `frames` frames, held once; NULL without memory."""
    cdef uint32_t size_class = 0 if frames <= 1 else 32 - clz(frames - 1)
    cdef Store *store
    lock(&pool.lock)
    store = pool.stores[size_class]
    if store != NULL:
        pool.stores[size_class] = store.next
    unlock(&pool.lock)
    if store == NULL:
        store = _allocate_store(1 << size_class, True)
        if store == NULL:
            return NULL
        store.capacity_class = size_class
        store.pool = pool
    store.refs = 1
    store.nframes = store.nfrags = store.nslots = store.unseen = 0
    return store


cdef Store *_allocate_store(uint32_t frames, bint received) noexcept nogil:
    cdef size_t words = frames * (1 + <size_t>received)
    cdef Store *store = <Store *>calloc(1, sizeof(Store) + words * sizeof(uint32_t))
    if store != NULL:
        store.lengths = <uint32_t *>(store + 1)
        store.pages = store.lengths + frames
        store.generation = _generation
    return store


cdef Store *new_linear_store(uint32_t frames) noexcept nogil:
    """A store whose frames lie in memory of their own: no pages, no slots, no pool."""
    cdef Store *store = _allocate_store(frames, False)
    if store != NULL:
        store.refs = 1
        store.nframes = frames
    return store


cdef bint attach_frags(Store *store, uint32_t frame) noexcept nogil:
    """Room for fragments, from `frame` on; frames before it have none. False without memory."""
    cdef Pool *pool = store.pool
    cdef size_t begins = (<size_t>pool.max_frags + 2) & ~<size_t>1
    cdef void *block
    cdef uint32_t i
    lock(&pool.lock)
    block = pool.frag_blocks
    if block != NULL:
        pool.frag_blocks = (<void **>block)[0]
    unlock(&pool.lock)
    if block == NULL:
        block = malloc(begins * sizeof(uint32_t) + pool.max_frags * sizeof(Frag))
        if block == NULL:
            return False
    store.begin = <uint32_t *>block
    store.frags = <Frag *>(store.begin + begins)
    for i in range(frame + 1):
        store.begin[i] = 0
    return True


cdef bint attach_headers(Store *store) noexcept nogil:
    """A private header for each frame, all zeroes. False without memory."""
    cdef size_t frames = store.nframes if store.pool == NULL else <size_t>1 << store.capacity_class
    store.headers = <Header *>calloc(max(frames, <size_t>1), sizeof(Header))
    return store.headers != NULL


cdef void hold_slots(Store *store, uint32_t first, uint32_t count) noexcept nogil:
    """The store's heads are `count` head slots of its pool, from `first` on."""
    store.slot, store.nslots = first, count
    store.stride, store.head_room = SLOT_STRIDE, HEAD_BYTES
    store.first_head = _head(store.pool, first)
    store.header_iova = (store.pool.slots_iova + <uint64_t>first * SLOT_STRIDE
                         + SLOT_HEAD - HEADER_BYTES)


cdef void hold_late(Store *store) noexcept nogil:
    """The ring holds the store too, as its heads lie in their pages."""
    hold(&store.refs, 1)
    store.listed, store.unseen = True, LATE


cdef void look_at(Store *store) noexcept nogil:
    """Somebody asks for the heads: late ones are copied now, those of the next bursts at once."""
    poke32(&store.pool.unseen, 0)
    if store.unseen == UNSEEN:
        publish(&store.unseen, 0)
    elif not is_ours(store):  # in a forked child the lock is as somebody left it
        _copy_heads(store)
    else:
        lock(&store.pool.lock)  # two may come at the same time
        _copy_heads(store)
        unlock(&store.pool.lock)


cdef void _copy_heads(Store *store) noexcept nogil:
    cdef uint32_t i
    if store.unseen == LATE:
        for i in range(store.nframes):
            copy_head(store.first_head + <size_t>i * SLOT_STRIDE,
                      page_address(store.pool, store.pages[i]) + HEADER_BYTES, store.lengths[i])
        publish(&store.unseen, 0)


cdef void drop_store(Store *store, uint32_t by) noexcept:
    """`by` holders less. The last one frees: pages and slots to their pool, memory to its owner."""
    cdef Pool *pool = store.pool
    cdef PyObject *owner = store.owner
    if drop(&store.refs, by) != 0:
        return
    if store.headers != NULL:
        free(store.headers)
        store.headers = NULL
    if pool == NULL or not is_ours(store):
        free(store.begin)
        free(store)
    else:
        _give_back(store, pool)
    Py_XDECREF(owner)  # last: it may be what keeps the pool itself


cdef void _give_back(Store *store, Pool *pool) noexcept nogil:
    cdef uint32_t i
    give_slots(pool, store.slot, store.nslots)
    lock(&pool.lock)
    if store.begin != NULL:
        for i in range(store.nfrags):
            _give_page(pool, store.frags[i].page)
        (<void **>store.begin)[0] = pool.frag_blocks
        pool.frag_blocks = store.begin
        store.begin = NULL
        store.frags = NULL
    store.owner = NULL
    store.next = pool.stores[store.capacity_class]
    pool.stores[store.capacity_class] = store
    unlock(&pool.lock)


# ---- the pool ----------------------------------------------------------------------------------

@cython.auto_pickle(False)
cdef class PagePool:
    """Pages and head slots of one queue pair, in one DMA region.

    The region lies at least `bytes_needed(pages, slots)` long from `offset` on. Slots are a
    multiple of 64. The pool lives until the last burst that holds any of it is gone.
    """

    @staticmethod
    def bytes_needed(uint32_t pages, uint32_t slots):
        return <size_t>slots * SLOT_STRIDE + <size_t>pages * PAGE_STRIDE

    def __init__(self, region, size_t offset, uint32_t pages, uint32_t slots, uint32_t max_frags):
        cdef Pool *pool = &self.pool
        if slots == 0 or slots % 64 or pages == 0 or max_frags == 0:
            raise ValueError("a pool needs pages, and head slots in multiples of 64")
        if offset + PagePool.bytes_needed(pages, slots) > region.size or pool.free != NULL:
            raise ValueError("the region is too small for the pool")
        self.region, self.offset = region, offset
        pool.npages, pool.nslots, pool.max_frags = pages, slots, max_frags
        pool.slots = <uint8_t *><size_t>region.address + offset
        pool.slots_iova = region.iova + offset
        pool.pages = pool.slots + <size_t>slots * SLOT_STRIDE + PAGE_LEAD
        pool.pages_iova = pool.slots_iova + <uint64_t>slots * SLOT_STRIDE + PAGE_LEAD
        pool.free = <uint32_t *>malloc(pages * sizeof(uint32_t))
        pool.slot_map = <uint64_t *>malloc(slots // 8)
        if pool.free == NULL or pool.slot_map == NULL:
            raise MemoryError
        memset(pool.slot_map, 0xFF, slots // 8)
        for page in range(pages - 1, -1, -1):  # the first page is taken first
            _give_page(pool, page)
        for slot in range(slots):
            poison(_head(pool, slot), HEAD_BYTES)

    def clear_headers(self):
        """Every head slot's virtio header is zero again: a device may have written there."""
        cdef uint32_t slot
        for slot in range(self.pool.nslots):
            memset(_head(&self.pool, slot) - MOST_HEADER_BYTES, 0, MOST_HEADER_BYTES)

    def __dealloc__(self):
        cdef Store *store
        cdef void *block
        unpoison(self.pool.slots, PagePool.bytes_needed(self.pool.npages, self.pool.nslots))
        free(self.pool.free)
        free(self.pool.slot_map)
        if locked(&self.pool.lock):  # a fork caught another thread among the lists
            return
        for i in range(STORE_CLASSES):
            while self.pool.stores[i] != NULL:
                store = self.pool.stores[i]
                self.pool.stores[i] = store.next
                free(store)
        while self.pool.frag_blocks != NULL:
            block = self.pool.frag_blocks
            self.pool.frag_blocks = (<void **>block)[0]
            free(block)

    def _locked(self, bint held):
        """For tests: as if another thread were in the middle of the pool."""
        if held:
            lock(&self.pool.lock)
        else:
            unlock(&self.pool.lock)

    @property
    def pages(self) -> int:
        return self.pool.npages

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds: neither the device nor a burst."""
        return self.pool.nfree

    @property
    def slots(self) -> int:
        return self.pool.nslots

    @property
    def free_slots(self) -> int:
        cdef uint32_t word, count = 0
        cdef uint64_t bits
        for word in range(self.pool.nslots >> 6):
            bits = self.pool.slot_map[word]
            while bits:
                bits &= bits - 1
                count += 1
        return count
