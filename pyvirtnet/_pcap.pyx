"""Records of capture files, pcap and pcapng, made of whole bursts."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._burst cimport Burst
from ._cursor cimport Cursor, begin, take

cdef enum:
    SECOND = 1000000000         # nanoseconds
    PCAP_HEADER = 16
    ENHANCED_PACKET = 6         # a block's type in pcapng
    ENHANCED_HEADER = 28
    ENHANCED_TAIL = 4


def records(Burst burst not None, uint64_t stamp, uint32_t snaplen, *, bint ng=False,
            uint32_t interface=0):
    """The frames of `burst` as bytes of a capture file, in the machine's byte order.

    stamp       nanoseconds since 1970, of all frames
    snaplen     bytes to keep of a frame
    ng          enhanced packet blocks of pcapng, of `interface`, in place of pcap's records; both
                for stamps in nanoseconds
    """
    cdef Py_ssize_t i
    cdef size_t total = 0
    cdef uint8_t *at
    for i in range(burst.count):
        total += _room(_kept(burst, i, snaplen), ng)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, total)
    at = <uint8_t *>PyBytes_AS_STRING(made)
    for i in range(burst.count):
        if ng:
            _write_block(burst, i, stamp, snaplen, interface, at)
        else:
            _write_record(burst, i, stamp, snaplen, at)
        at += _room(_kept(burst, i, snaplen), ng)
    return made


cdef inline uint32_t _kept(Burst burst, Py_ssize_t i, uint32_t snaplen) noexcept:
    return min(snaplen, burst.store.lengths[burst.frame(i)])


cdef inline size_t _room(uint32_t kept, bint ng) noexcept:
    if ng:
        return ENHANCED_HEADER + ((kept + 3) & ~<uint32_t>3) + ENHANCED_TAIL
    return PCAP_HEADER + kept


cdef void _copy(Burst burst, Py_ssize_t i, uint8_t *to, uint32_t kept) noexcept:
    cdef Cursor cursor
    begin(&cursor, burst.store, burst.frame(i))
    if not take(&cursor, to, kept):
        memset(to, 0, kept)


cdef void _write_record(Burst burst, Py_ssize_t i, uint64_t stamp, uint32_t snaplen,
                        uint8_t *to) noexcept:
    cdef uint32_t kept = _kept(burst, i, snaplen)
    cdef uint32_t[4] header = [
        <uint32_t>(stamp // SECOND), <uint32_t>(stamp % SECOND), kept,
        burst.store.lengths[burst.frame(i)]]
    memcpy(to, header, PCAP_HEADER)
    _copy(burst, i, to + PCAP_HEADER, kept)


cdef void _write_block(Burst burst, Py_ssize_t i, uint64_t stamp, uint32_t snaplen,
                       uint32_t interface, uint8_t *to) noexcept:
    cdef uint32_t kept = _kept(burst, i, snaplen), size = <uint32_t>_room(kept, True)
    cdef uint32_t[7] header = [
        ENHANCED_PACKET, size, interface, <uint32_t>(stamp >> 32), <uint32_t>stamp, kept,
        burst.store.lengths[burst.frame(i)]]
    memset(to + size - ENHANCED_TAIL - 4, 0, 4)  # what fills the frame up to whole words
    memcpy(to, header, ENHANCED_HEADER)  # the end of it lies there if nothing is kept
    memcpy(to + size - ENHANCED_TAIL, &size, ENHANCED_TAIL)
    _copy(burst, i, to + ENHANCED_HEADER, kept)
