"""Internet checksums (RFC 1071) of whole bursts, written and verified, wherever a frame lies.

Headers are copied before they are read, and every length in them is held against what is there.
Sums are of words as they lie in memory: checksums then need no change of byte order (RFC 1071, 2).
"""

cimport numpy as cnp

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<arpa/inet.h>" nogil:
    uint16_t htons(uint16_t value) noexcept

from ._burst cimport Burst
from ._cursor cimport Cursor, begin, next_piece, skip, take
from ._headers cimport (
    ADDRESSES_V4,
    ADDRESSES_V6,
    ETHERNET,
    ICMP,
    ICMPV6,
    IPV4_LEAST,
    IPV6,
    MAX_TAGS,
    TCP,
    TYPE_IPV4,
    TYPE_IPV6,
    UDP,
    VLAN_TAG,
    be16,
    is_tag,
)
from ._layout cimport NetHdr
from ._offload cimport DATA_VALID, NEEDS_CSUM
from ._pages cimport Store

import numpy as np

cnp.import_array()

cdef enum:
    HOP_BY_HOP = 0              # extension headers of IPv6, RFC 8200, 4
    ROUTING = 43
    FRAGMENT = 44
    DESTINATION = 60
    UDP_CSUM = 6                # offset of the checksum in a UDP header
    EXTENSION = 8               # bytes of the least of them, and their unit


def fix_checksums(Burst burst not None):
    """Write the checksums of every frame: IPv4 header, and TCP, UDP, ICMP or ICMPv6.

    VLAN tags (up to two) and IPv6 extension headers are stepped over; payload may lie in
    fragments, bytes behind the IP packet are not summed. A UDP checksum of zero is filled in.
    Fragments of a datagram get the checksum of their IPv4 header alone, as do frames that are to be
    segmented. What `burst.offload` left to the device (NEEDS_CSUM) is made, and the flag cleared.
    A frame whose headers lie about their lengths is left as it is, as is one that is not IP.
    Returns in how many frames a checksum was written.
    """
    cdef Store *store = burst.store
    cdef Py_ssize_t i, fixed = 0
    cdef Checksums sums
    cdef uint32_t frame
    cdef bint wrote
    with nogil:
        for i in range(burst.count):
            frame = burst.frame(i)
            wrote = store.headers != NULL and _complete(store, frame, &store.headers[frame].net)
            if find_checksums(store, frame, &sums):
                if store.headers != NULL and store.headers[frame].net.gso_type:
                    sums.payload.at = 0  # each segment will have its own
                _write(store, frame, &sums.header)
                _write(store, frame, &sums.payload)
                wrote = wrote or sums.header.at != 0 or sums.payload.at != 0
            fixed += wrote
    return fixed


def checksums_ok(Burst burst not None):
    """bool[n]: which frames have no wrong checksum, as a receiver takes it.

    False for a wrong one and for headers that lie about their lengths; True for frames that have
    no checksum, none that `fix_checksums` knows, or one that the device vouches for: it verified it
    (DATA_VALID), or it was never made because the sender is near (NEEDS_CSUM).
    `burst[checksums_ok(burst)]` are the good.
    """
    cdef Store *store = burst.store
    cdef Py_ssize_t i
    cdef Checksums sums
    cdef cnp.ndarray good = np.empty(burst.count, np.bool_)
    cdef uint32_t frame
    cdef uint8_t *verdict = <uint8_t *>cnp.PyArray_DATA(good)
    with nogil:
        for i in range(burst.count):
            frame = burst.frame(i)
            verdict[i] = (
                find_checksums(store, frame, &sums) and _is_right(&sums.header, False)
                and (_is_vouched_for(store, frame) or _is_right(&sums.payload, sums.optional)))
    return good


cdef bint _is_vouched_for(const Store *store, uint32_t frame) noexcept nogil:
    return store.headers != NULL and store.headers[frame].net.flags & (NEEDS_CSUM | DATA_VALID) != 0


