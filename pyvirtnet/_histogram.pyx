"""Log-linear histograms: percentiles of any number of values, in 18 KiB, within 1.6 %."""

cimport cython

from libc.math cimport ceil
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset


cdef uint64_t _lowest(uint32_t bucket) noexcept:
    """The smallest value that counts in a bucket."""
    cdef uint32_t shift
    if bucket < EXACT:
        return bucket
    shift = bucket // HALF - 1
    return <uint64_t>(bucket - shift * HALF) << shift


@cython.auto_pickle(False)
cdef class Histogram:
    """Counts of values from 0 to 2**40: those below 128 exactly, larger ones within 1.6 %."""

    def __cinit__(self):
        self.clear()

    def clear(self):
        """Forget all values."""
        self.count = self.total = self.high = 0
        self.low = ~<uint64_t>0
        memset(self.buckets, 0, sizeof(self.buckets))

    def record(self, uint64_t value):
        """Count one value."""
        self.add(value)

    def merge(self, Histogram other not None):
        """Count all values of another one, too."""
        cdef uint32_t i
        for i in range(BUCKETS):
            self.buckets[i] += other.buckets[i]
        self.count += other.count
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def minimum(self):
        return self.low if self.count else 0

    @property
    def maximum(self):
        return self.high

    @property
    def mean(self):
        return self.total / self.count if self.count else 0.0

    def percentile(self, double percent):
        """The value that so many percent of all do not exceed; 0 if there is none."""
        cdef uint64_t wanted, seen = 0
        cdef uint32_t i
        if not 0 <= percent <= 100:
            raise ValueError(f"{percent} is not a percentage")
        if self.count == 0:
            return 0
        wanted = max(1, <uint64_t>ceil(percent * <double>self.count / 100 - 1e-6))
        for i in range(BUCKETS - 1):
            seen += self.buckets[i]
            if seen >= wanted:
                return max(self.low, min(self.high, _lowest(i + 1) - 1))
        return self.high

    def buckets_used(self):
        """(lowest value, count) of each bucket that is not empty."""
        cdef uint32_t i
        return [(_lowest(i), self.buckets[i]) for i in range(BUCKETS) if self.buckets[i]]

    def __repr__(self):
        return f"<Histogram: {self.count} values>"
