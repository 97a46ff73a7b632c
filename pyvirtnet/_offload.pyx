"""Fields of a virtio header, checked: those of what is sent (5.1.6.2) and received (5.1.6.4)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ._cursor cimport Cursor, begin, skip, take

cdef enum:
    TCP_LEAST = 20
    TCP_CSUM = 16               # offset of the checksum in a TCP header
    UDP_BYTES = 8
    UDP_CSUM = 6
    CWR = 0x80                  # of TCP's flags: a packet with ECN, as virtio means it (5.1.6.2)


cdef int header_to_send(const Store *store, uint32_t frame, uint32_t length, uint64_t features,
                        NetHdr *header) noexcept nogil:
    """The header of a frame of `length` bytes; 0 if all of it is zero, or a REFUSED_ code.

    hdr_len and ECN are not the caller's word but the frame's.
    """
    cdef NetHdr wanted = store.headers[frame].net  # a copy: the caller may write there meanwhile
    if wanted.flags & ~(NEEDS_CSUM | DATA_VALID):
        return REFUSED_FLAGS
    if not wanted.flags & NEEDS_CSUM:  # DATA_VALID is not for what is sent (5.1.6.2.1)
        return REFUSED_BARE if wanted.gso_type else 0
    if not has(features, BIT_CSUM):
        return REFUSED_CSUM
    if <uint32_t>wanted.csum_start + wanted.csum_offset + 2 > length:
        return REFUSED_FIELD
    memset(header, 0, sizeof(NetHdr))
    header.flags = NEEDS_CSUM
    header.csum_start, header.csum_offset = wanted.csum_start, wanted.csum_offset
    if wanted.gso_type == GSO_NONE:
        return 1
    header.gso_type, header.gso_size = wanted.gso_type & ~GSO_ECN, wanted.gso_size
    return _segmented(store, frame, length, features, header)


cdef int _segmented(const Store *store, uint32_t frame, uint32_t length, uint64_t features,
                    NetHdr *header) noexcept nogil:
    """Complete the header of a frame to be segmented; 1, or a REFUSED_ code."""
    cdef bint udp = header.gso_type == GSO_UDP_L4
    cdef uint8_t transport[TCP_LEAST]
    cdef uint32_t size = UDP_BYTES
    cdef Cursor cursor
    if not udp and header.gso_type != GSO_TCPV4 and header.gso_type != GSO_TCPV6:
        return REFUSED_TYPE
    if not has(features, BIT_HOST_USO if udp else BIT_HOST_TSO4 if header.gso_type == GSO_TCPV4
               else BIT_HOST_TSO6):
        return REFUSED_GSO
    if header.gso_size == 0:
        return REFUSED_GSO_SIZE
    if header.csum_offset != (UDP_CSUM if udp else TCP_CSUM):
        return REFUSED_FIELD
    begin(&cursor, store, frame)
    if not (skip(&cursor, header.csum_start)
            and take(&cursor, transport, UDP_BYTES if udp else TCP_LEAST)):
        return REFUSED_HEADERS
    if not udp:
        size = (transport[12] >> 4) * 4
        if transport[13] & CWR:
            if not has(features, BIT_HOST_ECN):
                return REFUSED_ECN
            header.gso_type |= GSO_ECN
    size += header.csum_start
    if size > 0xFFFF or size > length:
        return REFUSED_HEADERS
    header.hdr_len = size
    return 1


cdef bint header_received(NetHdr *header, uint64_t features, uint32_t length) noexcept nogil:
    """Is this copy of a header one of a frame of `length` bytes? What means nothing becomes 0."""
    cdef uint8_t kind = header.gso_type & ~GSO_ECN
    cdef bint allowed = kind == GSO_NONE
    if not has(features, BIT_GUEST_CSUM):
        memset(header, 0, sizeof(NetHdr))
        return True
    header.flags &= NEEDS_CSUM | DATA_VALID  # others are ignored (5.1.6.4.2)
    if not header.flags & NEEDS_CSUM:
        header.csum_start = header.csum_offset = 0
    elif <uint32_t>header.csum_start + header.csum_offset + 2 > length:
        return False
    if kind == GSO_TCPV4:
        allowed = has(features, BIT_GUEST_TSO4)
    elif kind == GSO_TCPV6:
        allowed = has(features, BIT_GUEST_TSO6)
    elif kind == GSO_UDP_L4:
        allowed = has(features, BIT_GUEST_USO4) or has(features, BIT_GUEST_USO6)
    if header.gso_type & GSO_ECN and (
            not has(features, BIT_GUEST_ECN) or kind == GSO_NONE or kind == GSO_UDP_L4):
        return False
    if kind == GSO_NONE:
        header.hdr_len = header.gso_size = 0
        return True
    return allowed and header.gso_size != 0
