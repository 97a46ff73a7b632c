"""What stands where in the headers of a frame."""

from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    ETHERNET = 14
    VLAN_TAG = 4
    MAX_TAGS = 2
    IPV4_LEAST = 20
    IPV6 = 40
    ADDRESSES_V4 = 12           # offset of the source address in an IPv4 header
    ADDRESSES_V6 = 8
    TYPE_IPV4 = 0x0800
    TYPE_IPV6 = 0x86DD
    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132


cdef inline uint16_t be16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline bint is_tag(uint16_t kind) noexcept nogil:
    """A VLAN tag of IEEE 802.1Q, or the outer one of two."""
    return kind == 0x8100 or kind == 0x88A8