cdef bint _complete(const Store *store, uint32_t frame, NetHdr *header) noexcept nogil:
    """Make the checksum that a header asks for (5.1.6.2), and ask for it no more."""
    cdef uint32_t start = header.csum_start, at = start + header.csum_offset
    cdef uint32_t length = store.lengths[frame]
    cdef Checksum sum
    cdef uint64_t total = 0
    cdef Cursor cursor
    if header.gso_type or not header.flags & NEEDS_CSUM or at + 2 > length:
        return False
    begin(&cursor, store, frame)
    if not skip(&cursor, start) or not _sum_next(&cursor, length - start, &total):
        return False
    sum.at, sum.sum, sum.udp = at, _fold(total), header.csum_offset == UDP_CSUM
    _write(store, frame, &sum)
    header.flags, header.csum_start, header.csum_offset = 0, 0, 0
    return True


cdef bint _is_right(const Checksum *sum, bint optional) noexcept nogil:
    if sum.at == 0:
        return True
    if sum.udp and sum.stored == 0:
        return optional
    return _fold(<uint64_t>sum.sum + sum.stored) == 0xFFFF


cdef void _write(const Store *store, uint32_t frame, const Checksum *sum) noexcept nogil:
    cdef uint16_t value = <uint16_t>~sum.sum
    if sum.at:
        write_word(store, frame, sum.at, 0xFFFF if sum.udp and value == 0 else value)


cdef void write_word(const Store *store, uint32_t frame, uint32_t at,
                     uint16_t value) noexcept nogil:
    """Two bytes of a frame, as they lie in memory."""
    cdef Cursor cursor
    cdef int i
    begin(&cursor, store, frame)
    skip(&cursor, at)
    if cursor.here >= 2:
        memcpy(cursor.at, &value, 2)
        return
    for i in range(2):          # one in this piece, one in the next
        if cursor.here or next_piece(&cursor):
            cursor.at[0] = (<uint8_t *>&value)[i]
            cursor.at, cursor.here = cursor.at + 1, cursor.here - 1


# ---- sums --------------------------------------------------------------------------------------

cdef inline uint64_t _sum(const uint8_t *at, uint32_t length) noexcept nogil:
    """Of 32-bit words and what is left over; up to 65535 bytes cannot overflow."""
    cdef uint64_t sum = 0
    cdef uint32_t word, i
    cdef uint16_t half = 0
    for i in range(length >> 2):
        memcpy(&word, at + 4 * i, 4)
        sum += word
    if length & 2:
        memcpy(&half, at + (length & ~<uint32_t>3), 2)
        sum += half
    if length & 1:              # filled up with a zero
        half = 0
        memcpy(&half, at + length - 1, 1)
        sum += half
    return sum


cdef inline uint16_t _fold(uint64_t sum) noexcept nogil:
    sum = (sum >> 32) + <uint32_t>sum
    sum = (sum >> 16) + (sum & 0xFFFF)
    sum = (sum >> 16) + (sum & 0xFFFF)
    return <uint16_t>((sum >> 16) + (sum & 0xFFFF))


cdef bint _sum_next(Cursor *cursor, uint32_t length, uint64_t *sum) noexcept nogil:
    """Add the next `length` bytes, which begin at an even place of what is summed."""
    cdef uint32_t part, done = 0
    cdef uint16_t swapped
    while done < length:
        if cursor.here == 0 and not next_piece(cursor):
            return False
        part = min(length - done, cursor.here)
        if done & 1:
            swapped = _fold(_sum(cursor.at, part))
            sum[0] += <uint16_t>(swapped << 8 | swapped >> 8)
        else:
            sum[0] += _sum(cursor.at, part)
        cursor.at, cursor.here, done = cursor.at + part, cursor.here - part, done + part
    return True


# ---- headers -----------------------------------------------------------------------------------

cdef bint find_checksums(const Store *store, uint32_t frame, Checksums *sums) noexcept nogil:
    """Where a frame's checksums are and what they should be. False if it lies about lengths."""
    cdef Cursor cursor
    cdef uint8_t header[ETHERNET]
    cdef uint32_t length = begin(&cursor, store, frame), at = ETHERNET
    cdef uint16_t kind
    sums.header.at = sums.payload.at = 0
    sums.optional = False
    if not take(&cursor, header, ETHERNET):
        return False
    kind = be16(header + 12)
    while is_tag(kind) and at < ETHERNET + MAX_TAGS * VLAN_TAG:
        if not take(&cursor, header, VLAN_TAG):
            return False
        kind, at = be16(header + 2), at + VLAN_TAG
    if kind == TYPE_IPV4:
        return _find_ipv4(&cursor, at, length - at, sums)
    if kind == TYPE_IPV6:
        return _find_ipv6(&cursor, at, length - at, sums)
    return True


