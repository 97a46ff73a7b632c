"""Fields of a virtio header that leave work to others: what may be sent, what may be received."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ._layout cimport NetHdr
from ._pages cimport Store

cdef enum:                      # 5.1.6: flags
    NEEDS_CSUM = 1
    DATA_VALID = 2

cdef enum:                      # 5.1.6: gso_type
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

cdef enum:                      # 5.1.3: feature bits
    BIT_CSUM = 0
    BIT_GUEST_CSUM = 1
    BIT_GUEST_TSO4 = 7
    BIT_GUEST_TSO6 = 8
    BIT_GUEST_ECN = 9
    BIT_HOST_TSO4 = 11
    BIT_HOST_TSO6 = 12
    BIT_HOST_ECN = 13
    BIT_GUEST_USO4 = 54
    BIT_GUEST_USO6 = 55
    BIT_HOST_USO = 56
    BIT_HASH_REPORT = 57

cdef enum:
    MOST_SEGMENTED = 65589      # bytes of a frame to be segmented, 5.1.6.3.1

cdef enum:                      # why a frame is not sent
    REFUSED_SIZE = -1
    REFUSED_FLAGS = -2
    REFUSED_CSUM = -3           # not negotiated
    REFUSED_FIELD = -4          # the checksum is not in the frame, or not where it should be
    REFUSED_TYPE = -5
    REFUSED_GSO = -6            # not negotiated
    REFUSED_BARE = -7           # segmentation without NEEDS_CSUM
    REFUSED_GSO_SIZE = -8
    REFUSED_HEADERS = -9        # the frame ends within its headers
    REFUSED_ECN = -10           # not negotiated


cdef inline bint has(uint64_t features, uint8_t bit) noexcept nogil:
    return features >> bit & 1


cdef int header_to_send(const Store *store, uint32_t frame, uint32_t length, uint64_t features,
                        NetHdr *header) noexcept nogil
cdef bint header_received(NetHdr *header, uint64_t features, uint32_t length) noexcept nogil
