"""Sequence numbers and checksums, written into frames to be sent, verified in frames received.

A stamped frame carries, behind the Ethernet header, which is its sender's:
    14  magic      uint16
    16  sequence   uint64   a stream's number in the upper 16 bits, the frame's in the lower 48
    24  checksum   uint64   over every byte of the frame and its length, itself taken as zero
    32  pattern    64-bit words that follow from the sequence, to the frame's end
all in the byte order of the machine. The pattern makes frames differ in every word: a fragment
that is stale, swapped or another frame's does not pass for the right one.
"""

cimport cython

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._burst cimport Burst, TxBurst
from ._pages cimport Frag, Store, heads, page_address

ETHERTYPE = 0x88B5              # IEEE 802's first one for local experiments
MIN_STAMPED = STAMP_END
STREAM = 1 << 48                # the distance between two streams' first sequence numbers

cdef enum:
    _MAGIC = 0x4E56
    MAGIC_AT = 14
    SEQUENCE_AT = 16
    CHECKSUM_AT = 24
    STAMP_END = 32
    STREAM_SHIFT = 48
    CHUNK = 64                  # frames verified between two looks at the interpreter

cdef enum:
    FOREIGN = 0
    CORRUPT = 1
    INTACT = 2

cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15


# ---- the checksum ------------------------------------------------------------------------------

cdef struct Sum:
    # Of 64-bit words: their sum, and the sum of its values on the way, so that places count.
    uint64_t plain
    uint64_t placed
    uint8_t part[8]             # a word that pieces of the frame share
    uint32_t have