cdef inline uint64_t _sum_without(const uint8_t *header, uint32_t size, uint32_t field,
                                  uint32_t at, Checksum *sum) noexcept nogil:
    """Of a header at the frame's byte `at`, but for the checksum in it, which is noted."""
    memcpy(&sum.stored, header + field, 2)
    sum.at, sum.udp = at + field, False
    return _sum(header, field) + _sum(header + field + 2, size - field - 2)


cdef bint _find_ipv4(Cursor *cursor, uint32_t at, uint32_t left, Checksums *sums) noexcept nogil:
    cdef uint8_t header[IPV4_LEAST]
    cdef uint32_t size, total
    cdef uint64_t sum
    if not take(cursor, header, IPV4_LEAST) or header[0] >> 4 != 4:
        return False
    size, total = (header[0] & 15) * 4, be16(header + 2)
    if size < IPV4_LEAST or total < size or total > left:
        return False
    sum = _sum_without(header, IPV4_LEAST, 10, at, &sums.header)
    if not _sum_next(cursor, size - IPV4_LEAST, &sum):
        return False
    sums.header.sum = _fold(sum)
    if be16(header + 6) & 0x3FFF:  # a fragment: the rest of the datagram is elsewhere
        return True
    sums.optional = True
    sum = _sum(header + ADDRESSES_V4, 8)
    return _find_payload(cursor, header[9], ICMP, at + size, total - size, sum, sums)


cdef bint _find_ipv6(Cursor *cursor, uint32_t at, uint32_t left, Checksums *sums) noexcept nogil:
    cdef uint8_t header[IPV6]
    cdef uint8_t extension[EXTENSION]
    cdef uint32_t size
    cdef uint8_t kind
    if not take(cursor, header, IPV6) or header[0] >> 4 != 6 or left - IPV6 < be16(header + 4):
        return False
    at, left, kind = at + IPV6, be16(header + 4), header[6]
    while kind == HOP_BY_HOP or kind == ROUTING or kind == FRAGMENT or kind == DESTINATION:
        if left < EXTENSION or not take(cursor, extension, EXTENSION):
            return False
        size = EXTENSION
        if kind == FRAGMENT:
            if be16(extension + 2) & 0xFFF9:  # not the whole datagram
                return True
        elif kind == ROUTING and extension[3]:  # the checksum is for another destination
            return True
        else:
            size += EXTENSION * extension[1]
        if size > left or not skip(cursor, size - EXTENSION):
            return False
        at, left, kind = at + size, left - size, extension[0]
    return _find_payload(
        cursor, kind, ICMPV6, at, left, _sum(header + ADDRESSES_V6, 32), sums)


cdef bint _find_payload(Cursor *cursor, uint8_t protocol, uint8_t icmp, uint32_t at, uint32_t size,
                        uint64_t addresses, Checksums *sums) noexcept nogil:
    """Of TCP, UDP or `icmp`, which lies `size` bytes long at the frame's byte `at`."""
    cdef uint8_t header[20]
    cdef uint32_t least
    cdef uint64_t sum
    if protocol == UDP:
        least = 8
        if size < least or not take(cursor, header, 8) or not least <= be16(header + 4) <= size:
            return False
        size = be16(header + 4)
        sum = _sum_without(header, 8, 6, at, &sums.payload)
        sums.payload.udp = True
    elif protocol == TCP:
        least = 20
        if (size < least or not take(cursor, header, 20)
                or not least <= (header[12] >> 4) * 4 <= size):
            return False
        sum = _sum_without(header, 20, 16, at, &sums.payload)
    elif protocol == icmp:
        least = 4
        if size < least or not take(cursor, header, 4):
            return False
        sum = _sum_without(header, 4, 2, at, &sums.payload)
    else:
        return True
    sums.payload.start, sums.payload.end, sums.payload.pseudo = at, at + size, 0
    sums.payload.bytes = size - ((header[12] >> 4) * 4 if protocol == TCP else least)
    if protocol != ICMP:
        addresses += htons(protocol) + htons(size)
        sum += addresses
        sums.payload.pseudo = _fold(addresses)
    if not _sum_next(cursor, size - least, &sum):
        return False
    sums.payload.sum = _fold(sum)
    return True
