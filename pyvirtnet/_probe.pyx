"""Probes: frames with a number and the time of sending behind whatever headers they have.

A probe's payload, which begins `at` bytes into the frame, behind Ethernet, VLAN tags, IPv4 or IPv6,
and UDP, TCP or ICMP, as far as it has them:
    0   magic     uint16
    2   seed      uint16   of the pattern, another one in each row
    4   check     uint16   makes the Internet sum of payload and its length 0xffff, so that
                           checksums of headers stay as they are, whatever number a probe has
    6   stream    uint16
    8   number    40 bits
    13  time      40 bits  nanoseconds of CLOCK_MONOTONIC
    18  pattern            64-bit words that follow from the seed, to the frame's end
numbers in network order, the pattern in the machine's. A fragment that is stale, swapped or
another frame's breaks the pattern.
"""

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._burst cimport TxBurst
from ._pages cimport Store, heads

PROBE_BYTES = PATTERN_AT
NUMBERS = NUMBER_MASK + 1       # probes of a stream


cdef struct Table:
    uint32_t length             # of the frames that it is for
    uint32_t flows
    const uint8_t *rows


@cython.final
@cython.auto_pickle(False)
cdef class Probes:
    """What the probes of a stream have in common: their headers, in turn.

    tables  {frame length: uint8[flows, at]}: probe `number` begins with row number % flows
    stream  0 to 65535, of all probes
    Raises ValueError if the tables are not all `at` bytes wide, which is even, or are empty.
    """

    cdef readonly uint32_t at           # where payload begins
    cdef readonly uint64_t stream
    cdef list held
    cdef Table *tables
    cdef uint32_t sizes

    def __init__(self, tables, uint16_t stream):
        cdef const uint8_t[:, ::1] rows
        cdef uint32_t i
        tables = dict(tables)
        if self.tables != NULL or not tables:
            raise ValueError("probes need a table of headers, once")
        self.stream = stream
        self.held = []
        self.tables = <Table *>malloc(len(tables) * sizeof(Table))
        if self.tables == NULL:
            raise MemoryError
        for length, table in tables.items():
            rows, i = table, self.sizes
            self.held.append(rows)  # and nobody resizes it
            width = rows.shape[1] if i == 0 else self.at
            if rows.shape[0] < 1 or rows.shape[1] != width or not 14 <= width < 65536 or width & 1:
                raise ValueError("headers are tables of rows of one even width")
            self.at = width
            self.tables[i].length = length
            self.tables[i].flows = rows.shape[0]
            self.tables[i].rows = &rows[0, 0]
            self.sizes = i + 1

    def __dealloc__(self):
        free(self.tables)

    def prepare(self, TxBurst burst not None, uint32_t seed):
        """Make probes of the rows of `burst`: patterns from `seed` on, one a row.

        Raises ValueError, and writes nothing, if a row has no room for one.
        """
        cdef Store *store = burst.store
        cdef uint32_t frame
        cdef Py_ssize_t i
        self._check_tables()
        for i in range(burst.count):
            if store.lengths[burst.frame(i)] < self.at + PATTERN_AT:
                raise ValueError(f"frame {i} has {store.lengths[burst.frame(i)]} bytes; a probe "
                                 f"with these headers needs {self.at + PATTERN_AT}")
        for i in range(burst.count):
            frame = burst.frame(i)
            _fill(heads(store) + <size_t>frame * store.stride + self.at,
                  max(store.lengths[frame], self.at + <uint32_t>PATTERN_AT) - self.at,
                  <uint16_t>(seed + <uint32_t>i))

    def number(self, TxBurst burst not None, uint64_t first):
        """Write headers, numbers from `first` on, and the time, into rows that were prepared.

        Raises ValueError, and writes nothing, if a row has become too short.
        """
        cdef Store *store = burst.store
        cdef uint64_t time = now() & TIME_MASK
        cdef Py_ssize_t i
        self._check_tables()
        for i in range(burst.count):
            if store.lengths[burst.frame(i)] < self.at + PATTERN_AT:
                raise ValueError(f"frame {i} has become too short for a probe")
        with nogil:
            for i in range(burst.count):
                self._one(store, burst.frame(i), first + <uint64_t>i, time)

    cdef int _check_tables(self) except -1:
        if self.sizes == 0:
            raise TypeError("probes are used after they were made")
        return 0

    cdef inline void _one(
        self, Store *store, uint32_t frame, uint64_t number, uint64_t time
    ) noexcept nogil:
        cdef uint8_t *row = heads(store) + <size_t>frame * store.stride
        cdef Table *table = self.tables
        cdef uint32_t length = store.lengths[frame], i
        for i in range(self.sizes):
            if self.tables[i].length == length:
                table = &self.tables[i]
        memcpy(row, table.rows + (number % table.flows) * self.at, self.at)
        _renumber(row + self.at, self.stream, number, time)


cdef void _fill(uint8_t *at, uint32_t length, uint16_t seed) noexcept nogil:
    """A payload with the number and time 0."""
    cdef uint64_t word = first_word(seed), total
    cdef uint16_t magic = MAGIC, check = 0
    cdef uint32_t k = PATTERN_AT
    memcpy(at, &magic, 2)
    memcpy(at + 2, &seed, 2)
    memset(at + CHECK_AT, 0, PATTERN_AT - CHECK_AT)
    while k + 8 <= length:
        memcpy(at + k, &word, 8)
        word += GOLDEN
        k += 8
    memcpy(at + k, &word, length - k)
    total = pattern_sum(seed, length - PATTERN_AT) + htobe16(<uint16_t>length)
    check = ~fold(total + sum_of(at, PATTERN_AT // 2))
    memcpy(at + CHECK_AT, &check, 2)


cdef inline void _renumber(
    uint8_t *at, uint64_t stream, uint64_t number, uint64_t time
) noexcept nogil:
    """The check follows from how the rest changes (RFC 1624, equation 3)."""
    cdef uint64_t high
    cdef uint32_t low
    cdef uint64_t old = sum_of(at + VARIED_AT, VARIED // 2)
    cdef uint16_t check
    number &= NUMBER_MASK
    high = htobe64(stream << 48 | number << 8 | time >> 32)
    low = htobe32(<uint32_t>time)
    memcpy(at + VARIED_AT, &high, 8)
    memcpy(at + VARIED_AT + 8, &low, 4)
    memcpy(&check, at + CHECK_AT, 2)
    check = ~fold(<uint64_t>(<uint16_t>~check) + (0xFFFF ^ fold(old))
                  + sum_of(at + VARIED_AT, VARIED // 2))
    memcpy(at + CHECK_AT, &check, 2)
