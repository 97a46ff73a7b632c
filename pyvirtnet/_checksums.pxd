"""The checksums of a frame: where they are, and what they should be."""

from libc.stdint cimport uint16_t, uint32_t

from ._pages cimport Store

cdef struct Checksum:
    uint32_t at                 # where in the frame it is; 0: there is none
    uint16_t stored
    uint16_t sum                # of all it covers, itself taken as zero
    uint32_t start              # of what it covers
    uint32_t end
    uint32_t bytes              # of payload behind the header it is in
    uint16_t pseudo             # sum of the pseudo-header
    bint udp                    # zero means that there is none; a zero is written as 0xFFFF

cdef struct Checksums:
    Checksum header             # of the IPv4 header
    Checksum payload            # of what IP carries
    bint optional               # that of the payload, over IPv4


cdef bint find_checksums(const Store *store, uint32_t frame, Checksums *sums) noexcept nogil
cdef void write_word(const Store *store, uint32_t frame, uint32_t at, uint16_t value) noexcept nogil
