"""A log-linear histogram's buckets, and the one step that counts a value."""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    EXACT = 128                 # values below have a bucket each;
    HALF = 64                   # above, each power of two has so many: 1.6 % wide at most
    TOP_BITS = 40               # larger values count as the largest
    BUCKETS = (TOP_BITS - 7 + 1) * HALF + HALF

cdef extern from *:
    int __builtin_clzll(unsigned long long) noexcept nogil


cdef inline uint32_t bucket_of(uint64_t value) noexcept nogil:
    cdef uint32_t shift
    if value < EXACT:
        return <uint32_t>value
    if value >> TOP_BITS:
        return BUCKETS - 1
    shift = 57 - __builtin_clzll(value)
    return shift * HALF + <uint32_t>(value >> shift)


cdef class Histogram:
    cdef readonly uint64_t count
    cdef readonly uint64_t total        # the values' sum
    cdef uint64_t low, high
    cdef uint64_t buckets[BUCKETS]

    cdef inline void add(self, uint64_t value) noexcept:
        self.buckets[bucket_of(value)] += 1
        self.count += 1
        self.total += value
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
