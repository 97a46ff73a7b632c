"""The receiving end of probes: what of them came, whole, once, in order, and how long it took."""

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ._burst cimport Burst
from ._cursor cimport Cursor, begin, next_piece, skip
from ._histogram cimport Histogram
from ._pages cimport Store
from ._probe cimport (
    MAGIC, NUMBER_MASK, PATTERN_AT, STREAM_SHIFT, TIME_MASK, VARIED_AT,
    be32toh, be64toh, fold, htobe16, matches, now, pattern_sum, sum_of,
)
from ._stamp cimport Checker

cdef enum:
    CHUNK = 64                  # frames verified between two looks at the interpreter
    FOREIGN = 0
    CORRUPT = 1
    INTACT = 2


cdef inline uint32_t _be16(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 8 | at[1]


cdef uint32_t _payload_at(const uint8_t *head, uint32_t linear) noexcept nogil:
    """Where the payload begins; past `linear` if the headers do not end there."""
    cdef uint32_t at = 12, kind, protocol
    if linear < 14:
        return linear + 1
    kind = _be16(head + at)
    while (kind == 0x8100 or kind == 0x88A8) and at + 6 <= linear:
        at += 4
        kind = _be16(head + at)
    at += 2
    if kind == 0x0800 and at + 20 <= linear:
        protocol = head[at + 9]
        at += <uint32_t>(head[at] & 15) * 4
    elif kind == 0x86DD and at + 40 <= linear:
        protocol = head[at + 6]
        at += 40
    else:
        return at
    if protocol == 17 or protocol == 1 or protocol == 58:
        return at + 8
    if protocol == 6:
        return at + (head[at + 12] >> 4) * 4 if at + 20 <= linear else linear + 1
    return at


def payload_at(frame):
    """Where a frame's payload begins, which is behind the headers that are known here."""
    cdef bytes content = bytes(frame)
    return _payload_at(content, len(content))


cdef int _verify(
    const Store *store, uint32_t frame, uint64_t *sequence, uint64_t *time
) noexcept nogil:
    """FOREIGN, CORRUPT or INTACT, and then number and time. Test frames' type or magic says so."""
    cdef Cursor cursor
    cdef uint32_t length = begin(&cursor, store, frame), at, low, k
    cdef const uint8_t *head = cursor.at
    cdef uint64_t total, high
    cdef uint16_t magic = 0, seed
    cdef bint typed = cursor.here >= 14 and head[12] == 0x88 and head[13] == 0xB5
    at = _payload_at(head, cursor.here)
    if at + PATTERN_AT > cursor.here:
        return CORRUPT if typed else FOREIGN
    memcpy(&magic, head + at, 2)
    if magic != MAGIC:
        return CORRUPT if typed else FOREIGN
    memcpy(&seed, head + at + 2, 2)
    memcpy(&high, head + at + VARIED_AT, 8)
    memcpy(&low, head + at + VARIED_AT + 8, 4)
    k = length - at - PATTERN_AT
    total = sum_of(head + at, PATTERN_AT // 2) + pattern_sum(seed, k)
    if fold(total + htobe16(<uint16_t>(length - at))) != 0xFFFF:
        return CORRUPT
    skip(&cursor, at + PATTERN_AT)
    k = 0
    while True:
        if not matches(seed, k, cursor.at, cursor.here):
            return CORRUPT
        k += cursor.here
        if not next_piece(&cursor):
            break
    high = be64toh(high)
    sequence[0] = high >> 48 << STREAM_SHIFT | (high >> 8 & NUMBER_MASK)
    time[0] = (high & 0xFF) << 32 | be32toh(low)
    return INTACT


@cython.auto_pickle(False)
cdef class Meter(Checker):
    """Verifies and counts probes as a `Checker` does its frames, and takes their latency.

    latency  a Histogram of nanoseconds from `number` to `check`, of intact probes when they come
             first; means something where both clocks are one: on the same machine
    jitter   the mean difference between the latencies of two probes in a row, in nanoseconds
    """

    cdef readonly Histogram latency
    cdef uint64_t before, differences, compared

    def __cinit__(self, *_, **__):
        self.latency = Histogram()  # never None: `check` does not look

    def __init__(self, first=None):
        Checker.__init__(self, first)
        self.latency = Histogram()
        self.before = self.differences = self.compared = 0

    def check(self, Burst burst not None):
        """Verify and count every frame of `burst`; how many are intact probes of the stream."""
        cdef uint64_t sequences[CHUNK]
        cdef uint64_t times[CHUNK]
        cdef int verdicts[CHUNK]
        cdef Store *store = burst.store
        cdef uint64_t arrived = now(), before = self.received
        cdef Py_ssize_t done = 0, count, i
        while done < burst.count:
            count = min(<Py_ssize_t>CHUNK, burst.count - done)
            with nogil:
                for i in range(count):
                    verdicts[i] = _verify(store, burst.frame(done + i), &sequences[i], &times[i])
            for i in range(count):  # with the lock: no two threads count at once
                if verdicts[i] == CORRUPT:
                    self.corrupt += 1
                elif verdicts[i] == FOREIGN or not self._is_ours(sequences[i]):
                    self.foreign += 1
                    self.astray += verdicts[i] == INTACT
                else:
                    self.received += 1
                    self.bytes += store.lengths[burst.frame(done + i)]
                    self._count(sequences[i])
                    self._time((arrived - times[i]) & TIME_MASK)
            done += count
        return self.received - before

    cdef inline void _time(self, uint64_t latency) noexcept:
        if self.latency.count:
            self.differences += max(latency, self.before) - min(latency, self.before)
            self.compared += 1
        self.before = latency
        self.latency.add(latency)

    @property
    def jitter(self):
        return self.differences / self.compared if self.compared else 0.0
