"""How a probe lies in its frame, and the sums and patterns that both its ends reckon with."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    MAGIC = 0x4E56              # as it lies in memory: "VN"
    CHECK_AT = 4
    VARIED_AT = 6               # stream, number and time: what changes from send to send
    VARIED = 12
    PATTERN_AT = 18
    STREAM_SHIFT = 48           # in a checker's sequence numbers

cdef extern from *:
    """
    #include <endian.h>
    #define PROBE_GOLDEN 0x9E3779B97F4A7C15ULL
    #define PROBE_TIME ((1ULL << 40) - 1)
    #define PROBE_NUMBER ((1ULL << 40) - 1)
    """
    const uint64_t GOLDEN "PROBE_GOLDEN"
    const uint64_t TIME_MASK "PROBE_TIME"
    const uint64_t NUMBER_MASK "PROBE_NUMBER"
    uint64_t htobe64(uint64_t) nogil
    uint64_t be64toh(uint64_t) nogil
    uint32_t htobe32(uint32_t) nogil
    uint32_t be32toh(uint32_t) nogil
    uint16_t htobe16(uint16_t) nogil


cdef inline uint64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    total = <uint64_t><uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16 & 0xFFFF) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>((total & 0xFFFF) + (total >> 16))


cdef inline uint64_t load(const uint8_t *at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return word


cdef inline uint64_t sum_of(const uint8_t *at, uint32_t pairs) noexcept nogil:
    """Of 16-bit words in the machine's order: Internet sums don't care."""
    cdef uint64_t total = 0
    cdef uint16_t word
    cdef uint32_t i
    for i in range(pairs):
        memcpy(&word, at + 2 * i, 2)
        total += word
    return total


cdef inline uint64_t first_word(uint16_t seed) noexcept nogil:
    cdef uint64_t x = (<uint64_t>seed + 1) * GOLDEN
    return (x ^ (x >> 29)) * GOLDEN | 1


cdef inline uint64_t pattern_sum(uint16_t seed, uint32_t length) noexcept nogil:
    """The sum of a whole pattern, unfolded."""
    cdef uint64_t word = first_word(seed), low = 0, high = 0
    cdef uint32_t _
    for _ in range(length >> 3):
        low += <uint32_t>word
        high += word >> 32
        word += GOLDEN
    if length & 7:
        word &= (<uint64_t>1 << 8 * (length & 7)) - 1
        low += <uint32_t>word
        high += word >> 32
    return <uint64_t>fold(low) + fold(high)


cdef inline bint matches(
    uint16_t seed, uint32_t k, const uint8_t *at, uint32_t length
) noexcept nogil:
    """Whether these are the pattern's bytes from the `k`-th on."""
    cdef uint64_t word = first_word(seed) + GOLDEN * (k >> 3), differs = 0
    cdef uint32_t i, words
    while length and k & 7:
        differs |= at[0] ^ (word >> 8 * (k & 7) & 0xFF)
        at, k, length = at + 1, k + 1, length - 1
        if k & 7 == 0:
            word += GOLDEN
    words = length >> 3
    for i in range(words):
        differs |= load(at + 8 * i) ^ word
        word += GOLDEN
    for i in range(length & 7):
        differs |= at[8 * words + i] ^ (word >> 8 * i & 0xFF)
    return differs == 0
