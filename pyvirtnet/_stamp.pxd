"""What a checker keeps: counters and the window of sequence numbers it has seen."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    WINDOW_WORDS = 16384
    WINDOW = WINDOW_WORDS * 64  # sequence numbers behind the highest one that are told apart


cdef class Checker:
    cdef readonly uint64_t received     # intact frames, duplicates among them
    cdef readonly uint64_t bytes        # in them
    cdef readonly uint64_t corrupt
    cdef readonly uint64_t foreign
    cdef readonly uint64_t astray       # of the foreign ones
    cdef readonly uint64_t duplicated
    cdef readonly uint64_t reordered
    cdef uint64_t first                 # the stream's: what does not follow it is foreign
    cdef uint64_t low                   # the lowest sequence number that is expected
    cdef uint64_t next                  # one past the highest seen
    cdef bint adopting                  # the first intact frame says which stream it is
    cdef uint64_t seen[WINDOW_WORDS]    # a bit for each of next - WINDOW … next - 1

    cdef bint _is_ours(self, uint64_t sequence) noexcept
    cdef void _count(self, uint64_t sequence) noexcept
    cdef void _advance(self, uint64_t sequence) noexcept