cdef inline uint64_t _word(const uint8_t *at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return word


cdef inline uint64_t _mix(uint64_t x) noexcept nogil:
    """Every bit of the result depends on every bit of `x`; one to one."""
    x = (x ^ (x >> 32)) * GOLDEN
    x = (x ^ (x >> 29)) * GOLDEN
    return x ^ (x >> 32)


cdef inline void _add(Sum *sum, uint64_t word) noexcept nogil:
    sum.plain += word
    sum.placed += sum.plain


cdef inline void _add_bytes(Sum *sum, const uint8_t *at, size_t length) noexcept nogil:
    """The next piece of a frame; pieces may end inside a word."""
    cdef uint64_t plain, placed
    cdef size_t words, i
    while sum.have and length:
        sum.part[sum.have] = at[0]
        sum.have = (sum.have + 1) & 7
        at, length = at + 1, length - 1
        if sum.have == 0:
            _add(sum, _word(sum.part))
    plain, placed, words = sum.plain, sum.placed, length >> 3
    for i in range(words):
        plain += _word(at + 8 * i)
        placed += plain
    sum.plain, sum.placed = plain, placed
    if length & 7:
        memcpy(sum.part, at + 8 * words, length & 7)
        sum.have = length & 7


cdef inline uint64_t _finish(Sum *sum, uint32_t length) noexcept nogil:
    if sum.have:
        memset(sum.part + sum.have, 0, 8 - sum.have)
        _add(sum, _word(sum.part))
    return _mix(sum.placed + _mix(sum.plain + length))


cdef inline void _begin(Sum *sum, const uint8_t *head) noexcept nogil:
    """The words before the pattern, the checksum's own as zero."""
    sum.plain = sum.placed = 0
    sum.have = 0
    _add_bytes(sum, head, CHECKSUM_AT)
    _add(sum, 0)


# ---- sending -----------------------------------------------------------------------------------

cdef void _stamp_row(uint8_t *row, uint32_t length, uint64_t sequence) noexcept nogil:
    """Write all of a row but its first 14 bytes, which are summed as they are."""
    cdef uint16_t magic = _MAGIC
    cdef uint64_t word = _mix(sequence + 1), sum_word
    cdef uint32_t at = STAMP_END
    cdef Sum sum
    memcpy(row + MAGIC_AT, &magic, 2)
    memcpy(row + SEQUENCE_AT, &sequence, 8)
    _begin(&sum, row)
    while at + 8 <= length:
        memcpy(row + at, &word, 8)
        _add(&sum, word)
        word += GOLDEN
        at += 8
    if at < length:
        memcpy(row + at, &word, length - at)
        _add_bytes(&sum, row + at, length - at)
    sum_word = _finish(&sum, length)
    memcpy(row + CHECKSUM_AT, &sum_word, 8)


def stamp(TxBurst burst not None, uint64_t first):
    """Make test frames of the rows of `burst`, numbered from `first` on.

    All but their first 14 bytes is written; those must be what is to be sent, for the checksum
    covers them. Raises ValueError, and writes nothing, if a row is shorter than MIN_STAMPED.
    """
    cdef Store *store = burst.store
    cdef Py_ssize_t i
    cdef uint32_t frame, length
    for i in range(burst.count):
        if store.lengths[burst.frame(i)] < STAMP_END:
            raise ValueError(f"frame {i} has {store.lengths[burst.frame(i)]} bytes; "
                             f"a stamped frame needs {STAMP_END}")
    with nogil:
        for i in range(burst.count):
            frame = burst.frame(i)
            # Another thread may set lengths meanwhile; whatever it sets, stay in the row.
            length = max(<uint32_t>STAMP_END, store.lengths[frame])
            _stamp_row(heads(store) + <size_t>frame * store.stride, length, first + <uint64_t>i)


def in_flight(Burst burst not None):
    """How many sends of frames of `burst`, or of bursts it shares memory with, are not reclaimed.

    At 0 its rows can be written again. A burst of no frames has none in flight.
    """
    return burst.store.refs - 1 - burst.store.listed if burst.count else 0


# ---- receiving ---------------------------------------------------------------------------------

cdef int _verify(const Store *store, uint32_t frame, uint64_t *sequence) noexcept nogil:
    """FOREIGN, CORRUPT or INTACT, and then the sequence number.

    A frame is a test frame if its type or its magic says so: damage to one leaves the other.
    """
    cdef const uint8_t *head = heads(store) + <size_t>frame * store.stride
    cdef uint32_t length = store.lengths[frame], linear = min(length, store.head_room), i
    cdef uint16_t magic = 0
    cdef Frag *frag
    cdef Sum sum
    cdef bint typed = head[12] == 0x88 and head[13] == 0xB5
    if linear >= SEQUENCE_AT:
        memcpy(&magic, head + MAGIC_AT, 2)
    if not typed and magic != _MAGIC:
        return FOREIGN
    if linear < STAMP_END or magic != _MAGIC:
        return CORRUPT
    _begin(&sum, head)
    _add_bytes(&sum, head + STAMP_END, linear - STAMP_END)
    if store.begin != NULL:
        for i in range(store.begin[frame], store.begin[frame + 1]):
            frag = &store.frags[i]
            _add_bytes(&sum, page_address(store.pool, frag.page) + frag.offset, frag.length)
    if _finish(&sum, length) != _word(head + CHECKSUM_AT):
        return CORRUPT
    sequence[0] = _word(head + SEQUENCE_AT)
    return INTACT


@cython.auto_pickle(False)
cdef class Checker:
    """Verifies the frames of one stream and counts what became of them.

    first       the sequence number the sender began with; frames that do not follow it, left over
                from earlier streams, are foreign. Left out: the first intact frame's stream.

    received    intact frames, duplicates among them (`bytes` in all)
    corrupt     test frames whose content is not what was sent
    foreign     other frames: the neighbours' chatter, other streams
    astray      those of them that are intact test frames, of other streams
    duplicated  intact frames that had come before. A frame more than a million numbers behind
                the highest one counts here too: whether it had come is no longer known
    reordered   intact frames that came after one with a higher number
    """

    def __init__(self, first=None):
        self.received = self.bytes = self.corrupt = self.foreign = self.astray = 0
        self.duplicated = self.reordered = 0
        self.adopting = first is None
        self.first = self.low = self.next = 0 if first is None else first
        memset(self.seen, 0, sizeof(self.seen))

    def check(self, Burst burst not None):
        """Verify and count every frame of `burst`; how many are intact frames of the stream."""
        cdef uint64_t sequences[CHUNK]
        cdef int verdicts[CHUNK]
        cdef Store *store = burst.store
        cdef Py_ssize_t done = 0, count, i
        cdef uint64_t before = self.received
        while done < burst.count:
            count = min(<Py_ssize_t>CHUNK, burst.count - done)
            with nogil:
                for i in range(count):
                    verdicts[i] = _verify(store, burst.frame(done + i), &sequences[i])
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
            done += count
        return self.received - before

    cdef bint _is_ours(self, uint64_t sequence) noexcept:
        if self.adopting:
            self.adopting = False
            self.first = sequence >> STREAM_SHIFT << STREAM_SHIFT
            self.low = self.next = sequence
        return (sequence - self.first) >> STREAM_SHIFT == 0

    cdef void _count(self, uint64_t sequence) noexcept:
        cdef uint64_t *word = &self.seen[(sequence & (WINDOW - 1)) >> 6]
        cdef uint64_t bit = <uint64_t>1 << (sequence & 63)
        if sequence >= self.next:
            self._advance(sequence)
        elif self.next - sequence > WINDOW or word[0] & bit:
            self.duplicated += 1
            return
        else:
            self.reordered += 1
            self.low = min(self.low, sequence)
        word[0] |= bit

    cdef void _advance(self, uint64_t sequence) noexcept:
        """Move the window up to `sequence`, with nothing in what is new of it."""
        cdef uint64_t i
        if sequence - self.next >= WINDOW:
            memset(self.seen, 0, sizeof(self.seen))
        else:
            for i in range(self.next, sequence + 1):
                self.seen[(i & (WINDOW - 1)) >> 6] &= ~(<uint64_t>1 << (i & 63))
        self.next = sequence + 1

    @property
    def passed(self):
        """Frames from the first to the highest one received: no more than these have come by."""
        return self.next - self.low

    def lost(self, sent=None):
        """Frames that came neither intact nor damaged, of the `sent` ones.

        Left out: of those up to the highest one received.
        """
        cdef uint64_t arrived = self.received - self.duplicated + self.corrupt
        cdef uint64_t expected = self.next - self.low if sent is None else sent
        return expected - arrived if expected > arrived else 0

    def __repr__(self):
        return f"<Checker: {self.received} received, {self.corrupt} corrupt, {self.lost()} lost>"
